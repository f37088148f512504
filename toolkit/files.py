"""Files that are whole or absent: atomic writes, hashes, JSON and JSON lines."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

FULL = 1 << 20  # bytes; less free space than this counts as a full disk


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename, on failure delete it. An existing `path` is finished.

    A failure while the disk is full becomes OSError ENOSPC that names `path`, whatever the writing library raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # mkstemp makes private files; outputs are shared
        temporary.replace(path)
    except Exception as error:
        # the libraries that write tensors, tables and archives each have their own word for a full disk
        if shutil.disk_usage(path.parent).free < FULL:
            raise OSError(errno.ENOSPC, "the disk is full", str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON atomically, keys in the order given."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or malformed file is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> int:
    """Write one JSON value a line, atomically; return the number of lines."""
    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return count


def read_jsonl(path: Path | str) -> Iterator[Any]:
    """Yield the value of every non-empty line; a missing file or malformed line is a UserError that names file and line."""
    try:
        handle = Path(path).open("rb")  # noqa: SIM115
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    with handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path}, line {number} is not valid JSON: {error}") from None


def read_open_jsonl(path: Path | str) -> list[Any]:
    """The values of a JSON lines file that may still be written to: no file has none, a last line without its end is left out."""
    if not Path(path).is_file():
        return []
    whole = Path(path).read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
