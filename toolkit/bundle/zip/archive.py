"""A zip from a stranger: every byte accounted for before anything in it is believed. Nothing is written,
nothing is executed.

An entry's archive is what `bundle submit` writes: members one after the other from the first byte, each with
its local header, then the directory, then its end. What any reader could understand in two ways (overlaps,
gaps, comments, data descriptors, two names that are one file elsewhere) is refused, so that this reader and
the reviewer's unzip see the same files. Z1 ... Z7 name what is refused. Format: PKWARE APPNOTE.TXT 6.3.10,
sections 4.3 to 4.5.
"""

import hashlib
import io
import re
import stat
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bundle.findings import Finding

REPACK = "pack the entry again with `python -m toolkit bundle submit`"
CHUNK = 1 << 20
# so many members, and one more for so many bytes of the archive: images are no smaller
MEMBERS, EACH = 10_000, 4096
DIRECTORY = 64 << 20  # bytes of the directory: 200 for each member
TOTAL = 64 << 30  # bytes unpacked: three times the largest entry that is expected, 20 GB
# deflate reaches 1,032; logs and rows stay below 30. Below a MiB unpacked any ratio is harmless
RATIO, SMALL = 100, 1 << 20
# all members: so many times the archive's bytes and so many more; weights barely shrink
TOGETHER, SPARE = 4, 1 << 28
NAME = 240  # bytes of a name: most file systems end at 255 for one part
DEPTH = 20  # folders inside each other
LISTED = 20  # findings of one id that are listed; an archive of 300,000 bad names must not make 300,000 lines

END, END64, LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
CENTRAL, LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
UTF8 = 0x800
VERSION = 45  # of the format, times 10: zip64

FORBIDDEN = re.compile(r'[\\<>:"|?*]')  # by Windows
# of Windows
DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\..*)?", re.IGNORECASE)


class Bad(Exception):
    """What is wrong: id and message."""

    def __init__(self, identifier: str, message: str):
        super().__init__(message)
        self.id = identifier


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive: `start` is where its data lies, `packed` and `size` are bytes before and after
    unpacking."""

    name: str
    header: int
    start: int
    packed: int
    size: int
    crc: int
    method: int


class Archive:
    """The members of a zip by name, and `findings` about the zip itself. Use as a context.

    Without findings the names are safe to use as relative paths, and `digests` holds each member's SHA-256:
    every byte was read once.
    """

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[str, Member] = {}
        self.digests: dict[str, str] = {}
        self.findings: list[Finding] = []
        self._counts: Counter[str] = Counter()
        self._handle = path.open("rb")
        self.bytes = self._handle.seek(0, io.SEEK_END)
        try:
            self._read_directory()
        except Bad as bad:
            self.add(bad.id, path.name, str(bad))
        for identifier, count in self._counts.items():
            if count > LISTED:
                self.findings.append(
                    Finding(identifier, path.name, f"and {count - LISTED} more findings of this kind", REPACK)
                )

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def add(self, identifier: str, name: str, message: str) -> None:
        """One more finding, of which at most LISTED of one id are kept."""
        self._counts[identifier] += 1
        if self._counts[identifier] <= LISTED:
            self.findings.append(Finding(identifier, name, message, REPACK))

    def _exactly(self, position: int, length: int) -> bytes:
        self._handle.seek(position)
        data = self._handle.read(length)
        if len(data) != length:
            raise Bad("Z1", f"is cut off: {length} bytes are expected at {position}")
        return data

    def _end(self) -> tuple[int, int, int]:
        """(members, position of the directory, bytes of the directory) as the end record states them."""
        if self.bytes < END.size:
            raise Bad("Z1", "is not a zip archive: it is too short")
        at = self.bytes - END.size
        signature, disk, first, on_disk, count, size, offset, comment = END.unpack(
            self._exactly(at, END.size)
        )
        if signature != b"PK\5\6" or comment:
            raise Bad(
                "Z1", "does not end with a zip's end record: no archive, cut off, or followed by other bytes"
            )
        if disk or first or on_disk != count:
            raise Bad("Z1", "is one of several volumes")
        if offset + size == at and count < 0xFFFF:
            return count, offset, size
        if at < LOCATOR.size + END64.size or self._exactly(at - LOCATOR.size, 4) != b"PK\6\7":
            raise Bad("Z6", f"{size} bytes of directory at {offset} do not lie in front of the end record")
        _, disk, place, disks = LOCATOR.unpack(self._exactly(at - LOCATOR.size, LOCATOR.size))
        if disk or disks != 1 or place != at - LOCATOR.size - END64.size:
            raise Bad("Z6", "the zip64 locator does not point to the record in front of it")
        signature, length, _, _, disk, first, on_disk, many, large, far = END64.unpack(
            self._exactly(place, END64.size)
        )
        if signature != b"PK\6\6" or length != END64.size - 12 or disk or first or on_disk != many:
            raise Bad("Z6", "the zip64 end record is malformed")
        for short, full, limit in (
            (count, many, 0xFFFF),
            (size, large, 0xFFFFFFFF),
            (offset, far, 0xFFFFFFFF),
        ):
            if short not in (full, limit):
                raise Bad("Z6", f"the end record says {short}, the zip64 end record {full}")
        if far + large != place:
            raise Bad("Z6", f"{large} bytes of directory at {far} do not lie in front of the end record")
        return many, far, large

    def _read_directory(self) -> None:
        count, offset, size = self._end()
        allowed = MEMBERS + self.bytes // EACH
        if count > allowed or size > DIRECTORY:
            raise Bad(
                "Z5",
                f"{count} members in {size} bytes of directory: at most {allowed} in {DIRECTORY} are read",
            )
        data, position, expected, total = self._exactly(offset, size), 0, 0, 0
        seen: dict[str, str] = {}
        for _ in range(count):
            if position + CENTRAL.size > size:
                raise Bad("Z6", f"the directory ends before its {count} members")
            fields = CENTRAL.unpack_from(data, position)
            position += CENTRAL.size
            lengths = fields[10:13]
            if fields[0] != b"PK\1\2" or position + sum(lengths) > size:
                raise Bad("Z6", "the directory is malformed")
            raw, extra = (
                data[position : position + lengths[0]],
                data[position + lengths[0] : position + lengths[0] + lengths[1]],
            )
            position += sum(lengths)
            if len(raw) > NAME:
                raise Bad(
                    "Z2",
                    f"{raw[:40].decode('utf-8', 'replace')}…: the name has {len(raw)} bytes, at most {NAME} "
                    "are read",
                )
            name = self._name(raw, fields[3])
            try:
                member = self._member(name, raw, fields, extra)
            except Bad as bad:
                raise Bad(bad.id, f"{name}: {bad}") from None
            if member.header != expected:
                raise Bad(
                    "Z6",
                    f"{name}: begins at {member.header}, not at {expected}: members overlap, or bytes are "
                    "hidden",
                )
            expected, total = member.start + member.packed, total + member.size
            self._judge(member, seen, fields)
            self.members.setdefault(name, member)
        if position != size or expected != offset:
            raise Bad("Z6", "there are bytes that belong to no member")
        if total > (limit := min(TOTAL, TOGETHER * self.bytes + SPARE)):
            self.add(
                "Z5",
                self.path.name,
                f"unpacks to {total} bytes, at most {limit} are read of an archive of {self.bytes}",
            )
        for name in self.members:
            folder = folded(name)
            while folder := folder.rpartition("/")[0]:
                if (twin := seen.get(folder)) is not None:
                    self.add("Z3", name, f"lies in a folder whose name is the file {twin}")

    def _name(self, raw: bytes, flags: int) -> str:
        """The name as text; a name that is neither ASCII nor marked as UTF-8 would be read by each tool in
        its own way."""
        try:
            return raw.decode("utf-8" if flags & UTF8 else "ascii")
        except UnicodeDecodeError:
            name = raw.decode("latin-1")
            self.add("Z2", name, "the name is neither ASCII nor UTF-8 that is marked so")
            return name

    def _member(self, name: str, raw: bytes, fields: tuple, extra: bytes) -> Member:
        """The member that a directory record and the local header describe in the same words; Bad
        otherwise."""
        flags, method, _, _, crc, packed, size, _, _, comment, disk = fields[3:14]
        if flags & 0x2041:
            raise Bad("Z7", "is encrypted")
        if flags & ~(UTF8 | 6):  # bits 1 and 2 say how hard deflate tried
            raise Bad("Z6", f"has flags {flags:#06x}: sizes behind the data or patches are not read")
        if method not in (STORED, DEFLATED):
            raise Bad("Z7", f"is compressed by method {method}: only stored and deflated members are read")
        if comment or disk:
            raise Bad("Z6", "has a comment or lies in another volume")
        if fields[2] > VERSION:
            raise Bad("Z7", f"needs version {fields[2] / 10} of the format, at most {VERSION / 10} is read")
        size, packed, header = _wide(extra, [size, packed, fields[16]])
        if header + LOCAL.size > self.bytes:
            raise Bad("Z6", f"its header would lie at {header}, behind the end of the file")
        local = LOCAL.unpack(self._exactly(header, LOCAL.size))
        tail = self._exactly(header + LOCAL.size, local[9] + local[10])
        if (
            local[0] != b"PK\3\4"
            or tail[: local[9]] != raw
            or local[2:4] != (flags, method)
            or local[1] > VERSION
            or local[6] != crc
        ):
            raise Bad("Z6", "directory and local header differ")
        if _wide(tail[local[9] :], [local[8], local[7]]) != [size, packed]:
            raise Bad("Z6", "directory and local header state different sizes")
        start = header + LOCAL.size + len(tail)
        if start + packed > self.bytes or (method == STORED and packed != size):
            raise Bad(
                "Z6",
                f"{packed} bytes for {size} cannot be: they reach behind the end of the file, or are not "
                "what is stored",
            )
        return Member(name, header, start, packed, size, crc, method)

    def _judge(self, member: Member, seen: dict[str, str], fields: tuple) -> None:
        """Findings about one member's name, kind and size."""
        name, mode = member.name, fields[15] >> 16
        if problem := unportable(name):
            self.add("Z2", name, problem)
        twin = seen.setdefault(folded(name), name)
        if name in self.members:
            self.add("Z3", name, "there are two members of this name")
        elif twin != name:
            self.add("Z3", name, f"is the same file as {twin} where case or Unicode forms do not count")
        if (
            stat.S_IFMT(mode) not in (0, stat.S_IFREG)
            or mode & 0o7000
            or fields[15] & 0x10
            or name.endswith("/")
        ):
            self.add(
                "Z4",
                name,
                "is not a plain file: a link, a folder, a device, or a program with another user's rights",
            )
        if member.size > SMALL and member.size > RATIO * member.packed:
            self.add("Z5", name, f"unpacks {member.packed} bytes to {member.size}: more than {RATIO} to 1")

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content in blocks of at most CHUNK bytes; Bad as soon as it is not what the headers say."""
        member = self.members[name]
        position, remaining, size, crc = member.start, member.packed, 0, 0
        inflate = zlib.decompressobj(-15) if member.method == DEFLATED else None
        ended = False
        while not ended:
            feed = inflate.unconsumed_tail if inflate else b""
            if not feed:
                self._handle.seek(position)
                feed = self._handle.read(min(CHUNK, remaining))
                position, remaining = position + len(feed), remaining - len(feed)
            try:
                block = inflate.decompress(feed, CHUNK) if inflate else feed
            except zlib.error as error:
                raise Bad("Z6", f"cannot be unpacked: {error}") from None
            if inflate and not feed and not block and not inflate.eof:
                raise Bad("Z6", "its compressed data have no end")
            size, crc = size + len(block), zlib.crc32(block, crc)
            if size > member.size:
                raise Bad("Z6", f"holds more than the {member.size} bytes stated")
            ended = inflate.eof if inflate else not block
            if block:
                yield block
        if size != member.size or remaining or (inflate and inflate.unused_data):
            raise Bad("Z6", f"holds {size} bytes, {member.size} are stated, or other bytes follow its data")
        if crc != member.crc:
            raise Bad("Z6", f"its CRC is {crc:08x}, stated is {member.crc:08x}")

    def open(self, name: str) -> io.BufferedReader:
        """A member as a stream."""
        return io.BufferedReader(_Stream(self.blocks(name)), CHUNK)

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a member."""
        with self.open(name) as stream:
            return stream.read(length)

    def scan(self) -> None:
        """Read every member once: sizes and CRC are compared, digests kept."""
        for name in self.members:
            digest = hashlib.sha256()
            try:
                for block in self.blocks(name):
                    digest.update(block)
            except Bad as bad:
                self.add(bad.id, name, str(bad))
            else:
                self.digests[name] = digest.hexdigest()


class _Stream(io.RawIOBase):
    """Blocks as a raw stream."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._block = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._block))
        buffer[:count], self._block = self._block[:count], self._block[count:]
        return count


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset, saturated values read from the zip64 field (id 1), the only extra field that is
    read."""
    if not extra:
        if 0xFFFFFFFF in values:
            raise Bad("Z6", "a zip64 size is announced and missing")
        return values
    overflowing = [place for place, value in enumerate(values) if value == 0xFFFFFFFF]
    if (
        extra[:2] != b"\1\0"
        or len(extra) != 4 + 8 * len(overflowing)
        or extra[2:4] != struct.pack("<H", 8 * len(overflowing))
    ):
        raise Bad("Z6", "has extra fields other than the zip64 sizes that it needs")
    for place, value in zip(overflowing, struct.unpack(f"<{len(overflowing)}Q", extra[4:]), strict=True):
        values[place] = value
    return values


def folded(name: str) -> str:
    """What a name becomes on a file system that minds neither case nor Unicode's forms."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def unportable(name: str) -> str | None:
    """Why a relative path does not name the same file, in its folder, on every system and for every program;
    None if it does."""
    parts = name.split("/")
    if (
        not name
        or not name.isprintable()
        or any(part in ("", ".", "..") for part in parts[:-1])
        or parts[-1] in (".", "..")
    ):
        return "the name leaves the archive's folder, is empty, or has control characters"
    if FORBIDDEN.search(name) or any(
        part != part.strip() or part.endswith(".") or DEVICE.fullmatch(part) for part in parts
    ):
        return "the name means another file on another system"
    if any(part.startswith(("-", "~")) for part in parts):
        return "a program would take the name for an option or for a home directory"
    if len(name.encode()) > NAME or len(parts) > DEPTH or unicodedata.normalize("NFC", name) != name:
        return (
            f"the name is longer than {NAME} bytes, deeper than {DEPTH} folders, or not in Unicode's "
            "normal form NFC"
        )
    return None
