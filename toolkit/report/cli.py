"""Command line of the report."""

import argparse
from pathlib import Path


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `report`."""
    parser = subparsers.add_parser("build", help="write a page over all experiments", allow_abbrev=False)
    parser.add_argument("--title", required=True, help="first line of the page")
    parser.add_argument("--experiments", nargs="+", required=True, help="trained and evaluated experiments")
    parser.add_argument("--output", type=Path, required=True, help="the page, Markdown")
    parser.set_defaults(run=build)


def build(arguments: argparse.Namespace) -> None:
    """Write the page."""
    from toolkit.bundle.experiment import Experiment
    from toolkit.files import write_text
    from toolkit.report.page import page

    experiments = [Experiment.find(Path(), name) for name in arguments.experiments]
    write_text(arguments.output, page(arguments.title, experiments))
