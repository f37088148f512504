"""A recipe walked over rows: first what is expensive and kept (statistics), then what is cheap and may change
(selection).

Steps at the head of a recipe that draw rows at random come first: nothing is computed for what they drop. The
steps between two mappers are a segment. All statistics of a segment are computed for every row that enters
it (`toolkit/data/engine/statistics.py`); then filters, deduplicators and selectors take rows away in the
recipe's order, and the mapper makes the rows of the next segment. `score` walks without taking rows away, so
that the store holds what any threshold, order or selection will ask for.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toolkit.counted import counted
from toolkit.data import duplicates
from toolkit.data.engine import juicer, thresholds
from toolkit.data.engine.statistics import LOOKUP, Statistics, Vector, WalkRow, chunks
from toolkit.data.recipe import BY_NUMBER, DRAWS, Step, allowed, kinds
from toolkit.data.recipe.statistic_names import STATISTICS, subject
from toolkit.data.samples import caption_of
from toolkit.errors import UserError


@dataclass
class Outcome:
    """`rows` that were kept; why the others were removed, by place of the seed row; `{operator, in, out, …}`
    a step."""

    rows: list[WalkRow]
    removed: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Walk(Statistics):
    """A recipe on its way over rows, and what came of it."""

    outcome: Outcome = field(default_factory=lambda: Outcome([]))

    def score(self, rows: list[WalkRow]) -> list[dict[str, Any]]:
        """Fill the store for all rows; return what decides the results of the steps it now serves. Steps that
        cost money, and what follows from their results, are left to the selection, which asks for fewer rows.
        """
        served = []
        self.outcome = Outcome(rows)
        self._draw()
        rows = self.outcome.rows
        for segment, mapper in self._segments():
            free = _free(segment)
            self.compute(free, rows)
            served.extend(free)
            if mapper is None or kinds.paid(mapper):
                break
            self.compute([mapper], rows)
            served.append(mapper)
            rows = [row for group in self._mapped(mapper, rows) for row in group]
        return [json.loads(self.computed(step)) for step in served]

    def select(self, rows: list[WalkRow]) -> Outcome:
        """Take rows away and make new rows, step by step; what the store lacks is computed."""
        self.outcome = Outcome(rows)
        self._draw()
        selecting = {"filter": self._filter, "deduplicator": self._deduplicate, "selector": self._select}
        for segment, mapper in self._segments():
            self.together = _free(segment)
            retain = _asks_for_statistics(segment, mapper)
            for row in self.outcome.rows:
                row.statistics = {} if retain else None
            for step in segment:
                self._step(step, selecting[kinds.kind(step)])
            if mapper is not None:
                self._step(mapper, self._map)
        return self.outcome

    def _segments(self) -> Iterator[tuple[list[Step], Step | None]]:
        """(steps, the mapper that ends them or None) from the first step that does not draw, until the recipe
        ends."""
        segment: list[Step] = []
        for step in self.recipe.steps[len(self._drawing()) :]:
            if kinds.kind(step) == "mapper":
                yield segment, step
                segment = []
            else:
                segment.append(step)
        yield segment, None

    def _drawing(self) -> list[Step]:
        """The steps at the recipe's head that draw rows at random."""
        return list(takewhile(lambda step: step.operator == DRAWS, self.recipe.steps))

    def _draw(self) -> None:
        """Run the steps that draw."""
        for step in self._drawing():
            self._step(step, self._select)

    # --- selection

    def _step(self, step: Step, apply: Callable[[Step], dict[str, Any]]) -> None:
        """Run one step over the outcome's rows and note what it did."""
        start, before = time.monotonic(), len(self.outcome.rows)
        details = apply(step) if before else {}
        after, seconds = len(self.outcome.rows), time.monotonic() - start
        self.outcome.steps.append({"operator": step.operator, "in": before, "out": after, **details})
        print(
            f"step {step.number}, {step.operator}: {counted(before, 'row')}, {after} kept, {seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )

    def _leave(self, step: Step, row: WalkRow, details: dict[str, Any]) -> None:
        self.outcome.removed[row.seed] = {
            "operator": step.operator,
            "step": step.number,
            **details,
            "text": row.text,
        }

    def _filter(self, step: Step) -> dict[str, Any]:
        from data_juicer.utils.constant import Fields

        rows = self.outcome.rows
        resolved = self._limits(step, rows)
        instance = juicer.operator(step, **resolved)
        limits = kinds.effective_limits(step, resolved)
        values = self.values(step, rows)
        rows_kept = []
        vectors: dict[str, Vector] = {}
        for chunk in chunks(rows, LOOKUP):
            chunk_statistics = list(islice(values, len(chunk)))
            with juicer.blamed(step.number, step.operator):
                keeps = list(instance.process_batched({Fields.stats: chunk_statistics}))
            for row, statistics, keep in zip(chunk, chunk_statistics, keeps, strict=True):
                if row.statistics is not None:
                    row.statistics |= _retained(statistics, step, vectors)
                if keep:
                    rows_kept.append(row)
                else:
                    self._leave(
                        step, row, _reason(statistics, limits) | {"statistics": statistics, "limits": limits}
                    )
        self.outcome.rows = rows_kept
        return {"limits": resolved} if resolved else {}

    def _limits(self, step: Step, rows: Sequence[WalkRow]) -> dict[str, float | str]:
        """The numbers that a filter's adaptive limits come to."""
        resolved: dict[str, float | str] = {}
        for argument, form in step.adaptive.items():
            values = [_number(value, argument, form, step) for value in self.values(step, rows)]
            other = (
                [_row_number(row, form["agree"], f"step {step.number}, {step.operator}") for row in rows]
                if "agree" in form
                else None
            )
            try:
                limit = thresholds.resolve(form, argument.startswith("min"), values, other)
            except ValueError as error:
                raise UserError(
                    f"step {step.number}, {step.operator}: {argument} is {form}, but {error}"
                ) from None
            default = kinds.default(step, argument)
            if isinstance(default, str):  # sizes of files; a text without a unit is a number of bytes
                resolved[argument] = str(round(limit))
            else:
                resolved[argument] = (
                    round(limit) if isinstance(default, int) and float(limit).is_integer() else limit
                )
        return resolved

    def _deduplicate(self, step: Step) -> dict[str, Any]:
        rows, instance = self.outcome.rows, juicer.operator(step)
        if hasattr(instance, "reasons"):  # the project's own may remove the first row of a group, too
            hashes = list(self.values(step, rows))
            explanations = instance.reasons([caption_of(row.text) for row in rows], hashes)
            reasons = [
                {"reason": reason, "statistics": row_hashes} if reason else None
                for reason, row_hashes in zip(explanations, hashes, strict=True)
            ]
        else:
            again = {"reason": "repeats an earlier row", "statistics": {}}
            firsts = enumerate(duplicates.firsts(instance, self.values(step, rows)))
            reasons = [
                None if first == place else again | {"of": rows[first].seed} for place, first in firsts
            ]
        rows_kept = []
        for row, reason in zip(rows, reasons, strict=True):
            if reason:
                self._leave(step, row, reason | {"limits": {}})
            else:
                rows_kept.append(row)
        self.outcome.rows = rows_kept
        return {}

    def _select(self, step: Step) -> dict[str, Any]:
        from data_juicer.core.data import NestedDataset
        from data_juicer.utils.constant import Fields
        from datasets.fingerprint import generate_random_fingerprint
        from datasets.table import InMemoryTable

        rows, instance = self.outcome.rows, juicer.operator(step)
        if step.operator in BY_NUMBER:
            _assert_numbers(rows, step)
        statistics = pa.array([_numbers(row.statistics or {}) for row in rows])
        if hasattr(instance, "embedding"):  # it asks for a vector; none is loaded for others
            for name, value in (rows[0].statistics or {}).items():
                if isinstance(value, Vector):
                    statistics = _with_field(statistics, name, self.vectors(name, value, rows))
        columns = {
            "id": np.arange(len(rows)),
            "text": [row.text for row in rows],
            "images": [[row.image] for row in rows],
            Fields.stats: statistics,
        }
        # its fingerprint, which nobody asks for, would be a hash of everything: two copies of it
        dataset = NestedDataset(InMemoryTable.from_pydict(columns), fingerprint=generate_random_fingerprint())
        with juicer.blamed(step.number, step.operator):
            places = list(instance.process(dataset)["id"])
            # the project's own selectors say what they judge by; of others the row's statistics are shown
            judged = (
                instance.statistics(dataset)
                if hasattr(instance, "statistics")
                else [_numbers(row.statistics or {}) for row in rows]
            )
        for place in sorted(set(range(len(rows))) - set(places)):
            judgement = ", ".join(f"{name} {value}" for name, value in judged[place].items())
            reason = f"not selected{': ' if judgement else ''}{judgement}"
            self._leave(step, rows[place], {"reason": reason, "statistics": judged[place], "limits": {}})
        self.outcome.rows = [rows[place] for place in places]
        return {}

    def _map(self, step: Step) -> dict[str, Any]:
        rows, conditions = self.outcome.rows, {}
        touched = [True] * len(rows)
        for statistic, limits in step.where.items():
            values = [_row_number(row, statistic, f"step {step.number}, {step.operator}") for row in rows]
            bounds = {name: _resolved(limit, name, values) for name, limit in limits.items()}
            conditions[statistic] = bounds
            low, high = bounds.get("min", -np.inf), bounds.get("max", np.inf)
            touched = [
                is_touched and low <= value <= high for is_touched, value in zip(touched, values, strict=True)
            ]
        rows_to_map = [row for row, is_touched in zip(rows, touched, strict=True) if is_touched]
        groups, paid = iter(self._mapped(step, rows_to_map)), kinds.paid(step)
        rows_after: list[WalkRow] = []
        unusable = 0
        for row, is_touched in zip(rows, touched, strict=True):
            group = next(groups) if is_touched else [row]
            unusable += (
                is_touched and paid and [(new.text, new.image) for new in group] == [(row.text, row.image)]
            )
            if not group:
                self._leave(
                    step, row, {"reason": "the operator makes no row of it", "statistics": {}, "limits": {}}
                )
            rows_after.extend(group)
        self.outcome.rows = rows_after
        return ({"where": conditions, "mapped": len(rows_to_map)} if conditions else {}) | (
            {"unusable": unusable} if paid else {}
        )

    def _mapped(self, step: Step, rows: Sequence[WalkRow]) -> Iterator[list[WalkRow]]:
        """The rows that a mapper makes of each of `rows`, from the store."""
        digests: dict[str, bytes] = {}
        for row, new_rows in zip(rows, self.values(step, rows), strict=True):
            group = []
            for text, image, tags in new_rows:
                text = row.text if text in (None, row.text) else text  # an equal one would be a copy
                if image is not None and image not in digests:
                    path = self.images / Path(image).name
                    if not path.is_file():
                        raise UserError(
                            f"{path}, which {step.operator} made, is gone: delete {self.scores.path}, it is "
                            "made again"
                        )
                    digests[image] = hashlib.sha256(path.read_bytes()).digest()
                if image is None:
                    tags = {**(row.meta or {}), **(tags or {})} or None
                    group.append(WalkRow(row.seed, text, row.image, row.digest, tags))
                else:  # what was noted of the old image does not hold
                    stored = str(self.images / Path(image).name)
                    group.append(WalkRow(row.seed, text, stored, digests[image], tags))
            yield group


def _retained(statistics: dict[str, Any], step: Step, vectors: dict[str, Vector]) -> dict[str, Any]:
    """What a row keeps of its statistics. vectors: the one `Vector` that all rows share, by its name."""
    return {
        name: vectors.setdefault(name, Vector(step, len(value)))
        if isinstance(value, list) and len(value) > 1 and isinstance(value[0], float)
        else value
        for name, value in statistics.items()
    }


def _numbers(statistics: dict[str, Any]) -> dict[str, Any]:
    """Statistics without vectors."""
    return {name: value for name, value in statistics.items() if not isinstance(value, Vector)}


def _with_field(structs: pa.StructArray, name: str, values: pa.Array) -> pa.StructArray:
    """The structs with one field more, which is not copied."""
    fields = {each.name: structs.field(each.name) for each in structs.type} | {name: values}
    return pa.StructArray.from_arrays(list(fields.values()), list(fields))


def _free(segment: Sequence[Step]) -> list[Step]:
    """The steps of a segment that have statistics and ask no service for them."""
    return [step for step in segment if kinds.kind(step) != "selector" and not kinds.paid(step)]


def _asks_for_statistics(segment: Sequence[Step], mapper: Step | None) -> bool:
    """Whether something in a segment looks at other steps' statistics; they are only kept in memory then."""
    return bool(
        (mapper and mapper.where)
        or any(kinds.kind(step) == "selector" for step in segment)
        or any("agree" in form for step in segment for form in step.adaptive.values())
    )


def _number(statistics: dict[str, Any], argument: str, form: dict[str, Any], step: Step) -> float:
    """The statistic that a limit is about."""
    name = subject(list(statistics), argument, form.get("of"))
    assert name is not None  # the recipe was checked
    return _scalar(statistics[name], f"step {step.number}, {step.operator}: {name}")


def _row_number(row: WalkRow, name: str, context: str) -> float:
    return _scalar((row.statistics or {})[name], f"{context}: {name}")


def _scalar(value: Any, context: str) -> float:
    """A statistic as a number; image filters have a list of one. UserError for a vector, a text or
    nothing."""
    number = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(number, bool | int | float):
        raise UserError(f"{context} is {allowed.short(value)}, not a number")
    return float(number)


def _assert_numbers(rows: Sequence[WalkRow], step: Step) -> None:
    """UserError where a selector by rank is given a statistic that is not a number in every row."""
    name = step.arguments["field_key"].removeprefix(STATISTICS)
    for row in rows:
        _row_number(row, name, f"step {step.number}, {step.operator}")


def _resolved(limit: dict[str, Any] | float, name: str, values: Sequence[float]) -> float:
    return thresholds.resolve(limit, name == "min", values) if isinstance(limit, dict) else limit


def _reason(statistics: dict[str, Any], limits: dict[str, Any]) -> dict[str, str]:
    values = ", ".join(f"{name} {value}" for name, value in statistics.items())
    bounds = ", ".join(f"{name} {value}" for name, value in limits.items())
    return {"reason": f"{values}; kept are {bounds}" if values and bounds else values or "not selected"}
