"""How fast each unit of work goes on which card (cards.yaml)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from toolkit.errors import UserError
from toolkit.files import read_yaml

PATH = Path(__file__).parent / "cards.yaml"
WORLD = "cpu"  # the name of the two cores on the command line
USUAL = "h100"  # where no GPU is at hand and none was named


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Errors(_Section):
    """Largest relative error of a prediction, by how its rates are known."""

    here: float
    measured: float
    scaled: float
    world: float


class Processor(_Section):
    """Rates (units a second), starts (seconds of a rule) and memory (bytes of the host that a unit takes, and
    a process without any) that do not depend on the card."""

    rates: dict[str, float]
    starts: dict[str, float]
    memory: dict[str, int]
    gpu_starts: dict[str, float]
    scaling: float


class Sheet(_Section):
    """A card: of its data sheet, and what was measured on it."""

    title: str
    device: str
    memory: float
    tflops: float
    rates: dict[str, float] = {}


class World(_Section):
    """The embedded world on a processor; memory: GB of each rule."""

    title: str
    rates: dict[str, float]
    starts: dict[str, float]
    together: float
    memory: dict[str, float]


class Table(_Section):
    """The whole file."""

    errors: Errors
    processor: Processor
    cards: dict[str, Sheet]
    world: World


@dataclass(frozen=True)
class Rate:
    """Units a second, and their largest relative error."""

    value: float
    error: float


@dataclass(frozen=True)
class Card:
    """What a configuration is predicted for.

    memory: bytes of a GPU, None without one. starts: seconds of a rule beside its work. scaling: what each
    GPU after the first adds to a training's rate. together: rules that run at once, on the average. resident:
    measured bytes of the host's memory, by rule. growth: bytes of it that a unit of work takes, and under
    "process" those of a process without any.
    """

    name: str
    title: str
    memory: int | None
    rates: Mapping[str, Rate]
    starts: Mapping[str, float]
    scaling: float
    together: float
    resident: Mapping[str, int]
    growth: Mapping[str, int]
    start_error: float


@cache
def table() -> Table:
    """What cards.yaml says."""
    return Table.model_validate(read_yaml(PATH))


def names() -> list[str]:
    """What `--card` may name."""
    return [*table().cards, WORLD]


def card(name: str) -> Card:
    """The card of a name; UserError lists the known ones otherwise."""
    if name == WORLD:
        return _world()
    if name not in table().cards:
        raise UserError(f"no figures of a card {name!r} are known: choose one of {', '.join(names())}")
    errors, processor, sheet = table().errors, table().processor, table().cards[name]
    rates = {key: Rate(value, errors.scaled) for key, value in processor.rates.items()}
    for other in table().cards.values():
        for key, value in other.rates.items():
            rates.setdefault(key, Rate(value * sheet.tflops / other.tflops, errors.scaled))
    rates |= {key: Rate(value, errors.measured) for key, value in sheet.rates.items()}
    return Card(
        name,
        sheet.title,
        int(sheet.memory * 2**30),
        rates,
        processor.starts | processor.gpu_starts,
        processor.scaling,
        together=1,
        resident={},
        growth=processor.memory,
        start_error=errors.measured if sheet.rates else errors.scaled,
    )


def _world() -> Card:
    world, error = table().world, table().errors.world
    return Card(
        WORLD,
        world.title,
        None,
        {key: Rate(value, error) for key, value in world.rates.items()},
        world.starts,
        scaling=0,
        together=world.together,
        resident={rule: int(size * 1e9) for rule, size in world.memory.items()},
        growth={},
        start_error=error,
    )


def named(device: str) -> str | None:
    """The card that a driver calls `device`; None for one that cards.yaml does not know."""
    return next((name for name, sheet in table().cards.items() if re.search(sheet.device, device)), None)
