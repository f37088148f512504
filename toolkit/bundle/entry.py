"""An experiment under the contest's rules: what the checks look at and what is packed."""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.contest.experiment import Experiment
from toolkit.contest.ruleset import Rules
from toolkit.contest.stages import STAGES
from toolkit.data.samples import read_lines
from toolkit.errors import UserError

PER_ROW = 10  # lines that are read of a file of rows, for each row that may be trained on


class Entry(Experiment):
    """The experiment `name` below `root` under `rules`."""

    def __init__(self, root: Path, name: str, rules: Rules):
        super().__init__(root, name, rules.size)
        self.rules = rules

    def searched(self) -> dict[bool, float]:
        """Bytes of text that are searched for secrets: of rows and answers (True), and of the rest, where
        more is looked for."""
        return {True: math.inf, False: math.inf}

    def lines(self, file: str) -> Iterator[tuple[int, str, Any, str | None]]:
        """The lines of a file of rows as `read_lines` yields them; UserError, before any is read, when there
        are more than the rules can have a use for."""
        with self.open(file) as handle:
            count = sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 20), b""))
        if count > PER_ROW * self.rules.cap:
            limit = f"at most {PER_ROW} for each of the {self.rules.cap} that may be trained on are read"
            raise UserError(f"{file} has {count} rows, {limit}: leave out what is not trained on")
        return read_lines(self.path(file))

    def required(self) -> list[str]:
        """Paths of all files that the rules require, sorted. Those of a division that they do not know (T1)
        are the ones of any."""
        templates = self.rules.required["any"] + self.rules.required.get(self.division, [])
        result_files = [path for benchmark in self.rules.answers for path in self.evaluated(benchmark)]
        return sorted([*(self.rules.fill(template, self.name) for template in templates), *result_files])

    def evaluated(self, benchmark: str) -> list[str]:
        """All files that the evaluation of a benchmark leaves behind."""
        record = self.file(STAGES[benchmark].record)
        return [*self.outputs(benchmark).values(), self.control(benchmark), self.score(benchmark), record]

    def members(self) -> list[str]:
        """Files that submit.zip holds, sorted: the required files and those that match `packed`; nothing
        hidden, no byte code."""
        evaluated = [path for benchmark in self.benchmarks for path in self.evaluated(benchmark)]
        packed = {name for name in [*self.required(), *evaluated] if self.exists(name)}
        for pattern in self.rules.packed:
            for name in self.names(self.rules.fill(pattern, self.name)):
                if not any(
                    part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts
                ):
                    packed.add(name)
        return sorted(packed)
