"""`python -m toolkit plan`: hours, memory and disk of a configuration, before it runs and compared after."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from toolkit import config, scales
from toolkit.arguments import at_least_one
from toolkit.doctor import facts
from toolkit.errors import UserError
from toolkit.files import json_text
from toolkit.plan import cards, measure, predict, profile, ran, show, work


def command(parser: argparse.ArgumentParser) -> None:
    """Declare the flags: this noun has no verbs."""
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("workflow/config/tiny.yaml"),
        help="what is to be run (%(default)s)",
    )
    parser.add_argument(
        "--card", help="GPU to plan for; by default the one that is here, and cpu for the scale tiny"
    )
    parser.add_argument(
        "--gpus", type=at_least_one, default=1, help="that each training stage gets (%(default)s)"
    )
    parser.add_argument(
        "--nodes",
        type=at_least_one,
        default=1,
        help="of a Slurm cluster that train together, with --gpus of each (%(default)s)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train a few steps of each stage here and use their rates",
    )
    parser.add_argument(
        "--actual", action="store_true", help="compare with the seconds of what has run (output/benchmarks)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="write a Snakemake profile for Slurm as well"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Predict and print."""
    if arguments.card and arguments.measure:
        raise UserError("--measure is for the GPU that is here, --card for another: give one of them")
    settings = config.read(arguments.config)
    here = next(iter(facts.gpus()), None)
    card = cards.card(arguments.card or usual(settings.scale, here, arguments.measure))
    todo = work.of(settings)
    if arguments.measure:
        if here and card.memory:
            card = replace(card, title=here.name, memory=here.total)
        rates = measure.measure(settings, arguments.gpus if card.memory else 0)
        card = predict.measured(card, rates, arguments.gpus, cards.table().errors.here)
    elif card.memory:
        if not (here or arguments.card):
            todo.assumed.append(f"there is no GPU here, so this is for {card.title}: --card names another")
        if settings.finetune.base == "nf4":
            todo.assumed.append(
                "finetune: the rate is LoRA's with a base in bf16; nf4 is slower, as --measure shows"
            )
    if arguments.nodes > 1:
        todo.assumed.append("the network between nodes is taken to be as fast as that between GPUs of one")
    outlook = predict.predict(settings, todo, card, arguments.gpus * arguments.nodes)
    title = str(arguments.config)
    if arguments.profile:
        profile.write(outlook, arguments.config, arguments.profile, arguments.nodes)
    if arguments.actual:
        show.actual(outlook, title, ran.comparable(settings, outlook, show.recorded()))
    elif arguments.json:
        sys.stdout.write(json_text({"config": title} | show.values(outlook)))
    else:
        show.show(outlook, title)


def outlook_here(settings: config.Config) -> predict.Outlook | None:
    """The outlook on this machine's card; None for a card or an asset without figures."""
    try:
        card = cards.card(usual(settings.scale, next(iter(facts.gpus()), None), False))
        return predict.predict(settings, work.of(settings), card, 1)
    except UserError:
        return None


def compared_here(settings: config.Config) -> list[tuple[str, int, float, float]]:
    """(rule, runs, predicted seconds, actual seconds) of what has run, on this machine's card; nothing where
    there is no outlook."""
    if not (outlook := outlook_here(settings)):
        return []
    return show.compared(outlook, ran.comparable(settings, outlook, show.recorded()))


def usual(scale: str, here: facts.GPU | None, measuring: bool) -> str:
    """The card of this machine, or cards.USUAL where it has none. UserError for a GPU without figures, and
    for measuring without a GPU."""
    if scales.load(scale).embedded:
        return cards.WORLD
    if here is None and measuring:
        raise UserError("--measure trains on the GPU of this machine and there is none: name a card (--card)")
    name = cards.named(here.name) if here else cards.USUAL
    if name is None and not measuring and here:
        raise UserError(
            f"no figures of {here.name} are known: measure them (--measure), or plan for another card "
            f"(--card {', '.join(cards.names())})"
        )
    return name or cards.USUAL
