"""Command line of the report."""

import argparse
from pathlib import Path


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `report`."""
    parser = subparsers.add_parser("build", help="write a page over all experiments", allow_abbrev=False)
    parser.add_argument("--title", required=True, help="first line of the page")
    parser.add_argument("--experiments", nargs="+", required=True, help="trained and evaluated experiments")
    parser.add_argument("--output", type=Path, required=True, help="the page, Markdown")
    parser.add_argument(
        "--losses", type=Path, required=True, help="the page's figure, SVG, in the same folder"
    )
    parser.set_defaults(run=build)
    parser = subparsers.add_parser(
        "training", help="draw losses, memory and speed of one experiment", allow_abbrev=False
    )
    parser.add_argument("--experiment", required=True, help="a trained experiment")
    parser.add_argument("--output", type=Path, required=True, help="the figure, SVG")
    parser.set_defaults(run=training)


def build(arguments: argparse.Namespace) -> None:
    """Write the page and its figure."""
    from toolkit.bundle.checks.exceptions import listed
    from toolkit.contest.experiment import Experiment
    from toolkit.files import write_text
    from toolkit.report.figures import draw_losses_of_all
    from toolkit.report.page import page

    experiments = [Experiment.find(Path(), name) for name in arguments.experiments]
    text = page(arguments.title, experiments, arguments.losses.name, listed(experiments[0]))
    draw_losses_of_all(experiments, arguments.losses)
    write_text(arguments.output, text)


def training(arguments: argparse.Namespace) -> None:
    """Draw the figure."""
    from toolkit.contest.experiment import Experiment
    from toolkit.report.figures import draw_training

    draw_training(Experiment.find(Path(), arguments.experiment), arguments.output)
