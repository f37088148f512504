"""The statistics of a recipe's steps: kept in the store, computed where it lacks them.

A statistic is computed once for its content (`toolkit/data/engine/scores.py`), an image decoded once for all
cheap operators of a segment.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from toolkit.data.engine import juicer
from toolkit.data.engine.scores import Scores
from toolkit.data.engine.workers import workers
from toolkit.data.recipe import Recipe, Step, kinds
from toolkit.progress import Progress

# Rows a task at most, so images decoded at once; an operator with a model splits these itself, into batches.
CHUNK, CHUNK_OF_MODEL = 256, {"cpu": 64, "cuda": 4096}
BATCH = {"cpu": 16, "cuda": 256}  # as toolkit/data/batches.py, without torch
TURNS = {"cpu": 4, "cuda": 1}  # tasks for each process or GPU at least, if there are rows: the last are short
LOOKUP = 2000  # rows that the store is asked about at a time
KEPT_EVERY = 1.0  # seconds; what a kill costs at most, beside the chunk being computed


@dataclass(frozen=True)
class Vector:
    """Stands in a row's statistics for one of `size` numbers of `step`, which stay in the store: 384 Python
    floats take 12 KB."""

    step: Step
    size: int

    def __repr__(self) -> str:
        return f"a vector of {self.size} numbers"


@dataclass(slots=True)
class WalkRow:
    """A row on its way through the recipe. `seed`: place of its seed row; `image`: absolute path, `digest` of
    its bytes; `statistics`: those of its segment, a `Vector` for a vector."""

    seed: int
    text: str
    image: str
    digest: bytes
    meta: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None


@dataclass
class Statistics:
    """Those of one recipe. `images`: the folder that new images are written to; executor: see `workers`."""

    recipe: Recipe
    scores: Scores
    images: Path
    processes: int = 1
    executor: str = "local"
    device: str = "cpu"  # "cuda" once a step computes there
    # step -> number in the store, what of a row it reads
    known: dict[int, tuple[int, str]] = field(default_factory=dict)
    together: list[Step] = field(default_factory=list)  # the segment's steps whose statistics are free

    def computed(self, step: Step) -> str:
        """What decides a step's statistics, as JSON."""
        ((_, arguments),) = self.recipe.raw_steps[step.number - 1].items()
        return kinds.computed(step, arguments, self.scores.folder)

    def _statistic(self, step: Step) -> tuple[int, str]:
        if step.number not in self.known:
            instance = juicer.operator(step)
            self.known[step.number] = (
                self.scores.statistic(self.computed(step)),
                kinds.reads(instance),
            )
            self.device = "cuda" if instance.use_cuda() else self.device
        return self.known[step.number]

    def compute(self, steps: Sequence[Step], rows: Sequence[WalkRow]) -> None:
        """Add to the store what it lacks of `steps` for `rows`. Cheap operators go together, an operator with
        a model goes alone."""
        together = [step for step in steps if not kinds.has_model(step)]
        for group in ([together] if together else []) + [[step] for step in steps if kinds.has_model(step)]:
            missing = list(self._missing(group, rows))
            if not missing:
                continue
            size = rows_a_task(group[0], len(missing), self.processes)
            processes, executor = self.processes, self.executor
            if kinds.paid(group[0]):  # here and all at once: it says what everything costs before it asks
                size, processes, executor = len(missing), 1, "local"
            progress = Progress(" + ".join(step.operator for step in group), len(missing))
            steps_of = [self._statistic(step)[0] for step in group]
            pieces = [missing[begin : begin + size] for begin in range(0, len(missing), size)]
            tasks = (_task(piece, len(group)) for piece in pieces)
            if any("save_dir" in step.arguments for step in group):
                self.images.mkdir(parents=True, exist_ok=True)
            pending: list[tuple[int, bytes, str]] = []
            last = time.monotonic()
            try:
                with workers(juicer.job(group), processes, executor) as run:
                    for piece, results in zip(pieces, run(tasks), strict=True):
                        for number, (statistic, values) in enumerate(zip(steps_of, results, strict=True)):
                            lacking = (keys[number] for _, keys in piece)
                            keys = (key for key in lacking if key is not None)
                            pending.extend(
                                (statistic, key, value) for key, value in zip(keys, values, strict=True)
                            )
                        progress.step(len(piece))
                        if time.monotonic() - last > KEPT_EVERY:
                            self.scores.add(pending)
                            pending, last = [], time.monotonic()
            finally:
                self.scores.add(pending)

    def _missing(
        self, steps: Sequence[Step], rows: Sequence[WalkRow]
    ) -> Iterator[tuple[WalkRow, list[bytes | None]]]:
        """Rows of which the store lacks something, with the keys of what it lacks, a place for each step. One
        row for one content."""
        reads_of = [self._statistic(step)[1] for step in steps]
        seen: dict[str, set[bytes]] = {reads: set() for reads in reads_of}
        for chunk in chunks(rows, LOOKUP):
            of = {reads: [_content(row, reads) for row in chunk] for reads in seen}
            keys = [of[reads] for reads in reads_of]
            distinct = [list(set(step_keys)) for step_keys in keys]
            stored_values = [
                self.scores.find(self._statistic(step)[0], step_keys)
                for step, step_keys in zip(steps, distinct, strict=True)
            ]
            if list(map(len, stored_values)) == list(map(len, distinct)):
                continue
            for place, row in enumerate(chunk):
                first = {reads: of[reads][place] not in seen[reads] for reads in seen}
                lacks = [
                    step_keys[place] if first[reads] and step_keys[place] not in stored else None
                    for reads, step_keys, stored in zip(reads_of, keys, stored_values, strict=True)
                ]
                for reads in seen:
                    seen[reads].add(of[reads][place])
                if any(lacks):
                    yield row, lacks

    def values(self, step: Step, rows: Sequence[WalkRow]) -> Iterator[Any]:
        """What the store holds of `step`, row by row. Where it lacks something, all that it lacks for `rows`
        is computed first, also of the steps that are computed together with this one."""
        statistic, reads = self._statistic(step)
        for chunk in chunks(rows, LOOKUP):
            keys = [_content(row, reads) for row in chunk]
            distinct = list(set(keys))
            stored_values = self.scores.find(statistic, distinct)
            if len(stored_values) < len(distinct):
                self.compute(self.together if step in self.together else [step], rows)
                stored_values = self.scores.find(statistic, distinct)
            # all in one call: half the time of a call for each value
            yield from json.loads(f"[{','.join([stored_values[key] for key in keys])}]")

    def vectors(self, name: str, vector: Vector, rows: Sequence[WalkRow]) -> pa.Array:
        """The statistic `name` of all rows: lists of `vector.size` float32."""
        numbers = (statistics[name] for statistics in self.values(vector.step, rows))
        matrix = np.fromiter(numbers, np.dtype((np.float32, vector.size)), len(rows))
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), vector.size)


def rows_a_task(step: Step, rows: int, processes: int) -> int:
    """Rows that a process, or a GPU, computes `step` for at a time."""
    device = "cpu"
    if juicer.operator(step).use_cuda():
        import torch

        device, processes = "cuda", torch.cuda.device_count()
    modelled = kinds.has_model(step)
    most, whole = (CHUNK_OF_MODEL[device], BATCH[device]) if modelled else (CHUNK, 1)
    return min(most, whole * math.ceil(rows / (whole * processes * TURNS[device])))


def _task(
    piece: Sequence[tuple[WalkRow, list[bytes | None]]], operators: int
) -> tuple[list[juicer.Content], list[list[int]]]:
    """Contents of the rows and, for each operator, places of the rows that it has to compute."""
    contents = [(row.text, row.image, row.meta) for row, _ in piece]
    places = [
        [place for place, (_, keys) in enumerate(piece) if keys[number] is not None]
        for number in range(operators)
    ]
    return contents, places


def _content(row: WalkRow, reads: str) -> bytes:
    """What a statistic was computed from."""
    text = b"" if reads == "image" else row.text.encode()
    digest = b"" if reads == "text" else row.digest
    meta = json.dumps(row.meta, sort_keys=True).encode() if row.meta and reads != "image" else b""
    return hashlib.blake2b(b"%b\0%b%b" % (text, digest, meta), digest_size=16).digest()


def chunks(rows: Sequence[WalkRow], size: int) -> Iterable[Sequence[WalkRow]]:
    """The rows in their order, `size` at a time."""
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))
