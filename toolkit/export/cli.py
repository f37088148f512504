"""Command line of the export."""

import argparse
from pathlib import Path


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `export`."""
    parser.add_argument("--model", type=Path, required=True, help="finetuning folder, or a full checkpoint's")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write; it must not exist")
    parser.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> None:
    """Write the folder and print what was proved."""
    from toolkit.export.export import export as exported

    proof = exported(arguments.model, arguments.output)
    print(
        f"{arguments.output}: loaded with transformers alone, {proof['answers_equal']} of "
        f"{proof['questions']} answers equal, logits differ by "
        f"{proof['max_logit_difference']:.2g} standard deviations"
    )
