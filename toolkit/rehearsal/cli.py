"""Command line of the rehearsal."""

import argparse
from pathlib import Path


def model(arguments: argparse.Namespace) -> None:
    """Write one model."""
    from toolkit.rehearsal.models import write

    write(arguments.model, arguments.output)


def forecast(arguments: argparse.Namespace) -> None:
    """Say how long the contest's entries take on this machine, after a rehearsal on it."""
    from toolkit.doctor import facts
    from toolkit.errors import UserError
    from toolkit.plan import cards, rehearsed, show

    gpu = next(iter(facts.gpus()), None)
    if gpu is None:
        raise UserError("there is no GPU here: a rehearsal on the processor says nothing about an entry")
    base = cards.card(cards.named(gpu.name) or cards.USUAL)
    print("\n".join(rehearsed.forecast(base, gpu, show.recorded())))


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `rehearsal`."""
    parser = subparsers.add_parser(
        "model", help="write a model of the published size with random weights", allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="gemma, clip, convnext or captioner")
    parser.add_argument("--output", type=Path, required=True)
    parser.set_defaults(run=model)
    text = "after a rehearsal: hours that the contest's entries take on this machine"
    subparsers.add_parser("forecast", help=text, allow_abbrev=False).set_defaults(run=forecast)
