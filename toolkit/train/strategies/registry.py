"""The learning strategies by the names of toolkit.config.STRATEGIES."""

from pathlib import Path

from toolkit.errors import UserError
from toolkit.train.strategies.base import Strategy
from toolkit.train.strategies.curriculum import Curriculum
from toolkit.train.strategies.distillation import Distillation
from toolkit.train.strategies.hard_negatives import HardNegatives
from toolkit.train.strategies.importance import Importance
from toolkit.train.strategies.neftune import NEFTune
from toolkit.train.strategies.progressive import Progressive
from toolkit.train.strategies.resolution import Resolution

ALONE: dict[str, type[Strategy]] = {
    "curriculum": Curriculum,
    "hard-negatives": HardNegatives,
    "importance": Importance,
    "neftune": NEFTune,
    "progressive": Progressive,
    "resolution": Resolution,
}


def chosen(name: str | None, seed: int, teacher: Path | None) -> Strategy:
    """The strategy called `name`, the plain training for None. teacher: finetuning folder, for distillation
    alone; UserError where it is absent there, or given elsewhere."""
    if (name == "distillation") != (teacher is not None):
        raise UserError("the strategy distillation and a teacher go together: name both or neither")
    if name is None:
        return Strategy(seed)
    return ALONE[name](seed) if teacher is None else Distillation(seed, teacher)
