"""compare.json, read: whole, or one sentence on what it lacks; and its numbers as text."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.intervals import Interval

Bounds = tuple[float | None, float | None]
Verdict = Literal["better", "worse", "undecided"]


class _OverSeeds(BaseModel):
    seeds: list[int]
    interval: Bounds


class _Accuracies(_OverSeeds):
    accuracies: list[float]
    difference_interval: Bounds | None = None


class _Scores(_OverSeeds):
    scores: list[float | None]


class _Baseline(BaseModel):
    accuracy: float
    interval: Bounds
    over_seeds: _Accuracies | None = None


class _Compared(_Baseline):
    difference: float
    difference_interval: Bounds
    ratio: float | None
    ratio_interval: Bounds
    verdict: Verdict


class _Benchmark(BaseModel):
    questions: int
    results: dict[str, _Compared | _Baseline]


class _Score(BaseModel):
    score: float | None
    interval: Bounds
    verdict: Verdict
    over_seeds: _Scores | None = None


class _Comparison(BaseModel):
    baseline: str
    experiments: list[str]
    seed: int
    resamples: int
    benchmarks: dict[str, _Benchmark] = Field(min_length=1)
    score: dict[str, _Score]

    @model_validator(mode="after")
    def everywhere(self) -> "_Comparison":
        for name, benchmark in self.benchmarks.items():
            if self.baseline not in benchmark.results:
                raise ValueError(f"{name} lacks the baseline {self.baseline}")
            for experiment, row in benchmark.results.items():
                if experiment != self.baseline and not isinstance(row, _Compared):
                    raise ValueError(f"{name} does not compare {experiment} with the baseline")
        return self


def checked(compared: Any, file: Path | str) -> dict[str, Any]:
    """`compared`, the content of `file`; UserError where it is not what `evaluate compare` writes."""
    try:
        _Comparison.model_validate(compared)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{file} is not of `evaluate compare`: {where + ': ' if where else ''}{first['msg']}"
        ) from None
    return compared


def read_comparison(file: Path) -> dict[str, Any]:
    """The content of a compare.json; UserError as of `checked`."""
    return checked(read_json(file), file)


def seeds_of(compared: dict[str, Any]) -> list[int]:
    """The training seeds of a comparison where there are several, else none."""
    first = next(iter(compared["benchmarks"].values()))["results"][compared["baseline"]]
    return first.get("over_seeds", {}).get("seeds", [])


def bounds(pair: Interval, digits: int) -> str:
    """An interval as text."""
    return " to ".join("unbounded" if value is None else f"{value:.{digits}f}" for value in pair)


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number as text; a ratio to zero has none."""
    return "none" if value is None else f"{value:{sign}.{digits}f}"
