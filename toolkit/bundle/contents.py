"""Z5, Z8, Z9: what is inside an archive's members, by their bytes, before any reader of a format sees them. No pickle is ever loaded."""

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from PIL import Image

from toolkit.bundle.archive import RATIO, SMALL, Archive
from toolkit.data.samples import SYNTHETIC
from toolkit.mgm.pickled import assert_tensors

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
HEADER = 100_000_000  # bytes of a safetensors header, the format's own limit
TABLE = 256 << 20  # bytes of a table unpacked: MMBench's has some 2 MB
IMAGE = 1 << 20  # bytes at the beginning of an image in which its size in pixels stands
FORMATS = ("JPEG", "PNG", "WEBP")
PIXELS = 50_000_000  # of an image: what a check decodes must not fill the memory


def inspect(archive: Archive, path: Callable[[str], Path]) -> None:
    """Add findings about every member to the archive. path: name -> a file on disk with the member's bytes."""
    for name in archive.members:
        suffix = PurePosixPath(name).suffix.lower()
        head = archive.head(name, 512)
        problem = None
        if suffix in PICKLES or head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
            problem = "Z9", "is a pickle or may hold one: reading it would run what it says"
        elif suffix == ".bin":
            problem = _bin(path(name))
        elif suffix == ".xlsx":
            problem = _table(path(name))
        elif suffix == ".safetensors":
            problem = _header(archive, name)
        elif f"/{SYNTHETIC}/" in name:
            problem = _image(archive, name)
        elif kind := _kind(head):
            problem = "Z8", f"is an archive in the archive ({kind}): what it holds could not be checked"
        if problem:
            archive.add(problem[0], name, problem[1])


def _kind(head: bytes) -> str | None:
    """The kind of archive that begins like this."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)


def _image(archive: Archive, name: str) -> tuple[str, str] | None:
    """An image that a recipe made: those alone are decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(archive.head(name, IMAGE)), formats=FORMATS).size
    except Exception as error:  # decoders raise many kinds
        return "Z8", f"is no image of the formats {', '.join(FORMATS)}: {type(error).__name__}"
    return ("Z5", f"is an image of {width} x {height} pixels, at most {PIXELS} are read") if width * height > PIXELS else None


def _members(file: Path) -> zipfile.ZipFile:
    """A zip that another library wrote; ValueError when it is none, or a bomb."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, OSError, ValueError) as error:
        raise ValueError(f"is no readable zip: {error}") from None
    for info in archive.infolist():
        if info.flag_bits & 0x2041 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"holds the encrypted or unreadable {info.filename!r}")
        if info.file_size > SMALL and info.file_size > RATIO * info.compress_size:
            raise ValueError(f"unpacks {info.compress_size} bytes to {info.file_size}")
    return archive


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, UnicodeDecodeError, OSError, EOFError) as error:
        raise ValueError(f"{info.filename!r} cannot be read: {error}") from None


def _table(file: Path) -> tuple[str, str] | None:
    """An .xlsx: small when unpacked, no document type (whose entities can grow without bound), no macros."""
    try:
        archive = _members(file)
        if sum(info.file_size for info in archive.infolist()) > TABLE:
            return "Z5", f"is a table of more than {TABLE} bytes unpacked"
        for info in archive.infolist():
            content = _content(archive, info)
            if "vbaProject" in info.filename or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
                return "Z8", f"{info.filename!r} in the table has macros or defines entities"
    except ValueError as error:
        return "Z8", f"is no table: {error}"
    return None


def _bin(file: Path) -> tuple[str, str] | None:
    """torch.save's format with a pickle that only rebuilds tensors."""
    try:
        assert_tensors(file)
    except ValueError as error:
        return "Z9", str(error)
    return None


def tensors(archive: Archive, name: str) -> dict[str, dict]:
    """dtype, shape and data_offsets of each tensor of a safetensors member; ValueError when its header is not sound."""
    with archive.open(name) as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = archive.members[name].size
        if not 2 <= length <= min(HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes cannot be")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    position = 0
    for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != position or end < begin:
            raise ValueError(f"{tensor} begins at {begin}, not at {position}")
        position = end
    if position != size - 8 - length:
        raise ValueError(f"its tensors have {position} bytes, the file {size - 8 - length}")
    return header


def _header(archive: Archive, name: str) -> tuple[str, str] | None:
    try:
        tensors(archive, name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return "Z8", f"is no safetensors file: {error}"
    return None
