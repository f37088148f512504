"""S1, S2: what may and what must stand in an entry."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.bundle.ruleset import Rules

TEXTS = {"", ".json", ".jsonl", ".log", ".md", ".py", ".sh", ".txt", ".yaml"}


def names(members: Iterable[str], rules: Rules) -> Iterator[Finding]:
    """S1 on names alone: of the work tree's packed files, or of an archive's members."""
    seen: dict[str, str] = {}
    for name in members:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or not name.isprintable():
            yield Finding("S1", name, "the name would leave the archive's folder or cannot be printed", "rename the file")
        elif parts[0] not in rules.top_level:
            yield Finding("S1", name, f"only {' and '.join(rules.top_level)} may stand at the top", "move the file or leave it out")
        elif any(part.startswith(".") or part in ("__MACOSX", "__pycache__") for part in parts):
            yield Finding("S1", name, "hidden files and byte code do not belong in an entry", "delete it")
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            yield Finding("S1", name, f"differs from {twin} by upper and lower case only", "rename one of the two")


def top(entry: Entry) -> Iterator[Finding]:
    """S1: names, links, traces of the machine."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", entry.name):
        yield Finding("S1", entry.data, f"{entry.name!r} cannot be part of a folder's name", "use letters, digits, _ and - only")
    for name in entry.rules.top_level:
        for link in [*entry.links(name), *(entry.links(f"{name}/**/*") if name == "solution" else [])]:
            yield Finding("S1", link, "is a link, which an archive cannot carry", "put the file itself there")
    members = entry.members()
    yield from names(members, entry.rules)
    for name in members:
        if not name.startswith("solution/") and entry.links(name):
            yield Finding("S1", name, "is a link, which an archive cannot carry", "put the file itself there")
        elif PurePosixPath(name).suffix in TEXTS:
            yield from _traces(entry, name)


def _traces(entry: Entry, name: str) -> Iterator[Finding]:
    """Lines of a text file that name the folder of this work tree: elsewhere the archive would have other bytes."""
    folder = f"{entry.root.resolve().as_posix()}/".encode()
    with entry.open(name) as handle:
        for number, line in enumerate(handle, start=1):
            if folder in line:
                remedy = "run the stage from the repository's root with relative paths"
                yield Finding("S1", name, "names the absolute folder of this work tree", remedy, line=number)
                return


def required(members: Iterable[str], entry: Entry) -> Iterator[Finding]:
    """S2 on names alone: of the work tree's packed files, or of an archive's members."""
    present = set(members)
    for name in entry.required():
        if name not in present:
            yield missing(name)


def missing(name: str) -> Finding:
    """S2 for one file."""
    return Finding("S2", name, "the file is missing", f"snakemake {name}")


def files(entry: Entry) -> Iterator[Finding]:
    """S2: every required file is there and holds something."""
    yield from required(entry.members(), entry)
    for name in filter(entry.exists, entry.required()):
        # A recipe may remove nothing; every other required file has content.
        if entry.length(name) == 0 and not name.endswith("/removed.jsonl"):
            yield Finding("S2", name, "the file is empty", "delete it and build it again")
