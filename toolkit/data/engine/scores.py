"""The store of statistics: each is computed once for one content and kept, `output/scores/scores.sqlite`.

An entry is found by what was computed (an operator with the arguments that decide its result, hashes of the
models, its own source and the engine's, versions, device) and by the content it was computed from (a caption,
an image's bytes, or both). So a changed threshold, order or selection finds everything, and a changed model,
image or package finds nothing. The file can be deleted at any time; the cost is to compute again. It is
written in short transactions: after a kill everything up to the last transaction is there.
"""

import errno
import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL

from toolkit import code
from toolkit.data.samples import inspected
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.progress import Progress

FORMAT = 1
WAIT = 600.0  # seconds; another experiment's job may be writing
TABLES = """
CREATE TABLE IF NOT EXISTS statistics (id INTEGER PRIMARY KEY, computed TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS scores (statistic INTEGER, content BLOB, value TEXT NOT NULL,
    PRIMARY KEY (statistic, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL,
    problem TEXT) WITHOUT ROWID;
"""
DECODED, HASHED = (
    f"decoded by Pillow {PIL.__version__}, code {code.digest('toolkit.data.samples')[:16]}",
    "hashed",
)  # how a file was read: a hash does not say that it is an image
CACHE = 64 * 1024  # KiB of the database in memory: keys are hashes, so neighbours lie anywhere
TOGETHER = 500  # keys a query; SQLite takes at least 999
LOOKUP = 2000  # images that are looked up at a time
NOTED = 20_000  # images that are noted at a time: what a kill costs at most


class Scores:
    """An open store. Values are texts; a content is at most 32 bytes. UserError for a file that is no
    store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.database = sqlite3.connect(path, timeout=WAIT)
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{path} cannot be opened ({error}): see that the folder can be written, or choose another"
            ) from None
        with self._translated():
            (version,) = self.database.execute("PRAGMA user_version").fetchone()
            if version not in (0, FORMAT):
                raise UserError(
                    f"{path} has format {version}, not {FORMAT}: delete it, everything in it can be computed "
                    "again"
                )
            self.database.executescript(
                f"{TABLES} PRAGMA user_version = {FORMAT}; PRAGMA cache_size = -{CACHE};"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's own exceptions as exceptions that the command line knows."""
        try:
            yield
        except sqlite3.OperationalError as error:
            self.database.rollback()
            code = errno.ENOSPC if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(code, f"the store of statistics: {error}", str(self.path)) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path} is damaged ({error}): delete it, everything in it can be computed again"
            ) from error

    def close(self) -> None:
        self.database.close()

    def statistic(self, computed: str) -> int:
        """The number of what is `computed`."""
        with self._translated(), self.database:
            self.database.execute("INSERT OR IGNORE INTO statistics (computed) VALUES (?)", (computed,))
            return self.database.execute(
                "SELECT id FROM statistics WHERE computed = ?", (computed,)
            ).fetchone()[0]

    def find(self, statistic: int, contents: Sequence[bytes]) -> dict[bytes, str]:
        """The values that are there, by content."""
        values: dict[bytes, str] = {}
        with self._translated():
            for begin in range(0, len(contents), TOGETHER):
                batch = contents[begin : begin + TOGETHER]
                query = (
                    "SELECT content, value FROM scores WHERE statistic = ? AND content IN "
                    f"({','.join('?' * len(batch))})"
                )
                values.update(self.database.execute(query, (statistic, *batch)))
        return values

    def add(self, values: Iterable[tuple[int, bytes, str]]) -> None:
        """Keep (statistic, content, value); what is there stays."""
        with self._translated(), self.database:
            # neighbours together: fewer pages
            self.database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", sorted(values))

    def images(self, paths: Sequence[str], processes: int) -> dict[str, tuple[str | None, bytes]]:
        """(problem or None, SHA-256 or b"") of every image by its path, as `inspect_image` finds them. An
        image is read once, whatever number of rows has it, and not again while it is not touched (size, times
        and inode are the same).
        """
        progress = Progress("reading images", len(paths))
        results: dict[str, tuple[str | None, bytes]] = {}
        reading: deque[tuple[str, str]] = deque()  # path, stamp

        def unknown() -> Iterator[str]:
            """Paths of images to be read; what is known of others is in `results` then."""
            for begin in range(0, len(paths), LOOKUP):
                batch = paths[begin : begin + LOOKUP]
                distinct = [path for path in dict.fromkeys(batch) if path not in results]
                stamps = [_stamp(path, DECODED) for path in distinct]
                new = []
                for path, stamp, known in zip(distinct, stamps, self._cached(distinct, stamps), strict=True):
                    results[path] = (known[0], bytes.fromhex(known[1])) if known else (None, b"")
                    if not known:
                        new.append((path, stamp))
                progress.step(len(batch) - len(new))
                reading.extend(new)
                yield from (path for path, _ in new)

        notes = []
        for problem, digest in inspected(unknown(), processes):
            path, stamp = reading.popleft()
            results[path] = problem, bytes.fromhex(digest)
            progress.step()
            if digest:  # what could not even be read may be readable next time
                notes.append((path, stamp, problem, digest))
            if len(notes) == NOTED:
                self._note(notes)
                notes = []
        self._note(notes)
        return results

    def folder(self, folder: Path) -> str:
        """One digest of a folder's files: their relative names and contents, in the order of the names. Only
        touched files are read."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        stamps = [_stamp(path, HASHED) for path in files]
        cached = self._cached(files, stamps)
        digests = [entry[1] if entry else sha256(path) for path, entry in zip(files, cached, strict=True)]
        self._note(
            (path, stamp, None, digest) for path, stamp, digest in zip(files, stamps, digests, strict=True)
        )
        text = "".join(
            f"{path.relative_to(folder).as_posix()} {digest}\n"
            for path, digest in zip(files, digests, strict=True)
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _cached(
        self, paths: Sequence[Path | str], stamps: Sequence[str]
    ) -> list[tuple[str | None, str] | None]:
        results = {}
        names = _absolute(paths)
        with self._translated():
            for begin in range(0, len(names), TOGETHER):
                batch = names[begin : begin + TOGETHER]
                query = (
                    "SELECT path, stamp, problem, sha256 FROM files WHERE path IN "
                    f"({','.join('?' * len(batch))})"
                )
                results.update(
                    {
                        (path, stamp): (problem, digest)
                        for path, stamp, problem, digest in self.database.execute(query, batch)
                    }
                )
        return [
            results.get((name, stamp)) if stamp else None for name, stamp in zip(names, stamps, strict=True)
        ]

    def _note(self, files: Iterable[tuple[Path | str, str, str | None, str]]) -> None:
        readable = [file for file in files if file[1]]
        names = _absolute([path for path, *_ in readable])
        rows = [
            (name, stamp, digest, problem)
            for name, (_, stamp, problem, digest) in zip(names, readable, strict=True)
        ]
        with self._translated(), self.database:
            self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)


def _absolute(paths: Iterable[Path | str]) -> list[str]:
    # strings: making a Path of each would take longer than asking the database
    folder, names = Path.cwd().as_posix(), map(str, paths)
    return [name if name.startswith("/") else f"{folder}/{name}" for name in names]


def _stamp(path: Path | str, method: str) -> str:
    """What changes whenever a file is written, and how it was read; "" where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each would take longer
    except OSError:
        return ""
    return json.dumps([status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, method])
