"""What can be read in a file, in blocks: all of a text; of weights, tables and images the parts that hold
words; readable runs of the rest.

A model's tensors and an image's pixels are noise in which anything can be found that is short enough, so they
are left out: the header of a .safetensors file is searched, names and list of tensors of a .bin file, the
sheets and properties of a table, EXIF, XMP, comments and text chunks of JPEG, PNG and WebP. Memory stays flat
whatever a file's size.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

SNIFFED = 8192  # bytes that tell text from other files
# bytes searched at once; what follows a line that fills a block sees its end again
BLOCK, OVERLAP = 1 << 20, 1 << 10
# ASCII; the same as UTF-16 or UTF-32
NARROW, WIDE = re.compile(rb"[\t\x20-\x7e]{6,}"), re.compile(rb"(?:[\t\x20-\x7e]\0(?:\0\0)?){6,}")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
EXPANDS = 20  # a compressed text chunk is read to so many times its length: words need no more, a bomb would
BEGINS = 4  # places where its compressed text may begin
PARTS = 10_000  # of an image; what has more is searched like any other file
# part of the file ("" for all of it), number of the first line (0 where there are no lines), bytes
Block = tuple[str, int, bytes]


class Files(Protocol):
    """An entry's files: as streams that can be looked into, and on disk."""

    def open(self, name: str) -> io.BufferedReader | zipfile.ZipExtFile: ...

    def path(self, name: str) -> Path: ...


def texts(entry: Files, name: str) -> Iterator[Block]:
    """Blocks of what can be read in a file of the entry."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in (".bin", ".xlsx") and zipfile.is_zipfile(entry.path(name)):
        yield from _zip(entry, name)
        return
    with entry.open(name) as handle:
        head = handle.peek(SNIFFED)[:SNIFFED]
        if suffix == ".safetensors":
            yield from _runs("", _Part(handle, int.from_bytes(handle.read(8), "little")))
        elif head.startswith(b"\xff\xd8\xff"):
            yield from _jpeg(handle)
        elif head.startswith(PNG):
            yield from _png(handle)
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            yield from _webp(handle)
        elif b"\0" in head:
            yield from _runs("", handle)
        else:
            yield from lines(handle)


def lines(handle: io.BufferedIOBase) -> Iterator[Block]:
    """A text in whole lines, but for those that are longer than a block."""
    number, carry = 1, b""
    while block := handle.read(BLOCK):
        block = carry + block + handle.readline(BLOCK)
        yield "", number, block
        carry = b"" if block.endswith(b"\n") else block[-OVERLAP:]
        number += block.count(b"\n") - carry.count(b"\n")


def _runs(part: str, handle: io.BufferedIOBase | io.RawIOBase | IO[bytes]) -> Iterator[Block]:
    """Readable runs, a line each."""
    carry = b""
    while block := handle.read(BLOCK):
        wide = (run.replace(b"\0", b"") for run in WIDE.findall(carry + block))
        yield part, 0, b"\n".join([*NARROW.findall(carry + block), *wide])
        carry = block[-OVERLAP:]


class _Part(io.RawIOBase):
    """The next `length` bytes of a stream, which is then behind them."""

    def __init__(self, handle: io.BufferedIOBase, length: int):
        self._handle, self._left = handle, max(0, length)
        self.length = self._left

    def read(self, size: int = -1) -> bytes:
        block = self._handle.read(min(self._left, BLOCK if size < 0 else size))
        self._left -= len(block)
        return block

    def skip(self) -> None:
        while self.read(BLOCK):
            pass


def _jpeg(handle: io.BufferedIOBase) -> Iterator[Block]:
    """Application data and comments in front of the pixels."""
    handle.read(2)
    for _ in range(PARTS):
        head = handle.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            return
        part = _Part(handle, int.from_bytes(head[2:], "big") - 2)
        if 0xE0 <= head[1] <= 0xEF or head[1] == 0xFE:
            yield from _runs("", part)
        part.skip()
    yield from _runs("", handle)


def _png(handle: io.BufferedIOBase) -> Iterator[Block]:
    """Text chunks, in front of the pixels and behind them."""
    handle.read(len(PNG))
    for _ in range(PARTS):
        head = handle.read(8)
        if len(head) < 8:
            return
        part = _Part(handle, int.from_bytes(head[:4], "big"))
        if head[4:] in PNG_TEXTS:
            yield from _runs("", _Inflated(part) if head[4:] in (b"zTXt", b"iTXt") else part)
        part.skip()
        handle.read(4)  # CRC
    yield from _runs("", handle)


class _Inflated(io.RawIOBase):
    """The text of a zTXt or iTXt chunk, in front of it the chunk's own words."""

    def __init__(self, part: _Part):
        self._blocks = self._unpacked(part)

    def read(self, size: int = -1) -> bytes:
        return next(self._blocks, b"")

    @staticmethod
    def _unpacked(part: _Part) -> Iterator[bytes]:
        block, remaining = part.read(BLOCK), EXPANDS * part.length
        yield block
        # The compressed text begins behind the keyword, flags and, in iTXt, a language and the keyword's
        # translation.
        for begin in islice(
            re.finditer(rb"[\x08\x18\x28\x38\x48\x58\x68\x78][\x01\x5e\x9c\xda]", block[: 1 << 10]), BEGINS
        ):
            inflate, packed = zlib.decompressobj(), block[begin.start() :]
            try:
                while packed and remaining > 0 and (unpacked := inflate.decompress(packed, BLOCK)):
                    yield unpacked
                    packed, remaining = inflate.unconsumed_tail or part.read(BLOCK), remaining - len(unpacked)
            except zlib.error:
                continue


def _webp(handle: io.BufferedIOBase) -> Iterator[Block]:
    """EXIF and XMP."""
    handle.read(12)
    for _ in range(PARTS):
        head = handle.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        part = _Part(handle, length + length % 2)
        if head[:4] in (b"EXIF", b"XMP "):
            yield from _runs("", part)
        part.skip()
    yield from _runs("", handle)


def _zip(entry: Files, name: str) -> Iterator[Block]:
    """Names, comments and texts of a file that is itself a zip; of weights only the list of tensors."""
    with zipfile.ZipFile(entry.path(name)) as archive:
        infos = archive.infolist()
        words = [
            archive.comment,
            *(
                word
                for info in infos
                for word in (info.filename.encode(errors="replace"), info.comment, info.extra)
            ),
        ]
        yield from _runs("", io.BytesIO(b"\n".join(words)))
        for info in infos:
            if name.endswith(".xlsx") or info.filename.endswith(".pkl"):
                with archive.open(info) as handle:
                    yield from _runs(info.filename, handle)
