"""Command line of the report."""

import argparse
from pathlib import Path

from toolkit.arguments import Output


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `report`."""
    parser = subparsers.add_parser("build", help="write a page over all experiments", allow_abbrev=False)
    parser.add_argument("--title", required=True, help="first line of the page")
    parser.add_argument("--experiments", nargs="+", required=True, help="trained and evaluated experiments")
    parser.add_argument("--output", type=Output, required=True, help="the page, Markdown")
    parser.add_argument(
        "--losses", type=Path, required=True, help="the page's figure, SVG, in the same folder"
    )
    parser.set_defaults(run=build)
    parser = subparsers.add_parser(
        "training", help="draw losses, memory and speed of one experiment", allow_abbrev=False
    )
    parser.add_argument("--experiment", required=True, help="a trained experiment")
    parser.add_argument("--output", type=Output, required=True, help="the figure, SVG")
    parser.set_defaults(run=training)
    parser = subparsers.add_parser(
        "overview", help="write a page for browsers over all experiments and answers", allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, required=True, help="configuration that was run, YAML")
    parser.add_argument("--output", type=Output, required=True, help="the page, HTML")
    parser.set_defaults(run=overview)


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


def overview(arguments: argparse.Namespace) -> None:
    """Write the page for browsers."""
    from toolkit import config
    from toolkit.bundle.checks.exceptions import listed
    from toolkit.bundle.checks.inputs import files_of
    from toolkit.contest.experiment import Absent
    from toolkit.errors import UserError
    from toolkit.files import write_text
    from toolkit.plan.cli import compared_here
    from toolkit.report.overview import overview, runs_of

    settings = config.read(arguments.config)
    runs = runs_of(settings)
    try:
        files = {name: files_of(runs[0], name) for name in settings.benchmarks}
    except Absent as absent:
        raise UserError(f"{absent} does not exist: build it first (snakemake {absent})") from None
    folder = arguments.output.parent
    text = overview(settings, runs, files, compared_here(settings), listed(runs[0]), folder)
    write_text(arguments.output, text)
