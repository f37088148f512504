"""Command line of the benchmarks."""

import argparse


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `bench`."""
    from toolkit.bench import evaluate, train

    parser = subparsers.add_parser(
        "train", help="speed and memory of a training stage, random weights and samples", allow_abbrev=False
    )
    train.add_arguments(parser)
    parser.set_defaults(run=train.run)
    parser = subparsers.add_parser(
        "eval", help="speed of answering, many questions at once against one at a time", allow_abbrev=False
    )
    evaluate.add_arguments(parser)
    parser.set_defaults(run=evaluate.run)
