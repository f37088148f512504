"""An asset's folder: its manifest, and how files get there so that it is whole or unfinished, never wrong.

manifest.json is written last and lists every file with its SHA-256 and size: a folder without it is
unfinished. What is not finished lies in `.partial`, which one process at a time holds.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.assets import NAME, AnyEntry, Inside, first_problem
from toolkit.assets.lock import exclusive
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

MANIFEST, PARTIAL, HELD = "manifest.json", ".partial", "held"
FICLONE = 0x40049409  # of Linux: a copy that shares the blocks
Put = Callable[[Path, Path], None]


class _Digest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Manifest(BaseModel):
    """Files lie inside the folder: a mirror's manifest is a stranger's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    asset: str
    source: dict[str, Any]
    files: dict[Inside, _Digest]


@contextmanager
def working(folder: Path) -> Iterator[Path]:
    """The folder's .partial, for this process alone. What is in it stays after an error, for the next fetch;
    `finish` empties it."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"{folder} is a link to {folder.readlink()}, which does not exist: make that folder, or remove "
            "the link"
        )
    partial = folder / PARTIAL
    with exclusive(partial / HELD, f"{folder}: another fetch is at work there, waiting for it"):
        try:
            yield partial
        finally:
            with suppress(OSError):
                (partial / HELD).unlink()
                partial.rmdir()  # where nothing is left to continue


def manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The files that the folder's manifest lists, None without one; UserError for another program's."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    value = read_json(path)
    try:
        _Manifest.model_validate(value)
    except ValidationError as error:
        raise UserError(
            f"{path} is not the manifest of an asset: move it away, or choose another folder "
            f"({first_problem(error)})"
        ) from None
    return value["files"]


def digest(path: Path) -> dict[str, Any]:
    """SHA-256 and size, as a manifest has them."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def digests(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """The `digest` of each, sorted by path."""
    return {path: digest(files[path]) for path in sorted(files)}


def intact(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every listed file is there with its size; the bytes are not read."""
    return all(
        (path := folder / name).is_file() and path.stat().st_size == file["bytes"]
        for name, file in listed.items()
    )


def present(folder: Path) -> dict[str, Path]:
    """Whatever lies in the folder but other folders, by path; nothing of .partial."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if PARTIAL not in path.relative_to(folder).parts[:1] and (path.is_symlink() or not path.is_dir())
    }


def finish(
    name: str,
    entry: AnyEntry,
    folder: Path,
    files: Mapping[str, Path],
    listed: Mapping[str, Mapping[str, Any]],
    put: Put,
) -> int:
    """Put `files` (path inside the folder: where it is now) into the folder and write the manifest; return
    their number. listed: the `digest` of each.

    A file of an earlier fetch is replaced or deleted. UserError for one that is no fetch's, and for a file
    that the entry promises and that is not among `files`.
    """
    if missing := [path for path in entry.files.values() if not _among(files, path)]:
        raise UserError(f"{name} was fetched but has no {' and no '.join(missing)}: mend its entry in {NAME}")
    earlier = {MANIFEST, *(manifest(folder) or ())}
    old = present(folder)
    for path, there in old.items():
        # what an interrupted fetch has already put there equals the new file
        same = path in files and there.is_file() and (there == files[path] or digest(there) == listed[path])
        if path not in earlier and not same:
            raise UserError(
                f"{folder} holds {path}, which is not a file of this asset: move it away, or choose another "
                "folder"
            )
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in old.keys() - files.keys() - {MANIFEST}:
        old[path].unlink()
    for path, source in files.items():
        if source != folder / path:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            put(source, folder / path)
    write_json(folder / MANIFEST, {"asset": name, "source": entry.model_dump(), "files": dict(listed)})
    for rest in (folder / PARTIAL).iterdir():
        if rest.name != HELD:
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return len(listed)


def _among(files: Iterable[str], path: str) -> bool:
    return any(file == path or file.startswith(f"{path}/") for file in files)


def move(source: Path, target: Path) -> None:
    source.replace(target)


def linked(source: Path, target: Path) -> None:
    """`target` has the bytes of `source` without a copy: shared blocks, a hard link, or a symbolic link."""
    _beside(source.resolve(), target, lambda source, path: path.symlink_to(source))


def copied(source: Path, target: Path) -> None:
    """As `linked`, but a copy on another file system, which may be taken away."""
    _beside(source.resolve(), target, _copy)


def duplicated(source: Path, target: Path) -> None:
    """A file of its own with the bytes of `source`, on shared blocks where the file system can: what is
    written to one does not change the other, as it may with a hard link."""
    if not _cloned(source.resolve(), target):
        _copy(source.resolve(), target)


def _beside(source: Path, target: Path, otherwise: Put) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        path = Path(scratch) / "new"
        if not _cloned(source, path):
            try:
                path.hardlink_to(source)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP):
                    raise
                otherwise(source, path)
        path.replace(target)


def _cloned(source: Path, target: Path) -> bool:
    """Whether `target` now shares the blocks of `source`; btrfs and XFS can."""
    try:
        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new, FICLONE, old.fileno())
            return True
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.ENOENT, errno.ENOSPC):
            raise
        return False


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as handle:
        os.fsync(handle.fileno())
