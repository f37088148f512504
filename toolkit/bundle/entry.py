"""An experiment under the contest's rules: what the checks look at and what is packed."""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import ValidationError

from toolkit import assets
from toolkit.config import Config, sentence
from toolkit.contest.experiment import Absent, Experiment
from toolkit.contest.ruleset import Rules
from toolkit.data.samples import read_lines
from toolkit.errors import UserError
from toolkit.files import read_yaml
from toolkit.parse import YAML_BYTES
from toolkit.seeds import run_name

CONFIG = "output/reports/config.yaml"
RUNS = 64  # training runs that are compared: experiments times seeds

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

    @cached_property
    def config(self) -> Config:
        """The configuration beside the entry; UserError where it is none, or of more runs than RUNS."""
        if self.length(CONFIG) > YAML_BYTES:
            raise UserError(f"{CONFIG} has more than {YAML_BYTES} bytes: no configuration is that long")
        try:
            config = Config.model_validate(read_yaml(self.path(CONFIG)))
        except ValidationError as error:
            problems = "; ".join(map(sentence, error.errors(include_url=False)))
            raise UserError(f"{CONFIG} is not a configuration of this toolkit: {problems}") from None
        runs = len(config.experiments) * len(config.seeds)
        named = {config.compare.baseline, config.submit.experiment}
        if not named <= config.experiments.keys() or len({*config.seeds}) < len(config.seeds):
            raise UserError(
                f"{CONFIG} lacks the baseline or the entry among its experiments, or has a seed twice"
            )
        if runs > RUNS:
            raise UserError(f"{CONFIG} names {runs} training runs, at most {RUNS} are compared")
        return config

    @cached_property
    def registry(self) -> dict[str, assets.AnyEntry]:
        """The assets that this toolkit knows, and the entry's own."""
        own = str(assets.OWN)
        return assets.registry(self.path(own) if self.exists(own) else self.root / own)

    def run_of(self, name: str) -> Self:
        """Another training run of the same tree."""
        return type(self)(self.root, name, self.rules)

    @cached_property
    def runs(self) -> list[Self]:
        """The training runs that are compared, experiment by experiment, the baseline's first."""
        baseline, seeds = self.config.compare.baseline, self.config.seeds
        experiments = sorted(self.config.experiments, key=lambda name: name != baseline)
        names = [run_name(experiment, seed, seeds) for experiment in experiments for seed in seeds]
        return [self if name == self.name else self.run_of(name) for name in names]

    @cached_property
    def compared_with(self) -> list[Self]:
        """The other ones of `runs`; none where the configuration cannot be read, which S2 and P3 say."""
        try:
            return [run for run in self.runs if run is not self]
        except (Absent, UserError):
            return []

    def required(self) -> list[str]:
        """Paths of all files that the rules require, sorted. Those of a division that they do not know (T1)
        are the ones of any, and without a configuration no other run is known."""
        templates = self.rules.required["any"] + self.rules.required.get(self.division, [])
        own = [self.rules.fill(template, self.name) for template in templates] + self.answered()
        others = [path for run in self.compared_with for path in run.compared(self.config.finetune.division)]
        return sorted({*own, *others})

    def answered(self) -> list[str]:
        """All files of the evaluation of the benchmarks that the rules ask for."""
        return [path for benchmark in self.rules.answers for path in self.evaluated(benchmark)]

    def compared(self, division: str) -> list[str]:
        """What is required of this run where another is handed in, in the entry's division."""
        adapter = self.rules.adapter if division == "open" else []
        return [
            *(self.rules.fill(template, self.name) for template in self.rules.compared),
            *(f"{self.finetune}/{name}" for name in adapter),
            *self.answered(),
        ]

    def evaluated(self, benchmark: str) -> list[str]:
        """All files that the evaluation of a benchmark leaves behind."""
        record = f"{self.results}/{benchmark}/run.json"
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
