"""An entry inside an archive: the same methods as for a work tree, so that the same checks run on it.

Members are read as streams. A reader that needs a file on disk gets a copy in a private folder, which goes
with the check. Inputs (seed, benchmarks, base models) are not packed: they are taken from a folder of assets,
or made anew where the toolkit itself makes them.
"""

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Self

from toolkit import assets
from toolkit.assets.fetch import fetch
from toolkit.bundle.entry import Entry
from toolkit.bundle.zip.archive import Archive
from toolkit.contest.experiment import KEPT, Absent, Outside
from toolkit.contest.ruleset import Rules
from toolkit.errors import UserError
from toolkit.parse import Malformed, json_value

VALIDATION = "output/reports/validation.json"
QUOTED, TEXTS = 128 << 20, 8 << 20  # bytes that every archive may have: rows and answers, other texts


class Inputs:
    """The assets that a reviewer has: `folder` holds some, and what the toolkit draws or ships itself is made
    in `scratch` when needed.

    folder None: only the latter. make False: only the former.
    """

    def __init__(self, folder: Path | None, scratch: Path, make: bool = True):
        # absolute: checks hand it to commands that run in a folder of their own
        self.folder, self.scratch, self.make = folder and folder.absolute(), scratch, make
        self._found: dict[str, Path | None] = {}

    def asset(self, name: str) -> Path | None:
        """The folder of an asset, None where it is not at hand."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Path | None:
        if self.folder and (self.folder / name / "manifest.json").is_file():
            return self.folder / name
        entry = assets.registry().get(name)
        if not self.make or not isinstance(entry, assets.World | assets.Zoo):
            return None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                fetch(name, entry, self.scratch / name)
        except UserError:  # printed by the command that failed; the checks name what they could not finish
            return None
        return self.scratch / name


class Packed(Entry):
    """The experiment `name` in `archive`, which has no findings, under `rules`. root: an empty folder for
    copies of members."""

    def __init__(
        self,
        archive: Archive,
        root: Path,
        name: str,
        rules: Rules,
        inputs: Inputs,
        templates: list[str] | None = None,
    ):
        super().__init__(root, name, rules)
        self.archive, self.inputs = archive, inputs
        self.assets = {*self.registry}
        self.absent_files: dict[str, None] = {}  # files outside, in the order in which checks asked for them
        if templates is None:
            templates = [template for group in (*rules.required.values(), rules.packed) for template in group]
        self._patterns = [_pattern(rules.fill(template, name)) for template in templates]
        self._evaluated = {
            path for benchmark in {*rules.answers, *self.benchmarks} for path in self.evaluated(benchmark)
        }

    def run_of(self, name: str) -> Self:
        """Another run: what the rules pack of it, and the same files read once for both."""
        other = type(self)(self.archive, self.root, name, self.rules, self.inputs, self.rules.compared)
        other._read, other.absent_files = self._read, self.absent_files
        return other

    def searched(self) -> dict[bool, float]:
        """A stranger's texts may be the dearest there are to search: their bytes are bounded by the
        archive's."""
        return {True: QUOTED + self.archive.bytes, False: TEXTS + self.archive.bytes // 8}

    def outside(self, relative: str) -> bool:
        """True for an asset that is not at hand, and for an output that the rules do not pack."""
        if relative in self.archive.members:
            return False
        parts = relative.split("/")
        if ".." in parts or len(parts) < 2:
            return False
        if parts[0] == "input":
            absent = parts[1] in self.assets and self.inputs.asset(parts[1]) is None
        else:
            packed = relative in self._evaluated or any(
                pattern.fullmatch(relative) for pattern in self._patterns
            )
            absent = parts[0] == "output" and not packed
        if absent:
            self.absent_files[relative] = None
        return absent

    def _input(self, relative: str) -> Path | None:
        """The file of an asset that is at hand."""
        parts = relative.split("/")
        if (
            parts[0] != "input"
            or len(parts) < 3
            or any(part in ("", ".", "..") for part in parts)
            or "\0" in relative
        ):
            return None
        folder = self.inputs.asset(parts[1])
        path = folder.joinpath(*parts[2:]) if folder else None
        return path if path and path.is_file() else None

    def exists(self, relative: str) -> bool:
        """Outside for a file of an asset that is not at hand: nobody can say."""
        if relative.startswith("input/") and self.outside(relative):
            raise Outside(relative)
        return relative in self.archive.members or self._input(relative) is not None

    def _held(self, relative: str) -> Path | None:
        """The file of an asset, None for a member; Absent or Outside where it is neither."""
        if not self.exists(relative):
            raise Outside(relative) if self.outside(relative) else Absent(relative)
        return None if relative in self.archive.members else self._input(relative)

    def path(self, relative: str) -> Path:
        """A copy on disk, or the asset's file."""
        if file := self._held(relative):
            return file
        copy = self.root / relative
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with self.archive.open(relative) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        return copy

    def open(self, relative: str) -> io.BufferedReader:
        file = self._held(relative)
        return file.open("rb") if file else self.archive.open(relative)

    def length(self, relative: str) -> int:
        file = self._held(relative)
        return file.stat().st_size if file else self.archive.members[relative].size

    def names(self, pattern: str) -> list[str]:
        return sorted(filter(_pattern(pattern).fullmatch, self.archive.members))

    def links(self, pattern: str) -> list[str]:
        """None: an archive with a link was refused."""
        return []

    def members(self) -> list[str]:
        return sorted(self.archive.members)

    def sha256(self, relative: str) -> str:
        return super().sha256(relative) if self._held(relative) else self.archive.digests[relative]


def experiment_of(archive: Archive) -> tuple[str, str]:
    """(experiment, size) that the archive is the entry of: the one that its folders name, or of several the
    one that validation.json names. UserError where that is not exactly one."""
    pattern = re.compile(
        r"output/training_dirs/MGM-([A-Za-z0-9.]+)-(?:Pretrain|Finetune)-([A-Za-z0-9][A-Za-z0-9_.-]*)/.+"
    )
    experiments = sorted(
        {(match[2], match[1]) for name in archive.members if (match := pattern.fullmatch(name))}
    )
    if len(experiments) > 1 and VALIDATION in archive.members and archive.members[VALIDATION].size <= KEPT:
        try:
            with archive.open(VALIDATION) as handle:
                value = json_value(handle.read())
        except Malformed as error:
            raise UserError(f"{VALIDATION} is not valid JSON: {error}") from None
        stated = value.get("experiment") if isinstance(value, dict) else None
        experiments = [pair for pair in experiments if pair[0] == stated]
    if len(experiments) != 1:
        listing = ", ".join(f"{name} ({size})" for name, size in experiments[:5]) or "none"
        raise UserError(
            "the experiment that is handed in has to be named by validation.json and have folders in "
            f"output/training_dirs; there are: {listing}"
        )
    return experiments[0]


def _pattern(glob: str) -> re.Pattern:
    """A glob pattern over paths: `*` stays in its folder, `**/` is any number of folders."""
    parts = re.split(r"(\*\*/|\*|\?)", glob)
    words = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts))
