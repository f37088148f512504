"""Hostile archives: each kind ends in its finding and exit status 1, before anything is unpacked; nothing is
written or run."""

import io
import os
import stat
import struct
import sys
import tarfile
import unicodedata
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy
import pandas
import pytest
import worst as worst_cases
from entry_tree import torch_bin
from PIL import Image

from toolkit.__main__ import main
from toolkit.bundle.verify import verify
from toolkit.bundle.zip import archive as archive_module
from toolkit.bundle.zip.archive import Archive
from toolkit.mgm.pickled import foreign

FILES = {"solution/readme": b"# Method\n" * 20, "output/train.sh": b"echo\n" * 30}


def write(
    path: Path, files: dict[str, bytes] | None = None, method: int = zipfile.ZIP_DEFLATED, **fields
) -> Path:
    """An archive as `bundle submit` writes it; `fields` are set on the last member."""
    with zipfile.ZipFile(path, "w", method) as archive:
        members = list((FILES if files is None else files).items())
        for number, (name, content) in enumerate(members, start=1):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, 0o100644 << 16, method
            for key, value in fields.items() if number == len(members) else ():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path


def patch(path: Path, signature: bytes, offset: int, value: bytes, last: bool = True) -> None:
    """Overwrite bytes of the last (or first) header with this signature."""
    content = bytearray(path.read_bytes())
    at = (content.rfind if last else content.find)(signature) + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)


def named(path: Path, name: bytes, flags: int = 0) -> None:
    """One member under a name that zipfile would not write."""
    content = b"x"
    common = struct.pack("<5H3L", 20, flags, 0, 0, 33, zlib.crc32(content), 1, 1)
    local = b"PK\3\4" + common + struct.pack("<2H", len(name), 0) + name + content
    central = (
        b"PK\1\2"
        + struct.pack("<H", 0x0314)
        + common
        + struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0o100644 << 16, 0)
        + name
    )
    path.write_bytes(
        local + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    )


def twice(path: Path) -> None:
    write(path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("solution/readme", "other")


def overlapping(path: Path) -> None:
    """Two directory records of one member's data."""
    write(path, {"solution/a": b"x" * 50, "solution/b": b"x" * 50})
    patch(path, b"PK\1\2", 42, bytes(4))


def gap(path: Path) -> None:
    """Bytes between a member and the directory, which no directory record mentions."""
    content = write(path).read_bytes()
    at = content.find(b"PK\1\2")
    end = bytearray(content[at:])
    end[-6:-2] = struct.pack("<L", at + 7)
    path.write_bytes(content[:at] + b"hidden!" + end)


def after_the_data(path: Path) -> None:
    """Bytes inside a member's range, behind the end of its compressed data."""
    content = b"y" * 100
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(content) + deflate.flush() + b"hidden"
    common = struct.pack("<5H3L", 20, 0, 8, 0, 33, zlib.crc32(content), len(packed), len(content))
    local = b"PK\3\4" + common + struct.pack("<2H", 10, 0) + b"solution/a" + packed
    central = (
        b"PK\1\2"
        + struct.pack("<H", 0x0314)
        + common
        + struct.pack("<5H2L", 10, 0, 0, 0, 0, 0o100644 << 16, 0)
        + b"solution/a"
    )
    path.write_bytes(
        local + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    )


def million(path: Path) -> None:
    """A million members in the directory: the number alone is enough."""
    record = (
        b"PK\1\2"
        + struct.pack("<H", 0x0314)
        + struct.pack("<5H3L", 20, 0, 0, 0, 33, 0, 0, 0)
        + struct.pack("<5H2L", 1, 0, 0, 0, 0, 0, 0)
    )
    size = 1_000_000 * (len(record) + 1)
    with path.open("wb") as handle:
        handle.write((record + b"a") * 1_000_000)
        handle.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, size, 0))
        handle.write(struct.pack("<4sLQL", b"PK\6\7", 0, size, 1))
        handle.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, 0, 0))


def wide(path: Path, extra: bytes, size: int = 0xFFFFFFFF) -> None:
    """A member that announces zip64 sizes."""
    write(path, {"solution/a": b"x"}, extra=extra)
    patch(path, b"PK\1\2", 24, struct.pack("<L", size))


def archived(kind: str) -> bytes:
    """An archive as a member."""
    memory = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=memory, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a"))
    else:
        with zipfile.ZipFile(memory, "w") as inner:
            inner.writestr("a", "b")
    return memory.getvalue()


def scans() -> bytes:
    """A progressive JPEG whose last scan comes a thousand times."""
    memory = io.BytesIO()
    Image.new("L", (4000, 4000)).save(memory, "JPEG", progressive=True)
    content = memory.getvalue()
    begin = content.rfind(b"\xff\xda")
    return content[:begin] + content[begin:-2] * 1000 + content[-2:]


def pickled_bin(path: Path, pickled: bytes, name: str = "archive/data.pkl") -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as inner:
        inner.writestr(name, pickled)
    write(path, {"output/mm_projector.bin": memory.getvalue()}, zipfile.ZIP_STORED)


def table(path: Path, **members: bytes) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as inner:
        for name, content in members.items():
            inner.writestr(f"{name.replace('__', '/')}.xml", content)
    write(path, {"output/a.xlsx": memory.getvalue()}, zipfile.ZIP_STORED)


def worst(kind: str, megabytes: int = 2):
    """One of the archives of worst.py, without the honest members."""
    return lambda path: write(path, worst_cases.KINDS[kind](WORKBOOK, megabytes << 20), zipfile.ZIP_STORED)


def workbook() -> dict[str, bytes]:
    memory = io.BytesIO()
    pandas.DataFrame({"index": [1], "answer": ["A"], "prediction": ["A"]}).to_excel(memory, index=False)
    return {"output/a.xlsx": memory.getvalue()}


WORKBOOK = workbook()
MKDIR = b"\x80\x02cos\nmkdir\nX\x05\x00\x00\x00owned\x85R."
HOSTILE = {
    "empty file": ("Z1", lambda path: path.write_bytes(b"")),
    "text": ("Z1", lambda path: path.write_bytes(b"not an archive " * 9)),
    "cut off": ("Z1", lambda path: path.write_bytes(write(path).read_bytes()[:-30])),
    "comment": ("Z1", lambda path: path.write_bytes(write(path).read_bytes()[:-2] + b"\3\0abc")),
    "followed by bytes": ("Z1", lambda path: path.write_bytes(write(path).read_bytes() + b"tail")),
    "several volumes": ("Z1", lambda path: (write(path), patch(path, b"PK\5\6", 4, b"\1"))),
    "parent folder": ("Z2", lambda path: write(path, {"solution/../../etc/cron.d/x": b"x"})),
    "absolute path": ("Z2", lambda path: write(path, {"/etc/passwd": b"x"})),
    "drive": ("Z2", lambda path: write(path, {"C:/windows/x": b"x"})),
    "backslash": ("Z2", lambda path: named(path, b"solution\\..\\x")),
    "NUL": ("Z2", lambda path: named(path, b"solution/a\0.sh")),
    "escape sequence": ("Z2", lambda path: named(path, b"solution/\x1b[2J")),
    "right-to-left": ("Z2", lambda path: named(path, "solution/\u202egpj.sh".encode(), 0x800)),
    "bad UTF-8": ("Z2", lambda path: named(path, b"solution/\xff\xfe", 0x800)),
    "unmarked bytes": ("Z2", lambda path: named(path, b"solution/\xe9")),
    "not normal": ("Z2", lambda path: write(path, {unicodedata.normalize("NFD", "solution/é"): b"x"})),
    "empty name": ("Z2", lambda path: named(path, b"")),
    "long name": ("Z2", lambda path: write(path, {"solution/" + "a" * 60_000: b"x"})),
    "deep name": ("Z2", lambda path: write(path, {f"solution/{'a/' * 30}b": b"x"})),
    "device of Windows": ("Z2", lambda path: write(path, {"solution/NUL": b"x"})),
    "device of Windows with an ending": ("Z2", lambda path: write(path, {"solution/con.tar.txt": b"x"})),
    "device of Windows as a folder": ("Z2", lambda path: write(path, {"solution/Aux/a": b"x"})),
    "option": ("Z2", lambda path: write(path, {"solution/-rf": b"x"})),
    "option as a folder": ("Z2", lambda path: write(path, {"solution/--output=a/b": b"x"})),
    "home directory": ("Z2", lambda path: write(path, {"solution/~root": b"x"})),
    "wildcard": ("Z2", lambda path: write(path, {"solution/*": b"x"})),
    "trailing space": ("Z2", lambda path: write(path, {"solution/readme ": b"x"})),
    "folder with a trailing dot": ("Z2", lambda path: write(path, {"solution/a./b": b"x"})),
    "C1 control": ("Z2", lambda path: write(path, {"solution/\x9b2J": b"x"})),
    "isolate": ("Z2", lambda path: write(path, {"solution/\u2066a": b"x"})),
    "trailing dot": ("Z2", lambda path: write(path, {"solution/readme.": b"x"})),
    "duplicate": ("Z3", twice),
    "case collision": ("Z3", lambda path: write(path, {"solution/README": b"x", "solution/readme": b"y"})),
    "Unicode collision": ("Z3", lambda path: write(path, {"solution/ﬁle": b"x", "solution/file": b"y"})),
    "file and folder": ("Z3", lambda path: write(path, {"solution/a": b"x", "solution/a/b": b"y"})),
    "link": ("Z4", lambda path: write(path, external_attr=(stat.S_IFLNK | 0o777) << 16)),
    "device": ("Z4", lambda path: write(path, external_attr=(stat.S_IFCHR | 0o666) << 16)),
    "setuid": ("Z4", lambda path: write(path, external_attr=0o104755 << 16)),
    "folder": ("Z4", lambda path: write(path, {"solution/": b""})),
    "bomb": ("Z5", lambda path: write(path, {"solution/zeros": bytes(50 << 20)})),
    "10^6 members": ("Z5", million),
    "bombs together": (
        "Z5",
        lambda path: write(path, {f"solution/{number}": bytes(1 << 20) for number in range(300)}),
    ),
    "tiny members": ("Z5", worst("tiny members")),
    "empty objects": ("Z5", worst("empty objects", 40)),
    "table of many rows": ("Z5", worst("a table of many rows")),
    "table with a far cell": ("Z5", worst("a table with a far cell")),
    "table with a wide row": (
        "Z5",
        lambda path: table(path, xl__worksheets__sheet1=worst_cases.sheet(1, 27)),
    ),
    "table of formats": ("Z5", worst("a table of formats")),
    "table with a long format": (
        "Z5",
        lambda path: table(path, xl__styles=b'<a formatCode="' + b"[" * 256 + b'"/>'),
    ),
    "table of many members": ("Z5", worst("a table of many members")),
    "long list of tensors": ("Z5", worst("a longer list of tensors")),
    "long header of safetensors": (
        "Z5",
        lambda path: write(
            path, {"output/a.safetensors": worst_cases.safetensors(17 << 20)}, zipfile.ZIP_STORED
        ),
    ),
    "large image": ("Z5", lambda path: write(path, {"output/synthetic_images/a.png": worst_cases.png(80)})),
    "large images": ("Z5", worst("large images")),
    "chunks of an image": ("Z5", worst("chunks of an image")),
    "packed texts of images": ("Z5", worst("packed texts of images")),
    "segments of an image": (
        "Z5",
        lambda path: write(
            path, {"output/synthetic_images/a.jpg": b"\xff\xd8" + b"\xff\xe0\0\2" * 2000}, zipfile.ZIP_STORED
        ),
    ),
    "scans of an image": (
        "Z5",
        lambda path: write(path, {"output/synthetic_images/a.jpg": scans()}, zipfile.ZIP_STORED),
    ),
    "encrypted": ("Z7", lambda path: (write(path), patch(path, b"PK\1\2", 8, b"\1\0"))),
    "unknown compression": ("Z7", lambda path: write(path, method=zipfile.ZIP_LZMA)),
    "unknown version": ("Z7", lambda path: (write(path), patch(path, b"PK\1\2", 6, b"\xff"))),
    "overlap": ("Z6", overlapping),
    "hidden bytes": ("Z6", gap),
    "bytes behind the data": ("Z6", after_the_data),
    "wrong CRC": (
        "Z6",
        lambda path: (
            write(path),
            *(patch(path, sign, at, b"1234") for sign, at in ((b"PK\1\2", 16), (b"PK\3\4", 14))),
        ),
    ),
    "wrong size": (
        "Z6",
        lambda path: (
            write(path),
            *(patch(path, sign, at, b"\5\0\0\0") for sign, at in ((b"PK\1\2", 24), (b"PK\3\4", 22))),
        ),
    ),
    "local header differs": ("Z6", lambda path: (write(path), patch(path, b"PK\3\4", 30, b"S"))),
    "data descriptor": (
        "Z6",
        lambda path: (
            write(path),
            *(patch(path, sign, at, b"\x08\0") for sign, at in ((b"PK\1\2", 8), (b"PK\3\4", 6))),
        ),
    ),
    "damaged data": (
        "Z6",
        lambda path: (write(path), patch(path, b"PK\3\4", 30 + len("output/train.sh") + 2, b"\xff\xff")),
    ),
    "zip64 without its field": ("Z6", lambda path: wide(path, b"")),
    "zip64 lie": ("Z6", lambda path: wide(path, struct.pack("<2HQ", 1, 8, 1 << 62))),
    "unneeded zip64": ("Z6", lambda path: wide(path, struct.pack("<2HQ", 1, 8, 1), size=1)),
    "Unicode path field": (
        "Z6",
        lambda path: write(path, extra=struct.pack("<2HBL", 0x7075, 9, 1, 0) + b"evil"),
    ),
    "directory far away": ("Z6", lambda path: (write(path), patch(path, b"PK\5\6", 16, b"\xff\xff\xff\xff"))),
    "too many stated": ("Z6", lambda path: (write(path), patch(path, b"PK\5\6", 8, b"\x09\0\x09\0"))),
    "zip in the zip": (
        "Z8",
        lambda path: write(path, {"solution/a.txt": archived("zip")}, zipfile.ZIP_STORED),
    ),
    "tar in the zip": ("Z8", lambda path: write(path, {"solution/a": archived("tar")})),
    "gzip in the zip": ("Z8", lambda path: write(path, {"solution/a": b"\x1f\x8b\x08" + bytes(30)})),
    "no safetensors": (
        "Z8",
        lambda path: write(path, {"output/model.safetensors": struct.pack("<Q", 1 << 60) + b"{}"}),
    ),
    "gap in safetensors": (
        "Z8",
        lambda path: write(path, {"output/model.safetensors": struct.pack("<Q", 2) + b"{}" + b"hidden"}),
    ),
    "entities in a table": (
        "Z8",
        lambda path: table(path, sheet=b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"),
    ),
    "entities in a table of UTF-16": (
        "Z8",
        lambda path: table(
            path,
            sheet='<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode(
                "utf-16"
            ),
        ),
    ),
    "deep safetensors": (
        "Z8",
        lambda path: write(
            path, {"output/a.safetensors": struct.pack("<Q", 9000) + b"[" * 9000}, zipfile.ZIP_STORED
        ),
    ),
    "safetensors with a tensor twice": (
        "Z8",
        lambda path: write(
            path,
            {
                "output/a.safetensors": struct.pack("<Q", 61)
                + b'{"a":{"data_offsets":[0,0]},"a":{"data_offsets":[0,0]}}'.ljust(61)
            },
        ),
    ),
    "macros in a table": ("Z8", lambda path: table(path, vbaProject=b"x")),
    "foreign part of a table": (
        "Z8",
        lambda path: write(path, {"output/a.xlsx": archived("zip")}, zipfile.ZIP_STORED),
    ),
    "bomb in a table": ("Z8", lambda path: table(path, sheet=bytes(20 << 20))),
    "no table": ("Z8", lambda path: write(path, {"output/a.xlsx": b"x"})),
    "pickle": ("Z9", lambda path: write(path, {"output/a.json": MKDIR})),
    "pickle by name": ("Z9", lambda path: write(path, {"output/a.pkl": b"cos\nsystem\n."})),
    "pickle in a .bin": ("Z9", lambda path: pickled_bin(path, MKDIR)),
    "old pickle as a .bin": ("Z9", lambda path: write(path, {"output/a.bin": b"cos\nsystem\n(S'x'\ntR."})),
    "code in a .bin": ("Z9", lambda path: pickled_bin(path, b"x = 1", "archive/code/model.py")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    identifier, make = HOSTILE[kind]
    make(Path("submit.zip"))
    status = main(["bundle", "verify", "submit.zip"])
    assert status == 1
    found = {finding.id for finding in verify(Path("submit.zip")).findings}
    assert identifier in found and all(name.startswith("Z") for name in found)
    shown = capsys.readouterr()
    assert identifier in shown.out and "Traceback" not in shown.err and "\x1b[2J" not in shown.out
    assert [path.name for path in Path().iterdir()] == ["submit.zip"]


@pytest.mark.skipif(
    sys.version_info < (3, 11, 4), reason="its zipfile writes zip64 members against the format (gh-103861)"
)
def test_a_good_archive(tmp_path):
    """Deflated, stored, large offsets in zip64 form: no finding, the bytes and digests of each member."""
    path = write(tmp_path / "a.zip", FILES | {"solution/é": b"", "solution/b": os.urandom(3 << 20)})
    # a member with a zip64 local header, as `submit` writes large ones
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("solution/c")
        info.create_system, info.external_attr = 3, 0o100644 << 16
        with archive.open(info, "w", force_zip64=True) as target:
            target.write(b"wide")
    with Archive(path) as archive, zipfile.ZipFile(path) as expected:
        archive.scan()
        assert archive.findings == []
        assert list(archive.members) == expected.namelist() == list(archive.digests)
        for name in archive.members:
            assert archive.open(name).read() == expected.read(name)


def test_zip64_end_record(tmp_path, monkeypatch):
    """More than 65,535 members, as zipfile writes them; so many small ones are refused."""
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(65_540):
            info = zipfile.ZipInfo(f"solution/{number}")
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, b"")
    with Archive(path) as archive:
        assert [finding.id for finding in archive.findings] == ["Z5"]
    monkeypatch.setattr(archive_module, "MEMBERS", 65_540)
    with Archive(path) as archive:
        assert archive.findings == [] and len(archive.members) == 65_540


def test_a_weights_file_may_only_rebuild_tensors(tmp_path):
    torch_bin(str(tmp_path / "a.bin"), {"a": numpy.ones((2, 3)), "b": numpy.zeros(4)})
    with zipfile.ZipFile(tmp_path / "a.bin") as archive:
        pickled = archive.read("archive/data.pkl")
    assert foreign(pickled) is None
    assert foreign(MKDIR) == "'os mkdir'"
    assert foreign(pickled + b"x") == "what follows its end"
    assert foreign(b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93.") == "STACK_GLOBAL"
    with pytest.raises(ValueError, match="damaged"):
        foreign(pickled[:-1])


def test_no_list_without_end(tmp_path):
    path = write(tmp_path / "a.zip", {f"/{number}": b"" for number in range(500)})
    with Archive(path) as archive:
        assert len(archive.findings) == archive_module.LISTED + 1
        assert "480 more" in archive.findings[-1].message
