"""The files of one experiment: paths by the kit's names, records, hashes. Every file is read once.

Checks reach files through `exists`, `open`, `path`, `length`, `sha256`, `json`, `rows` and `names` only: `toolkit.bundle.packed` gives the
same methods for a file in an archive.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit import scales
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl, sha256

SPLIT = "mmbench_dev_20230712"
KEPT = 1 << 24  # bytes; the value of a larger file is not kept but read again
FILES = 1000  # in a record, and no stage has so many


class Absent(Exception):
    """A file that is needed does not exist; the argument is its path relative to the root."""


class Outside(Exception):
    """A file that an archive does not hold and need not hold; the argument is its path. A record knows its hash."""


class Item(BaseModel):
    """A file as a record names it."""

    model_config = ConfigDict(extra="forbid")
    path: str
    sha256: str
    bytes: int


class Record(BaseModel):
    """A stage's record, see toolkit.record; `file` is where it was read."""

    file: str
    record: int
    stage: str
    inputs: dict[str, Item]
    outputs: dict[str, Item]
    settings: dict[str, Any]
    device: str
    results: dict[str, Any]


class Experiment:
    """The experiment `name` below `root`; `size` stands in its folders' names."""

    def __init__(self, root: Path, name: str, size: str):
        self.root, self.name, self.size = root, name, size
        self.model = f"MGM-{size}-Finetune-{name}"
        self.data = f"output/processed_data/{name}"
        self.pretrain = f"output/training_dirs/MGM-{size}-Pretrain-{name}"
        self.finetune = f"output/training_dirs/{self.model}"
        self.textvqa = f"output/eval_results/{self.model}/textvqa"
        self.mmbench = f"output/eval_results/{self.model}/mmbench"
        self.answers = {
            "textvqa": f"{self.textvqa}/bm1.jsonl",
            "mmbench": f"{self.mmbench}/answers/{SPLIT}/{self.model}.jsonl",
        }
        self.controls = {benchmark: f"output/eval_results/{self.model}/{benchmark}/control.jsonl" for benchmark in self.answers}
        self.upload = f"{self.mmbench}/answers_upload/{SPLIT}/{self.model}.xlsx"
        # In running order.
        self.record_files = {
            "data": f"{self.data}/run.json",
            "pretrain": f"{self.pretrain}/run.json",
            "finetune": f"{self.finetune}/run.json",
            "merge": f"{self.finetune}/merge.json",
            "textvqa": f"{self.textvqa}/run.json",
            "mmbench": f"{self.mmbench}/run.json",
        }
        self._read: dict[tuple[str, str], Any] = {}
        self.unproved: dict[str, str] = {}  # id of a check that could not be finished: the file outside that it needs

    @classmethod
    def find(cls, root: Path, name: str) -> "Experiment":
        """The experiment called `name`, whatever its size; UserError unless exactly one was trained."""
        found = sorted(root.glob(f"output/training_dirs/MGM-*-Pretrain-{name}/run.json"))
        if len(found) != 1:
            what = "was not trained yet" if not found else f"was trained in {len(found)} sizes, delete all but one of them"
            raise UserError(f"{root / 'output/training_dirs'}: the experiment {name} {what}")
        return cls(root, name, found[0].parent.name.removeprefix("MGM-").removesuffix(f"-Pretrain-{name}"))

    def exists(self, relative: str) -> bool:
        return (self.root / relative).is_file()

    def path(self, relative: str) -> Path:
        """The file called `relative`, for readers that need one on disk; Absent if there is none. Large files: `open`."""
        if not self.exists(relative):
            raise Absent(relative)
        return self.root / relative

    def open(self, relative: str) -> BinaryIO:
        """The bytes of `relative` as a stream, to be closed; Absent if there is no such file."""
        return self.path(relative).open("rb")

    def length(self, relative: str) -> int:
        """Bytes."""
        return self.path(relative).stat().st_size

    def names(self, pattern: str) -> list[str]:
        """Paths of the files that match a glob pattern, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file())

    def links(self, pattern: str) -> list[str]:
        """Paths of the links that match a glob pattern, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_symlink())

    def outside(self, relative: str) -> bool:
        """Whether the file is rightly not here and known by its hash only. A work tree has all its files."""
        return False

    def _once(self, kind: str, relative: str, read: Any) -> Any:
        if (kind, relative) not in self._read:
            self._read[kind, relative] = read(relative)
        return self._read[kind, relative]

    def json(self, relative: str) -> Any:
        if self.length(relative) > KEPT:
            return read_json(self.path(relative))
        return self._once("json", relative, lambda name: read_json(self.path(name)))

    def rows(self, relative: str) -> list[Any]:
        """The values of a JSON-lines file."""
        return self._once("rows", relative, lambda name: list(read_jsonl(self.path(name))))

    def sha256(self, relative: str) -> str:
        return self._once("sha256", relative, lambda name: sha256(self.path(name)))

    def record(self, stage: str) -> Record:
        """The record of `stage`, a key of `record_files`; UserError if the file is not a record."""
        file = self.record_files[stage]
        try:
            value = self.json(file)
            if max(len(value["inputs"]), len(value["outputs"])) > FILES:
                raise UserError(f"{file} names more than {FILES} files: no stage has so many")
            return Record.model_validate({**value, "file": file})
        except (ValidationError, TypeError, KeyError) as error:
            raise UserError(f"{file} is not a record of a stage: {' '.join(str(error).split())}") from None

    @cached_property
    def division(self) -> str:
        """closed or open, as the finetuning's record says."""
        return str(self.record("finetune").settings["division"])

    @cached_property
    def scale(self) -> scales.Scale:
        """The scale that the pretraining's record names; UserError if there is none of that name."""
        return scales.load(self.record("pretrain").settings["scale"])
