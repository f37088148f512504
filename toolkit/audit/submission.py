"""An entry as somebody handed it in: a folder or a zip, read and never extracted or executed."""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, Self

from toolkit.bundle.checks.layout import SHARD
from toolkit.bundle.findings import WARNING, Finding
from toolkit.bundle.zip.archive import RATIO, SMALL, folded, unportable
from toolkit.errors import UserError

FILES = 200_000  # that an entry may have; one with a file an image has 10,000
TEXT = 16 << 20  # bytes of a file that are read as text
TOP = ("solution", "output")
# macOS and Windows put these there, whoever packs
LITTER = re.compile(r"(?:^|/)(?:__MACOSX/|\._|\.DS_Store$|__pycache__/|Thumbs\.db$)")


class Submission:
    """The files of an entry by their paths from solution/ and output/ on, with their sizes; close it after
    use.

    findings: of names, links and places. UserError for a path that is neither folder nor zip, or that has too
    many files to be an entry. `scratch` takes copies of a zip's members that have to be files.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.title = path.resolve().name
        self.findings: list[Finding] = []
        self._folder = path if path.is_dir() else None
        self.scratch = scratch
        self._zip: zipfile.ZipFile | None = None
        sizes = self._of_folder(path) if path.is_dir() else self._of_zip(path)
        self._inside = self._root(sizes)
        self.sizes = {name.removeprefix(self._inside): size for name, size in sorted(sizes.items())}
        self._names()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip:
            self._zip.close()

    def _of_folder(self, path: Path) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for folder, folders, files in os.walk(path):
            for name in [*files, *folders]:
                place = Path(folder, name)
                relative, mode = place.relative_to(path).as_posix(), place.lstat().st_mode
                if stat.S_ISREG(mode):
                    sizes[relative] = place.stat().st_size
                elif not stat.S_ISDIR(mode):
                    self._add("S1", relative, "is a link or no plain file, and is not read")
            _assert_few(path, len(sizes))
        return sizes

    def _of_zip(self, path: Path) -> dict[str, int]:
        try:
            with path.open("rb") as handle:
                blocks = iter(lambda: handle.read(1 << 22), b"")
                _assert_few(path, sum(block.count(b"PK\1\2") for block in blocks))
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError, OSError) as error:
            raise UserError(f"{path} is neither a folder nor a readable zip: {error}") from None
        sizes: dict[str, int] = {}
        for info in self._zip.infolist():
            if info.is_dir():
                continue
            if problem := _unreadable(info):
                self._add("Z5", info.filename, f"{problem}, and is not read")
            elif info.filename in sizes:
                self._add("Z3", info.filename, "there are two members of this name; neither is read")
                sizes[info.filename] = -1
            else:
                sizes[info.filename] = info.file_size
        return {name: size for name, size in sizes.items() if size >= 0}

    def _root(self, sizes: dict[str, int]) -> str:
        """What stands before solution/ and output/: nothing, or the one folder that was packed with them."""
        places = {name.partition("/")[0] for name in sizes if not LITTER.search(name)}
        if places & set(TOP) or len(places) != 1:
            return ""
        folder = f"{places.pop()}/"
        self._add("S1", folder, "solution/ and output/ lie in a folder of their own", severity=WARNING)
        return folder

    def _names(self) -> None:
        """S1 of the names; what is not a name on every system is not read."""
        seen: dict[str, str] = {}
        for name in list(self.sizes):
            twin = seen.setdefault(folded(name), name)
            if LITTER.search(name):
                del self.sizes[name]
            elif (problem := unportable(name)) and self._zip:
                self._add("S1", name, problem)
                del self.sizes[name]
            elif twin != name:
                self._add("S1", name, f"is the same file as {twin} where upper and lower case do not count")
        if others := sorted({name.partition("/")[0] for name in self.sizes} - set(TOP)):
            message = f"beside solution and output there are: {', '.join(others[:10])}"
            self._add("S1", "", message, severity=WARNING)

    def _add(self, identifier: str, file: str, message: str, **more: Any) -> None:
        self.findings.append(Finding(identifier, file, message, "ask for an archive without it", **more))

    def names(self, pattern: str) -> list[str]:
        """Files whose whole path the regular expression matches."""
        return [name for name in self.sizes if re.fullmatch(pattern, name)]

    def open(self, name: str) -> BufferedReader | zipfile.ZipExtFile:
        """A file as a stream."""
        if self._zip:
            member = self._zip.open(self._inside + name)
            assert isinstance(member, zipfile.ZipExtFile)  # as of every zip that is read
            return member
        assert self._folder
        return (self._folder / self._inside / name).open("rb")

    def text(self, name: str) -> str:
        """A text file, what is no UTF-8 replaced; UserError for one of more than TEXT bytes or damaged in the
        zip."""
        if self.sizes[name] > TEXT:
            raise UserError(f"{name} has {self.sizes[name]} bytes, at most {TEXT} are read as text")
        return b"".join(self._blocks(name)).decode("utf-8", errors="replace")

    def path(self, name: str) -> Path:
        """A file on disk with the content."""
        if self._folder:
            return self._folder / self._inside / name
        copy = self.scratch / f"{len(list(self.scratch.iterdir()))}" / name
        copy.parent.mkdir(parents=True)
        with copy.open("wb") as target:
            for block in self._blocks(name):
                target.write(block)
        return copy

    def _blocks(self, name: str) -> Iterator[bytes]:
        try:
            with closing(self.open(name)) as stream:
                yield from iter(lambda: stream.read(1 << 20), b"")
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            OSError,
            EOFError,
        ) as error:
            raise UserError(f"{name} cannot be read: {error}") from None

    def models(self) -> list[str]:
        """Names of the finetuned models: those of the folders that hold their answers, logs or weights, but
        for pretraining."""
        folders = {
            match[1]
            for name in self.sizes
            if (match := re.match(r"output/(?:eval_results|training_dirs)/([^/]+)/.", name))
        }
        return sorted(folder for folder in folders if "-Pretrain-" not in folder)

    def weights(self, model: str) -> list[str]:
        """Files of merged weights of a model."""
        folder = re.escape(f"output/training_dirs/{model}/")
        return [
            name
            for name in self.names(rf"{folder}(?:[^/]+/)?model[^/]*\.safetensors")
            if SHARD.fullmatch(PurePosixPath(name).name) or name.endswith("/model.safetensors")
        ]


def _assert_few(path: Path, files: int) -> None:
    if files > FILES:
        raise UserError(f"{path} has more than {FILES} files, which no entry has")


def _unreadable(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not read."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or no plain file"
    if info.flag_bits & 0x2041 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is encrypted or compressed in an unusual way"
    if info.file_size > SMALL and info.file_size > RATIO * info.compress_size:
        return f"unpacks {info.compress_size} bytes to {info.file_size}"
    return None
