"""A proposal: a recipe and how it is tried; and the file of a round of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.files import read_json, write_json
from toolkit.search.space import Steps


@dataclass(frozen=True)
class Proposal:
    """A recipe and how it is tried. decided: the space's decisions, None for the raw data. rows,
    instructions: of both stages, at most; None: the scale's. seed: of the training."""

    process: Steps
    decided: dict[str, Any] | None
    rows: int | None
    instructions: int | None
    seed: int

    @property
    def key(self) -> str:
        """What is trained, in 16 hexadecimal digits; equal for equal trainings."""
        what = [self.process, self.rows, self.instructions, self.seed]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def recipe(self) -> str:
        """The recipe alone, as one line."""
        return json.dumps(self.process, sort_keys=True)


def proposal(value: Mapping[str, Any]) -> Proposal:
    """A proposal from the JSON of a round's file."""
    names = ("process", "decided", "rows", "instructions", "seed")
    return Proposal(**{name: value[name] for name in names})


def read_round(path: Path) -> list[Proposal]:
    """The proposals of a round's file."""
    return [proposal(value) for value in read_json(path)["proposals"]]


def write_round(path: Path, proposals: Sequence[Proposal]) -> None:
    """Write a round's file."""
    write_json(path, {"proposals": [{"key": each.key, **asdict(each)} for each in proposals]})
