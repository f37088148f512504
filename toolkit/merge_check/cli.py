"""`python -m toolkit merge-check BASE ADAPTER MERGED`."""

import argparse
from pathlib import Path


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `merge-check`."""
    parser.add_argument("base", type=Path, help="folder of the model that the adapter was trained on")
    parser.add_argument("adapter", type=Path, help="PEFT's folder: adapter_config.json and adapter_model")
    parser.add_argument("merged", type=Path, help="folder of the merged model")
    parser.add_argument(
        "--arithmetic-only", action="store_true", help="do not load the models to compare their logits"
    )
    parser.set_defaults(run=merge_check)


def merge_check(arguments: argparse.Namespace) -> int:
    """Print what was found, then what is wrong; status 1 if anything is."""
    from toolkit.merge_check.check import check

    a = arguments
    results, problems = check(a.base, a.adapter, a.merged, logits=not a.arithmetic_only)
    for name, value in results.items():
        print(f"{name}: {value}")
    for problem in problems:
        print(f"problem: {problem}")
    print("the merge is not proved" if problems else "the merged model is the base with the adapter")
    return int(bool(problems))
