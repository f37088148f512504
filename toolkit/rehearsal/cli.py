"""Command line of the rehearsal."""

import argparse
from pathlib import Path


def model(arguments: argparse.Namespace) -> None:
    """Write one model."""
    from toolkit.rehearsal.models import write

    write(arguments.model, arguments.output)


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `rehearsal`."""
    parser = subparsers.add_parser(
        "model", help="write a model of the published size with random weights", allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="gemma, clip, convnext or captioner")
    parser.add_argument("--output", type=Path, required=True)
    parser.set_defaults(run=model)
