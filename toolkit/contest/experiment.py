"""The files of one experiment: paths by the kit's names, records, hashes. Every file is read once.

Checks reach files through `exists`, `open`, `path`, `length`, `sha256`, `json`, `rows` and `names` only:
`toolkit.bundle.zip.packed` gives the same methods for a file in an archive.
"""

from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

from toolkit import scales
from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Benchmark
from toolkit.contest.records import Record, record_of
from toolkit.contest.stages import STAGES
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl, sha256
from toolkit.seeds import experiment_of

KEPT = 1 << 24  # bytes; the value of a larger file is not kept but read again
FILES = 1000  # in a record, and no stage has so many


class Absent(Exception):
    """A file that is needed does not exist; the argument is its path relative to the root."""


class Outside(Exception):
    """A file that an archive does not hold and need not hold; the argument is its path. A record knows its
    hash."""


class Experiment:
    """The experiment `name` below `root`; `size` stands in its folders' names."""

    def __init__(self, root: Path, name: str, size: str):
        self.root, self.name, self.size = root, name, size
        self.model = f"MGM-{size}-Finetune-{name}"
        self.data = f"output/processed_data/{experiment_of(name)}"  # the same for all training seeds
        self.pretrain = f"output/training_dirs/MGM-{size}-Pretrain-{name}"
        self.finetune = f"output/training_dirs/{self.model}"
        self.results = f"output/eval_results/{self.model}"
        self._read: dict[tuple[str, str], Any] = {}
        # id of a check that could not be finished: the file outside that it needs
        self.unproved: dict[str, str] = {}

    def file(self, template: str) -> str:
        """The path that a template of toolkit.contest.stages stands for."""
        return template.format(
            data=self.data, pretrain=self.pretrain, finetune=self.finetune, eval=self.results
        )

    @cached_property
    def benchmarks(self) -> dict[str, Benchmark]:
        """The contest's benchmarks, and those others that the experiment answered."""
        return {
            name: benchmark
            for name, benchmark in BENCHMARKS.items()
            if benchmark.contest or self.exists(f"{self.results}/{name}/run.json")
        }

    @cached_property
    def record_files(self) -> dict[str, str]:
        """The record of each stage that leaves one, in running order."""
        run = {
            name: stage for name, stage in STAGES.items() if name not in BENCHMARKS or name in self.benchmarks
        }
        return {name: self.file(stage.record) for name, stage in run.items() if stage.record}

    def outputs(self, benchmark: str) -> dict[str, str]:
        """{"answers": path, …} of what a benchmark's evaluation wrote beside image-swap control, score and
        record."""
        paths = BENCHMARKS[benchmark].outputs(self.model)
        return {name: f"{self.results}/{benchmark}/{path}" for name, path in paths.items()}

    @property
    def answers(self) -> dict[str, str]:
        """The answer file of each benchmark."""
        return {name: self.outputs(name)["answers"] for name in self.benchmarks}

    def control(self, benchmark: str) -> str:
        """The answers to the image-swap control."""
        return f"{self.results}/{benchmark}/control.jsonl"

    def score(self, benchmark: str) -> str:
        """The score of a benchmark."""
        return f"{self.results}/{benchmark}/score.json"

    @classmethod
    def find(cls, root: Path, name: str) -> "Experiment":
        """The experiment called `name`, whatever its size; UserError unless exactly one size was trained."""
        records = sorted(root.glob(f"output/training_dirs/MGM-*-Pretrain-{name}/run.json"))
        if len(records) != 1:
            problem = (
                "was not trained yet"
                if not records
                else f"was trained in {len(records)} sizes, delete all but one size"
            )
            raise UserError(f"{root / 'output/training_dirs'}: the experiment {name} {problem}")
        return cls(root, name, records[0].parent.name.removeprefix("MGM-").removesuffix(f"-Pretrain-{name}"))

    def exists(self, relative: str) -> bool:
        return (self.root / relative).is_file()

    def path(self, relative: str) -> Path:
        """The file called `relative`, for readers that need one on disk; Absent if there is none. Large
        files: `open`."""
        if not self.exists(relative):
            raise Absent(relative)
        return self.root / relative

    def open(self, relative: str) -> BufferedReader:
        """The bytes of `relative` as a stream, to be closed; Absent if there is no such file."""
        return self.path(relative).open("rb")

    def length(self, relative: str) -> int:
        """Bytes."""
        return self.path(relative).stat().st_size

    def names(self, pattern: str) -> list[str]:
        """Paths of the files that match a glob pattern, sorted."""
        return sorted(
            path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file()
        )

    def links(self, pattern: str) -> list[str]:
        """Paths of the links that match a glob pattern, sorted."""
        return sorted(
            path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_symlink()
        )

    def outside(self, relative: str) -> bool:
        """Whether the file is rightly not here and known by its hash only. A work tree has all its files."""
        return False

    def once(self, kind: str, relative: str, read: Any) -> Any:
        """What `read` makes of the file, kept: it is asked for by several checks."""
        if (kind, relative) not in self._read:
            self._read[kind, relative] = read(relative)
        return self._read[kind, relative]

    def json(self, relative: str) -> Any:
        if self.length(relative) > KEPT:
            return read_json(self.path(relative))
        return self.once("json", relative, lambda name: read_json(self.path(name)))

    def rows(self, relative: str) -> list[Any]:
        """The values of a JSON-lines file."""
        return self.once("rows", relative, lambda name: list(read_jsonl(self.path(name))))

    def sha256(self, relative: str) -> str:
        return self.once("sha256", relative, lambda name: sha256(self.path(name)))

    def record(self, stage: str) -> Record:
        """The record of `stage`, a key of `record_files`; UserError if the file is not a record."""
        file = self.record_files[stage]
        value = self.json(file)
        if isinstance(value, dict) and any(
            len(value.get(key) or ()) > FILES for key in ("inputs", "outputs")
        ):
            raise UserError(f"{file} names more than {FILES} files: no stage has so many")
        return record_of(value, file)

    @cached_property
    def division(self) -> str:
        """closed or open, as the finetuning's record says."""
        return str(self.record("finetune").settings["division"])

    @cached_property
    def scale(self) -> scales.Scale:
        """The scale that the pretraining's record names; UserError if there is none of that name."""
        return scales.load(self.record("pretrain").settings["scale"])
