"""Files that are whole or absent: atomic writes, hashes; and strict readers of JSON, JSON lines and YAML,
whose errors name the file."""

import codecs
import errno
import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from toolkit.errors import UserError
from toolkit.parse import YAML_BYTES, Malformed, json_value, yaml_value

LINE = 1 << 26  # bytes of the longest line that is read
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)  # what decompression raises
FULL = 1 << 20  # bytes; less free space than this counts as a full disk


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename, on failure delete it. An existing
    `path` is finished.

    A failure while the disk is full becomes OSError ENOSPC that names `path`, whatever the writing library
    raised. UserError where `path` is a folder or a device, which a rename would replace.
    """
    path = Path(path)
    assert_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)  # not tempfile, whose files are private whatever the umask says
    mode = temporary.stat().st_mode
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        if temporary.stat().st_mode != mode:  # safetensors puts a private file of its own in place
            temporary.chmod(mode)
        temporary.replace(path)
    except Exception as error:
        # the libraries that write tensors, tables and archives each have their own word for a full disk
        if shutil.disk_usage(path.parent).free < FULL:
            raise OSError(errno.ENOSPC, "the disk is full", str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def assert_replaceable(path: Path) -> None:
    """UserError where something that is no ordinary file is called `path`."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise UserError(f"{path} is {kind}: name a file")


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """The one form in which records are written: indented, keys in the order given."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically in the form of `json_text`."""
    write_text(path, json_text(value))


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or malformed file is a UserError that names it."""
    return _parsed(path, json_value, "JSON")


def read_yaml(path: Path | str) -> Any:
    """Read YAML, None for an empty file; a missing or malformed file is a UserError that names it."""
    if Path(path).is_file() and (size := Path(path).stat().st_size) > YAML_BYTES:
        raise UserError(f"{path} has {size} bytes, at most {YAML_BYTES} of YAML are read")
    return _parsed(path, yaml_value, "YAML")


def _parsed(path: Path | str, parse: Callable[[bytes], Any], kind: str) -> Any:
    try:
        return parse(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Malformed as error:
        raise UserError(f"{path} is not valid {kind}: {error}") from None


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> int:
    """Write one JSON value a line, atomically; return the number of lines."""
    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return count


@contextmanager
def _decompressed(path: Path | str) -> Iterator[BinaryIO]:
    """The bytes of a file; those of a gzip or zstd file, recognised by how it begins, decompressed."""
    with Path(path).open("rb") as handle:
        begin = handle.peek(4)[:4]
        if begin.startswith(GZIP):
            with gzip.open(handle) as stream:
                yield stream  # type: ignore[misc]  # it reads as one
        elif begin == ZSTD:
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                handle, read_across_frames=True
            ) as stream:
                yield io.BufferedReader(stream)
        else:
            yield handle


def read_bytes(path: Path | str, limit: int) -> bytes:
    """The bytes of a plain, gzip or zstd file, decompressed; UserError when it is missing, damaged or has
    more than `limit`."""
    content = bytearray()
    try:
        with _decompressed(path) as handle:
            while (chunk := handle.read(1 << 20)) and len(content) <= limit:
                content += chunk
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except DAMAGED as error:
        raise UserError(f"{path} is compressed and damaged: {error}") from None
    if len(content) > limit:
        raise UserError(f"{path} has more than {limit} bytes")
    return bytes(content)


def read_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes without the line's end) of every line that is not blank, of a plain, gzip
    or zstd file.

    UserError for a file that is missing, is damaged inside its compression, or has a line of more than LINE
    bytes.
    """
    number = 0
    try:
        with _decompressed(path) as handle:
            while line := handle.readline(LINE + 1):
                number += 1
                if len(line) > LINE:
                    raise UserError(
                        f"{path}, line {number} has more than {LINE} bytes: JSON lines are expected, a value "
                        "a line"
                    )
                line = line.rstrip(b"\r\n")
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except DAMAGED as error:
        raise UserError(f"{path} is compressed and damaged after line {number}: {error}") from None


def read_jsonl(path: Path | str) -> Iterator[Any]:
    """Yield the value of every line that `read_lines` gives; a malformed line is a UserError that names file
    and line."""
    return (value for _, value in numbered_jsonl(path))


def numbered_jsonl(path: Path | str) -> Iterator[tuple[int, Any]]:
    """`read_jsonl` with the line's number in the file, which counts blank lines too."""
    for number, line in read_lines(path):
        try:
            yield number, json_value(line)
        except Malformed as error:
            raise UserError(f"{path}, line {number} is not valid JSON: {error}") from None


def read_open_jsonl(path: Path | str) -> list[Any]:
    """The values of a JSON lines file that may still be written to: no file has none, a last line without its
    end is left out."""
    if not Path(path).is_file():
        return []
    try:
        return [json_value(line) for line in Path(path).read_bytes().split(b"\n")[:-1]]
    except Malformed as error:
        raise UserError(f"{path} is damaged: {error}: delete it") from None
