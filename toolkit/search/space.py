"""A space of recipes: a recipe in Data-Juicer's syntax that leaves some decisions open.

    process:
      - optional:                                  # these steps, or none of them
          - image_shape_filter: {min_width: 64}
      - choose:                                    # one of several lists of steps
          - []
          - - image_deduplicator: {method: phash, consider_text: {choice: [true, false]}}
      - shuffle:                                   # all of these steps, in any order
          - words_num_filter: {min_num: {range: [1, 6]}}
          - batched_similarity_filter: {hf_clip: "{clip}", min_score: {quantile: {range: [0, 0.8, 0.1]}}}

A number is one of `range: [least, most]` (integers) or `range: [least, most, step]`, any value one of
`choice: [...]`. So a space is finite, and the same decisions always give the same recipe.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from toolkit.data.recipe import allowed
from toolkit.errors import UserError
from toolkit.files import read_yaml

OPEN = ("optional", "choose", "shuffle")
SHUFFLED = 4  # most steps of a shuffle: 24 orders


@dataclass(frozen=True)
class Numbers:
    """A number from `least` to `most` in equal steps."""

    least: float
    most: float
    step: float


@dataclass(frozen=True)
class Switch:
    """Whether optional steps are there. changes: whether one of them makes new rows."""

    changes: bool = False


@dataclass(frozen=True)
class Pick:
    """One of `count` alternatives, by its place from 0."""

    count: int


Decision = Numbers | Switch | Pick
Decide = Callable[[str, Decision], Any]  # name of a decision, what it is about -> number, bool or place
Steps = list[dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Space:
    """What the file says, checked."""

    process: list[Any]

    def recipe(self, decide: Decide) -> Steps:
        """The steps of one recipe. Names of decisions are places in the file, "3.min_score.quantile"."""
        return list(_steps(self.process, "", decide))

    def decisions(self, values: dict[str, Any]) -> dict[str, Decision]:
        """What each of the decisions `values` is about; KeyError for values of another space."""
        asked: dict[str, Decision] = {}

        def decide(name: str, decision: Decision) -> Any:
            asked[name] = decision
            return values[name]

        self.recipe(decide)
        return asked

    def covering(self) -> list[Steps]:
        """Recipes with every alternative, but without optional mappers: what they compute, most others
        share."""
        counts = [1]

        def cover(place: int) -> Decide:
            def decide(name: str, decision: Decision) -> Any:
                if isinstance(decision, Numbers):
                    return decision.least
                if isinstance(decision, Switch):
                    return not decision.changes
                if not name.endswith(".choose"):
                    return 0
                counts.append(decision.count)
                return min(place, decision.count - 1)

            return decide

        first = self.recipe(cover(0))
        return [first, *(self.recipe(cover(place)) for place in range(1, max(counts)))]

    def all_steps(self) -> Steps:
        """Every step that a recipe may have, with the least of each range."""
        return list(_all_steps(self.process))


def read(path: Path) -> Space:
    """The space in a file; UserError lists its problems."""
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("process"), list):
        raise UserError(f"{path} has no list of steps under the key process")
    problems = [f"{key}: only process is a key of a space" for key in document if key != "process"]
    problems += _problems(document["process"], "")
    space = Space(document["process"])
    if problems := problems or allowed.problems(space.all_steps()):
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path} cannot be searched, repair it:{listed}")
    return space


def recipe_text(name: str, process: Steps) -> str:
    """The file of a recipe."""
    document = {"project_name": name, "process": process}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def _steps(steps: list[Any], above: str, decide: Decide) -> Iterator[dict[str, dict[str, Any]]]:
    for number, step in enumerate(steps, start=1):
        place = f"{above}{number}"
        operator, arguments = allowed.parts(step)
        if operator is not None:
            yield {operator: _value(arguments, place, decide)}
            continue
        ((kind, inner),) = step.items()
        if kind == "optional":
            if decide(f"{place}.optional", Switch(any(_makes_rows(part) for part in inner))):
                yield from _steps(inner, f"{place}.", decide)
        elif kind == "choose":
            chosen = decide(f"{place}.choose", Pick(len(inner)))
            yield from _steps(inner[chosen], f"{place}.{chosen + 1}.", decide)
        else:
            orders = list(permutations(range(len(inner))))
            for position in orders[decide(f"{place}.shuffle", Pick(len(orders)))]:
                yield from _steps([inner[position]], f"{place}.{position + 1}.", decide)


def _makes_rows(step: Any) -> bool:
    return any(operator.endswith("_mapper") for part in _all_steps([step]) for operator in part)


def _all_steps(steps: list[Any]) -> Iterator[dict[str, dict[str, Any]]]:
    for step in steps:
        operator, arguments = allowed.parts(step)
        if operator is not None:
            yield {operator: _value(arguments, "", _least)}
            continue
        ((kind, inner),) = step.items()
        for part in inner if kind == "choose" else [inner]:
            yield from _all_steps(part)


def _least(name: str, decision: Decision) -> Any:
    return decision.least if isinstance(decision, Numbers) else 0


def _value(value: Any, place: str, decide: Decide) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"choice"}:
        return value["choice"][decide(place, Pick(len(value["choice"])))]
    if value.keys() == {"range"}:
        return decide(place, numbers(value["range"]))
    return {name: _value(inner, f"{place}.{name}", decide) for name, inner in value.items()}


def numbers(limits: list[Any]) -> Numbers:
    """What `range` stands for."""
    return Numbers(limits[0], limits[1], limits[2] if len(limits) > 2 else 1)


def _problems(steps: Any, above: str) -> Iterator[str]:
    for number, step in enumerate(steps, start=1):
        place = f"{above}{number}"
        operator, arguments = allowed.parts(step)
        kind, inner = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (None, None)
        if operator is not None and kind not in OPEN:
            yield from _value_problems(arguments, f"step {place}, {operator}")
        elif kind not in OPEN:
            yield f"step {place}: not an operator with its arguments, nor optional, choose or shuffle"
        elif not isinstance(inner, list) or not inner:
            yield f"step {place}, {kind}: a list is expected"
        elif kind == "choose":
            for chosen, steps_of_one in enumerate(inner, start=1):
                if isinstance(steps_of_one, list):
                    yield from _problems(steps_of_one, f"{place}.{chosen}.")
                else:
                    yield f"step {place}, choose: alternative {chosen} is not a list of steps"
        else:
            if kind == "shuffle" and len(inner) > SHUFFLED:
                yield f"step {place}, shuffle: it has {len(inner)} steps, at most {SHUFFLED} can be ordered"
            yield from _problems(inner, f"{place}.")


def _value_problems(value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    if "choice" in value or "range" in value:
        if len(value) > 1:
            yield f"{place}: {' and '.join(map(str, value))} cannot stand together"
        elif "choice" in value and not (isinstance(value["choice"], list) and value["choice"]):
            yield f"{place}: choice needs a list of values"
        elif "range" in value and not _is_range(value["range"]):
            yield (
                f"{place}: range is {allowed.short(value['range'])}, expected are two integers, or least, "
                "most and step, where the steps reach from one to the other"
            )
        return
    for name, inner in value.items():
        yield from _value_problems(inner, f"{place}: {name}")


def _is_range(limits: Any) -> bool:
    if not isinstance(limits, list) or len(limits) not in (2, 3):
        return False
    kinds = int if len(limits) == 2 else int | float
    if not all(
        isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) for value in limits
    ):
        return False
    least, most, step = (*limits, 1)[:3]
    if not (least < most and step > 0):
        return False
    steps = (most - least) / step
    return abs(steps - round(steps)) < 1e-6
