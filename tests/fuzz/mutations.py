"""Bundles changed at one place: bytes anywhere, bytes of headers and directory, a value in a JSON file, a
line of a log or of answers, members left out, renamed, doubled, emptied, exchanged.

Mutation N of an archive is the same in every run. "Changed" means that names or contents of the members
differ, as Python's zipfile reads them; a mutation that leaves them all equal may stay valid. Some mutations
put NASTY pieces into a file, or a member of tests/bundle/worst.py in its place. tests/fuzz/run begins with
them.
"""

import io
import json
import random
import warnings
import zipfile
from typing import Any

import worst

STRANGE = [
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    10**400,
    "",
    "x" * 5000,
    "../../etc/passwd",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    {"path": 1},
]
# Deep nesting, long numbers, a key twice, half a surrogate, signs that steer a terminal, YAML that grows,
# what a search may choke on.
NASTY = [
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"9" * 5000,
    b'"a": 1, "a": 2,',
    b'"\\ud800"',
    b"\x1b[2J\xc2\x9b\xe2\x80\xae",
    b"\xff\xfe\0",
    b"- &a [b]\n" + b"- *a\n" * 1000,
    b"{<<: [*a, *a]}\n",
    b"-" * 50_000,
    b"token" * 10_000,
    b"://" + b"a-" * 10_000,
    b"1e400",
    b"\n" * 10_000,
    b"{}\n" * 10_000,
]
DEEPEST = 1 << 18  # bytes of a member of worst.py
SUFFIXES = (".json", ".jsonl", ".log")


def contents(data: bytes) -> list[tuple[str, bytes]] | None:
    """Names and bytes of all members, None where they cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # zipfile has no one exception for a damaged file
        return None


def rebuilt(members: list[tuple[str, bytes]]) -> bytes:
    """An archive of these members as `bundle submit` writes it."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = (
                3,
                0o100644 << 16,
                zipfile.ZIP_DEFLATED,
            )
            archive.writestr(info, content)
    return memory.getvalue()


def some_bytes(data: bytes, draw: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    """Some bytes between two places changed, left out, inserted or doubled."""
    place = draw.randrange(begin, len(data) if end is None else end)
    length = draw.choice([1, 1, 2, 4, 50])
    kind = draw.randrange(5)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + draw.randbytes(length) + data[place + length :]
    if kind == 2:
        return data[:place] + data[place + length :]
    if kind == 3:
        return (
            data[:place] + draw.choice([draw.randbytes(length), data[place : place + length]]) + data[place:]
        )
    return data[:place] + draw.choice([b"\0", b"\xff"]) * length + data[place + length :]


def headers(data: bytes, draw: random.Random) -> bytes:
    """Bytes of a local header, of the directory or of the end record."""
    if draw.random() < 0.3:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            begin = draw.choice(archive.infolist()).header_offset
        return some_bytes(data, draw, begin, begin + 30)
    return some_bytes(data, draw, data.rfind(b"PK\5\6") if draw.random() < 0.3 else data.find(b"PK\1\2"))


def leaf(value: Any, draw: random.Random) -> Any:
    """The value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        kind = draw.random()
        if kind < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return value | ({"new": value[key]} if kind < 0.15 else {key: leaf(value[key], draw)})
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        kind = draw.random()
        new = [] if kind < 0.2 else [value[place]] * 2 if kind < 0.3 else [leaf(value[place], draw)]
        return [*value[:place], *new, *value[place + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.7:
        return draw.choice([value + 1, -value, value * 2, value + 0.001])
    if isinstance(value, str) and value and draw.random() < 0.5:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice("abc0/.") + value[place + 1 :]
    return draw.choice(STRANGE)


def json_value(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with one value changed, or nested too deeply to be read."""
    if draw.random() < 0.02:
        return b"[" * 200_000
    return json.dumps(leaf(json.loads(content), draw), indent=2).encode()


def line(content: bytes, draw: random.Random) -> bytes:
    """A file of lines with one of them left out, doubled, moved or changed."""
    lines = content.splitlines(keepends=True)
    place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    kind = draw.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[place])
    elif kind == 2:
        lines[place], lines[other] = lines[other], lines[place]
    elif kind == 3 and lines[place].startswith(b'{"'):
        lines[place] = json.dumps(leaf(json.loads(lines[place]), draw)).encode() + b"\n"
    else:
        lines[place] = some_bytes(lines[place], draw)
    return b"".join(lines)


def one_file(members: list[tuple[str, bytes]], draw: random.Random) -> list[tuple[str, bytes]]:
    """One member with other content."""
    of_kind = draw.random() < 0.8  # records, rows, answers and logs more often than the rest
    places = [
        place
        for place, (name, content) in enumerate(members)
        if content and (not of_kind or name.endswith(SUFFIXES))
    ]
    place = draw.choice(places)
    name, content = members[place]
    if draw.random() < 0.2:
        begin = draw.randrange(len(content))
        content = content[:begin] + draw.choice(NASTY) + content[draw.choice([begin, len(content)]) :]
    elif name.endswith(".json") and draw.random() < 0.8:
        content = json_value(content, draw)
    elif of_kind and draw.random() < 0.8:
        content = line(content, draw)
    else:
        content = some_bytes(content, draw)
    return [*members[:place], (name, content), *members[place + 1 :]]


def structure(members: list[tuple[str, bytes]], draw: random.Random) -> list[tuple[str, bytes]]:
    """Members left out, doubled, renamed, emptied, exchanged, added, put in another order."""
    place, other = draw.randrange(len(members)), draw.randrange(len(members))
    (name, content), (_, foreign), kind = members[place], members[other], draw.randrange(8)
    if kind == 0:
        new = []
    elif kind == 1:
        new = [(name, content), (name, content)]
    elif kind == 2:
        new = [
            (
                name[: draw.randrange(len(name))]
                + draw.choice("ab./\\\n é")
                + name[draw.randrange(len(name)) :],
                content,
            )
        ]
    elif kind == 3:
        new = [(name, b"")]
    elif kind == 4:
        new = [(name, foreign)]
    elif kind == 5:
        new = [
            (name, content),
            (draw.choice(["output/x", "solution/x", "x", "../x", f"{name}/x", name.upper()]), foreign),
        ]
    elif kind == 6:
        new = [(name, content[: draw.randrange(len(content) + 1)])]
    else:
        new = [(name, content * 2)]
    return [*members[:place], *new, *members[place + 1 :]]


def mutated(data: bytes, number: int) -> tuple[str, bytes, bool]:
    """(kind, archive, whether all members are what they were) of mutation `number`."""
    draw = random.Random(number)
    members = contents(data)
    kind = draw.choice(["bytes", "headers", "headers", "file", "file", "file", "structure", "worst"])
    if kind == "bytes":
        other = some_bytes(data, draw)
    elif kind == "headers":
        other = headers(data, draw)
    elif kind == "worst":
        # those take long to make
        cases = [case for name, case in worst.KINDS.items() if "images" not in name]
        other = rebuilt(list((dict(members) | draw.choice(cases)(dict(members), DEEPEST)).items()))
    else:
        other = rebuilt((one_file if kind == "file" else structure)(members, draw))
    found = contents(other)
    return kind, other, found is not None and sorted(found) == sorted(members)
