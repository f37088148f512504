"""Z5, Z8, Z9: what is inside an archive's members, by their bytes, before any reader of a format sees them.
No pickle is ever loaded.

What a reader would make of a member is weighed here first, because a few bytes can stand for hours and
gigabytes: values of JSON, cells of a table, pixels, tensors in a list. All members together have an
allowance; with a finding here nothing else is read.
"""

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from xml.parsers import expat

from PIL import Image

from toolkit.bundle.zip.archive import RATIO, SMALL, Archive, Bad, folded
from toolkit.data.samples import SYNTHETIC
from toolkit.mgm.pickled import assert_tensors
from toolkit.parse import json_value

ARCHIVES = {
    b"PK\3\4": "zip",
    b"PK\5\6": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7-zip",
    b"Rar!": "rar",
    b"(\xb5/\xfd": "zstandard",
    b"\x04\x22\x4d\x18": "lz4",
}
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".dill"}
ROWS = re.compile(r"/(?:llava\.json|processed_data\.jsonl|removed\.jsonl)$")
UNREAD = re.compile(r"/(?:tokenizer[^/]*|vocab[^/]*|ro-crate-metadata)\.json$")  # by no check
INNER = 10_000  # members of a zip that another library wrote
# of a table: cells in a row, and where one or a row may stand
COLUMNS, PLACE = 26, re.compile(r"[A-Z]?[1-9][0-9]{0,4}")
# parts of a plain table, and elements that compute or lead out of it
TABLE = re.compile(
    r"\[Content_Types\]\.xml|_rels/\.rels|docProps/(?:app|core)\.xml"
    r"|xl/(?:workbook|styles|sharedStrings|theme/theme1|worksheets/sheet1)\.xml|xl/_rels/workbook\.xml\.rels"
)
ACTIVE = re.compile(
    "f|hyperlinks?|definedName|externalReferences?|oleObjects?|controls?|conditionalFormatting"
    "|dataValidations?|legacyDrawing|drawing|picture|webPublishItem|connection|queryTablePart"
)
ATTRIBUTE = 255  # characters of an attribute in a table, as for Excel's number formats
FORMATS = ("JPEG", "PNG", "WEBP")
PIXELS = 50_000_000  # of an image: what a check decodes must not fill the memory
CHUNK_PIXELS = 1_000_000  # as many as take the time of a compressed text in a PNG
# parts of an image in front of its pixels; markers of a JPEG that are bare
FRONT, NO_LENGTH = 1000, (0x01, *range(0xD0, 0xD8), 0xFF)
SCANS = 12  # of a progressive JPEG; with so many more each pixel is decoded once again


class Allowance:
    """What all members of an archive of `size` bytes together may ask of their readers; text and pixels may
    grow with its bytes."""

    def __init__(self, size: int):
        self.limits = {
            # 200,000 rows have some 4 million a file, and gigabytes of weights
            "values in rows": 8_000_000 + size // 64,
            "bytes of rows": (192 << 20) + size // 8,
            "values in records": 3_000_000 + size // 64,
            "bytes of records": (64 << 20) + size // 16,
            "bytes of tables": 32 << 20,  # MMBench's has some 2 MB unpacked
            "cells of tables": 400_000,
            "other parts of tables": 5_000,
            "bytes of lists of tensors": 4 << 20,  # those of MGM-2B have some 200 kB
            "bytes of safetensors headers": 16 << 20,
            "pixels": 100_000_000 + 16 * size,
        }
        self.remaining = dict(self.limits)

    def take(self, resource: str, count: int) -> None:
        """Bad when less remains."""
        self.remaining[resource] -= count
        if self.remaining[resource] < 0:
            raise Bad(
                "Z5",
                f"with it the archive has more than {self.limits[resource]} {resource}, no more are read",
            )


def inspect(archive: Archive, path: Callable[[str], Path]) -> None:
    """Add findings about every member to the archive. path: name -> a file on disk with the member's
    bytes."""
    allowance = Allowance(archive.bytes)
    for name in archive.members:
        try:
            _member(archive, name, path, allowance)
        except Bad as bad:
            archive.add(bad.id, name, str(bad))


def _member(archive: Archive, name: str, path: Callable[[str], Path], allowance: Allowance) -> None:
    suffix, head = PurePosixPath(name).suffix.lower(), archive.head(name, 512)
    if suffix in PICKLES or head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
        raise Bad("Z9", "is a pickle or may hold one: reading it would run what it says")
    if suffix == ".bin":
        assert_tensor_lists(path(name), allowance)
    elif suffix == ".xlsx":
        assert_plain_table(path(name), allowance)
    elif suffix == ".safetensors":
        _tensors(archive, name, allowance)
    elif f"/{SYNTHETIC}/" in name:
        _image(archive, name, allowance)
    elif kind := _kind(head):
        raise Bad("Z8", f"is an archive in the archive ({kind}): what it holds could not be checked")
    elif suffix in (".json", ".jsonl") and not UNREAD.search(name):
        kind = "rows" if ROWS.search(name) else "records"
        allowance.take(f"bytes of {kind}", archive.members[name].size)
        allowance.take(
            f"values in {kind}",
            sum(sum(map(block.count, (b",", b":", b"[", b"{"))) for block in archive.blocks(name)),
        )


def _kind(head: bytes) -> str | None:
    """The kind of archive that begins like this."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)


def _image(archive: Archive, name: str, allowance: Allowance) -> None:
    """An image that a recipe made: those alone are decoded."""
    with archive.open(name) as stream:
        content = stream.read()
    _front(content)
    # Pillow unpacks them as it opens a file
    allowance.take("pixels", CHUNK_PIXELS * sum(map(content.count, (b"zTXt", b"iTXt", b"iCCP"))))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(content), formats=FORMATS).size
    except Exception as error:  # decoders raise many kinds
        raise Bad(
            "Z8", f"is not an image of the formats {', '.join(FORMATS)}: {type(error).__name__}"
        ) from None
    if width * height > PIXELS:
        raise Bad("Z5", f"is an image of {width} x {height} pixels, at most {PIXELS} are read")
    allowance.take("pixels", width * height * (1 + content.count(b"\xff\xda") // SCANS))


def _front(content: bytes) -> None:
    """Bad when there is more in front of the pixels of a PNG or a JPEG than makers of images put there:
    Pillow goes through all of it."""
    png = content.startswith(b"\x89PNG")
    position = 8 if png else 2
    for _ in range(FRONT):
        head = content[position : position + 8]
        if head[4:] in (b"IDAT", b"") if png else not head.startswith(b"\xff") or head[1:2] == b"\xda":
            return
        if not png and head[1] in NO_LENGTH:
            break
        position += int.from_bytes(head[:4]) + 12 if png else int.from_bytes(head[2:4]) + 2
    raise Bad("Z5", f"has more than {FRONT} parts in front of its pixels, or such as no image needs there")


def _members(file: Path, identifier: str) -> zipfile.ZipFile:
    """A zip that another library wrote; Bad when it is none, or a bomb."""
    with file.open("rb") as handle:
        if sum(block.count(b"PK\1\2") for block in iter(lambda: handle.read(1 << 20), b"")) > INNER:
            raise Bad("Z5", f"holds more than {INNER} members")
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, OSError, ValueError) as error:
        raise Bad(identifier, f"is not a readable zip: {error}") from None
    names = {folded(info.filename) for info in archive.infolist()}
    if len(names) < len(archive.infolist()):
        raise Bad(identifier, "holds two members of one name, of which each program reads another")
    for info in archive.infolist():
        if info.flag_bits & 0x2041 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Bad(identifier, f"holds the encrypted or unreadable {info.filename!r}")
        if info.file_size > SMALL and info.file_size > RATIO * info.compress_size:
            raise Bad(identifier, f"unpacks {info.compress_size} bytes to {info.file_size}")
    return archive


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, identifier: str) -> bytes:
    try:
        return archive.read(info)
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,
        OSError,
        EOFError,
    ) as error:
        raise Bad(identifier, f"{info.filename!r} cannot be read: {error}") from None


def assert_plain_table(file: Path, allowance: Allowance) -> None:
    """An .xlsx: small when unpacked, no document type (whose entities can grow without bound), no macros, no
    cell far away."""
    archive = _members(file, "Z8")
    allowance.take("bytes of tables", sum(info.file_size for info in archive.infolist()))
    for info in archive.infolist():
        if not TABLE.fullmatch(info.filename):
            raise Bad(
                "Z8",
                f"{info.filename!r} in the table is not part of a plain table: a macro, a link, a drawing",
            )
        cells = re.fullmatch(r"xl/(?:worksheets/[^/]+|sharedStrings)\.xml", info.filename)
        _parts(
            _content(archive, info, "Z8"),
            info.filename,
            "cells of tables" if cells else "other parts of tables",
            allowance,
        )


def _parts(content: bytes, name: str, kind: str, allowance: Allowance) -> None:
    """Take every element of a table's part from the allowance; up to a row or a column far away all would be
    filled with empty cells."""
    width = 0

    def element(tag: str, attributes: dict[str, str]) -> None:
        nonlocal width
        allowance.take(kind, 1)
        tag = tag.rpartition(":")[2]
        if ACTIVE.fullmatch(tag) or attributes.get("TargetMode", "Internal") != "Internal":
            raise Bad("Z8", f"{name!r} in the table holds a formula or a link: {tag}")
        width = 0 if tag == "row" else width + (tag == "c")
        if any(len(value) > ATTRIBUTE for value in attributes.values()):
            raise Bad("Z5", f"{name!r} in the table has an attribute of more than {ATTRIBUTE} characters")
        if width > COLUMNS or (tag in ("c", "row") and not PLACE.fullmatch(attributes.get("r", "1"))):
            raise Bad(
                "Z5",
                f"{name!r} in the table has a cell at {attributes.get('r')!r}: {COLUMNS} columns, 99,999 "
                "rows are read",
            )

    def doctype(*_: Any) -> None:
        raise Bad("Z8", f"{name!r} in the table defines entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = element, doctype
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise Bad("Z8", f"{name!r} in the table cannot be read: {error}") from None


def assert_tensor_lists(file: Path, allowance: Allowance) -> None:
    """torch.save's format with a pickle that only rebuilds tensors."""
    lists = [info.file_size for info in _members(file, "Z9").infolist() if info.filename.endswith("data.pkl")]
    allowance.take("bytes of lists of tensors", sum(lists))
    try:
        assert_tensors(file)
    except ValueError as error:
        raise Bad("Z9", str(error)) from None


def _tensors(archive: Archive, name: str, allowance: Allowance) -> None:
    """A .safetensors: its header is sound and accounts for every byte."""
    size = archive.members[name].size
    try:
        with archive.open(name) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length} bytes cannot be")
            allowance.take("bytes of safetensors headers", length)
            header = json_value(stream.read(length))
        header.pop("__metadata__", None)
        position = 0
        for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if begin != position or end < begin:
                raise ValueError(f"{tensor} begins at {begin}, not at {position}")
            position = end
        if position != size - 8 - length:
            raise ValueError(f"its tensors have {position} bytes, the file {size - 8 - length}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Bad("Z8", f"is not a safetensors file: {error}") from None
