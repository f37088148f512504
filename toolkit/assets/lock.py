"""assets.lock, at the project's root and committed like any lock file: SHA-256 and size of every file from
the network on its first use, with address, revision and date.

A checksum that the registry publishes always wins. What differs later is an error that names both values. An
unpacked archive NAME has a second line, `NAME/*`: its SHA-256 is that of the listing which

    sha256sum FILE …

prints of its files, sorted by path.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.assets import NAME, AnyEntry, File, Hub, Own, Url, first_problem
from toolkit.errors import UserError
from toolkit.files import read_json, write_json

LOCK = Path("assets.lock")
LOST = 1000  # times that a file's folder may go before the file can be made
CONTENT = "/*"  # ends the name of what was in an archive


class Locked(BaseModel):
    """What a file was when it was first used."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    files: int | None = Field(default=None, ge=0, description="of an archive's content")
    address: str
    revision: str | None = Field(default=None, description="commit, of a file of a hub")
    date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$", description="of its first use, UTC")


class _Book(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    assets: dict[str, dict[str, Locked]]


class Expected(NamedTuple):
    """The checksum that a file must have, and who says so."""

    sha256: str
    by: str


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def read(path: Path = LOCK) -> dict[str, dict[str, Locked]]:
    """Files by asset and name; none where there is no lock. UserError for one that is damaged."""
    if not path.is_file() or not path.stat().st_size:
        return {}
    try:
        return _Book.model_validate(read_json(path)).assets
    except ValidationError as error:
        raise UserError(
            f"{path} cannot be used: {first_problem(error)}: restore it from your version control"
        ) from None


def add(path: Path, name: str, files: Mapping[str, Locked]) -> None:
    """Record files of the asset `name` that are not there yet; several processes may do so at once.

    UserError for one that is there with another checksum: it was recorded by another fetch meanwhile.
    """
    if not files:
        return
    with exclusive(path):
        book = read(path)
        known = book.setdefault(name, {})
        for file, locked in files.items():
            if file in known and known[file].sha256 != locked.sha256:
                raise UserError(
                    differs(f"{name}/{file}", locked.sha256, Expected(known[file].sha256, str(path)))
                )
        if files.keys() <= known.keys():
            return
        known |= {file: locked for file, locked in files.items() if file not in known}
        assets = {
            asset: {
                file: locked.model_dump(exclude_none=True) for file, locked in sorted(book[asset].items())
            }
            for asset in sorted(book)
        }
        write_json(path, {"version": 1, "assets": assets})


def expected(name: str, file: File, known: Mapping[str, Locked], path: Path = LOCK) -> Expected | None:
    """The checksum that a file of the asset `name` must have; None on first use where none is published."""
    locked = known.get(file.name)
    if file.sha256 is None:
        return Expected(locked.sha256, str(path)) if locked else None
    published = Expected(file.sha256, f"{NAME} (published by {file.published_by})")
    if locked and locked.sha256 != file.sha256:
        raise UserError(
            f"{differs(f'{name}/{file.name}', locked.sha256, published, whose=f'{path} has')}, which wins: "
            f"remove its line from {path}, and ask yourself where that file came from"
        )
    return published


def differs(what: str, sha256: str, expected: Expected, whose: str = "is") -> str:
    """A sentence with both values."""
    verb = "its sha256 is" if whose == "is" else f"{whose} the sha256"
    return f"{what}: {verb} {sha256}, {expected.by} says {expected.sha256}"


def content(listed: Mapping[str, Mapping], address: str, revision: str | None) -> Locked:
    """The line of an archive's content. listed: sha256 and bytes by path."""
    lines = "".join(f"{listed[path]['sha256']}  {path}\n" for path in sorted(listed))
    return Locked(
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        bytes=sum(file["bytes"] for file in listed.values()),
        files=len(listed),
        address=address,
        revision=revision,
        date=today(),
    )


def first_use(
    entry: AnyEntry, listed: Mapping[str, Mapping], where: str, revision: str | None
) -> dict[str, Locked]:
    """The lines that the lock gets of an asset that came from elsewhere than its address."""
    lines = {
        file: Locked(**value, address=where, revision=revision, date=today())
        for file, value in listed.items()
        if file in entry.alone
    }
    archives = [
        file.name for file in (entry.downloads if isinstance(entry, Url | Hub) else ()) if file.archive
    ]
    if isinstance(entry, Own) or archives:
        rest = {file: value for file, value in listed.items() if file not in entry.alone}
        lines["".join(archives) + CONTENT] = content(rest, where, revision)
    return lines


def refuse_unlocked(name: str, files: Iterable[File], known: Mapping[str, Locked], path: Path = LOCK) -> None:
    """UserError for a file that the lock does not have (`--locked`)."""
    if absent := [file.name for file in files if not {file.name, file.name + CONTENT} & known.keys()]:
        raise UserError(
            f"{path} has no {' and no '.join(absent)} of {name}, and --locked takes nothing else: fetch it "
            f"once without --locked where you trust what comes, and commit {path}"
        )


@contextmanager
def exclusive(path: Path, wait: str | None = None) -> Iterator[IO[bytes]]:
    """Hold `path`, which is made if need be, for this process alone; a killed one lets go of it.

    The file may be renamed over or deleted while another holds it, and its folder may go: then the new one
    is held. wait: printed, once, when there is need to wait. OSError where the file cannot be made.
    """
    lost = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("ab")
        except FileNotFoundError:  # its folder went between the two, or nothing can be made there
            lost += 1
            if lost == LOST:
                raise
            continue
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait:
                    print(wait, flush=True)
                    wait = None
                fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(handle.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                yield handle
                return
