"""Unpack an archive of which nothing is trusted: no link, no device, no name that leads elsewhere.

The contest's layout is a .tar.gz with one folder, whose content goes into the asset's folder.
"""

import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from toolkit.errors import UserError


def unpack(archive: Path, folder: Path, take: str = "*") -> dict[str, Path]:
    """Put the files in the folder `take` of `archive` into `folder`; return them by their paths there.

    take: names, where * is any one and . takes everything. Members elsewhere are left out, but next to the
    one folder `*` of the contest's archives there must be nothing. UserError for an archive that is damaged,
    empty there, or holds a member that is neither file nor folder or whose name leads elsewhere.
    """
    print(f"unpacking {archive.name}", file=sys.stderr, flush=True)
    wanted = PurePosixPath(take).parts
    unpacked = {}
    try:
        for name, source in _members(archive):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise _refused(archive, name)
            inner = _inner(path, wanted)
            if source is None:  # a folder
                continue
            if inner is None:
                if take == "*":
                    raise _refused(archive, name)
                continue
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as handle:
                shutil.copyfileobj(source, handle, 1 << 20)
            unpacked[str(inner)] = target
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{archive} holds a file and a folder of one name: nothing of it is used") from None
    if not unpacked:
        raise UserError(f"{archive} holds no file in its folder {take}: nothing of it is used")
    return unpacked


def _inner(path: PurePosixPath, wanted: tuple[str, ...]) -> PurePosixPath | None:
    """The path inside the wanted folder."""
    parts = path.parts
    inside = len(parts) > len(wanted) and all(
        want in ("*", part) for want, part in zip(wanted, parts, strict=False)
    )
    return PurePosixPath(*parts[len(wanted) :]) if inside else None


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names, with the bytes of files and None for folders."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.flag_bits & 1 or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refused(archive, info.filename)
                yield info.filename, None if info.is_dir() else opened.open(info)
    else:
        with tarfile.open(archive, "r|gz") as stream:
            for member in stream:
                if not (member.isdir() or member.isfile()):
                    raise _refused(archive, member.name)
                yield member.name, stream.extractfile(member) if member.isfile() else None


def _refused(archive: Path, name: str) -> UserError:
    return UserError(
        f"{archive} holds {name!r}, a link or a name outside its one folder: nothing of it is used"
    )
