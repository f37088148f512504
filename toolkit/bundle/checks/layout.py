"""S1, S2, S3: what may and what must stand in an entry, and how much."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.bundle.zip.archive import folded, unportable
from toolkit.contest.ruleset import Rules
from toolkit.counted import counted
from toolkit.parse import json_value

HEADER = 100_000_000  # bytes of a safetensors header, the format's own limit
WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|onnx|h5|npz|pkl)$")
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


def names(members: Iterable[str], rules: Rules) -> Iterator[Finding]:
    """S1 on names alone: of the work tree's packed files, or of an archive's members."""
    seen: dict[str, str] = {}
    for name in members:
        parts = PurePosixPath(name).parts
        if problem := unportable(name):
            yield Finding("S1", name, problem, "rename the file")
        elif parts[0] not in rules.top_level:
            message = f"only {' and '.join(rules.top_level)} may stand at the top"
            yield Finding("S1", name, message, "move the file or leave it out")
        elif any(part.startswith(".") or part in ("__MACOSX", "__pycache__") for part in parts):
            yield Finding("S1", name, "hidden files and byte code do not belong in an entry", "delete it")
        twin = seen.setdefault(folded(name), name)
        if twin != name:
            message = f"differs from {twin} by upper and lower case or Unicode forms only"
            yield Finding("S1", name, message, "rename one of the two")


def top(entry: Entry) -> Iterator[Finding]:
    """S1: names and links."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", entry.name):
        message = f"{entry.name!r} cannot be part of a folder's name"
        yield Finding("S1", entry.data, message, "use letters, digits, _ and - only")
    for name in entry.rules.top_level:
        for link in [*entry.links(name), *(entry.links(f"{name}/**/*") if name == "solution" else [])]:
            yield Finding("S1", link, "is a link, which an archive cannot carry", "put the file itself there")
    members = entry.members()
    yield from names(members, entry.rules)
    known = {*Entry.members(entry)}
    for name in members:
        if name.startswith("output/") and name not in known:
            yield Finding(
                "S1",
                name,
                f"no file of an entry under the rules {entry.rules.name} has this name",
                "leave it out",
            )
    for name in members:
        if not name.startswith("solution/") and entry.links(name):
            yield Finding("S1", name, "is a link, which an archive cannot carry", "put the file itself there")


def required(members: Iterable[str], entry: Entry) -> Iterator[Finding]:
    """S2 on names alone: of the work tree's packed files, or of an archive's members."""
    present = set(members)
    for name in entry.required():
        if name not in present:
            yield missing(name)


def missing(name: str) -> Finding:
    """S2 for one file."""
    # no rule makes what is the contestant's own, or a single file of an asset
    remedies = {
        "solution": "write it, or restore it from your version control",
        "input": "python -m toolkit assets fetch --all",
    }
    remedy = remedies.get(name.partition("/")[0], f"snakemake {name}")
    return Finding("S2", name, "the file is missing", remedy)


def files(entry: Entry) -> Iterator[Finding]:
    """S2: every required file is there, and every file holds something."""
    yield from required(entry.members(), entry)
    for name in entry.members():
        # A recipe may remove nothing, a folder of the solution may be a package.
        if entry.length(name) == 0 and not name.endswith(("/removed.jsonl", "/__init__.py")):
            remedy = (
                f"delete it and build it again: snakemake {name}"
                if name.startswith("output/")
                else "fill it or delete it"
            )
            yield Finding("S2", name, "the file is empty", remedy)


def weights(entry: Entry) -> Iterator[Finding]:
    """S3: weights where the rules want them, every shard of them, and an entry of a size that travels."""
    rules, members = entry.rules, entry.members()
    if rules.weights == "forbidden":
        for name in members:
            if WEIGHTS.search(name):
                message = f"holds weights, {rules.name} allows none"
                yield Finding("S3", name, message, "leave it out: the records keep its hash")
    else:
        yield from _shards(entry, members)
    sizes = {name: entry.length(name) for name in members}
    for name, size in sizes.items():
        if size > rules.limits.file_bytes:
            message = f"{size} bytes, at most {rules.limits.file_bytes} are allowed"
            yield Finding("S3", name, message, "leave out what no rule asks for")
    total, limit = sum(sizes.values()), rules.limits.total_bytes
    if total > limit:
        message = f"the entry has {total} bytes, at most {limit} are allowed"
        yield Finding("S3", entry.finetune, message, "leave out what no rule asks for")
    if len(sizes) > rules.limits.files:
        message = f"{counted(len(sizes), 'file')}, at most {rules.limits.files} are allowed"
        yield Finding("S3", "solution", message, "leave out what no rule asks for")


def _shards(entry: Entry, members: list[str]) -> Iterator[Finding]:
    """The merged model is there: every shard that the names count and that the index names, and every tensor
    in its shard."""
    remedy = f"snakemake --force {entry.record_files['merge']}"
    shards = [
        name
        for name in members
        if name.startswith(f"{entry.finetune}/") and re.search(r"/model[^/]*\.safetensors$", name)
    ]
    if not shards:
        yield Finding("S3", entry.finetune, "there are no merged weights", remedy)
        return
    counts = {match[2] for name in shards if (match := SHARD.fullmatch(PurePosixPath(name).name))}
    numbers = {int(match[1]) for name in shards if (match := SHARD.fullmatch(PurePosixPath(name).name))}
    if len(counts) > 1 or (counts and numbers != set(range(1, int(next(iter(counts))) + 1))):
        yield Finding(
            "S3", shards[0], f"{len(numbers)} of {' or '.join(sorted(counts))} shards are there", remedy
        )
    for index in (
        name
        for name in members
        if name.startswith(f"{entry.finetune}/") and name.endswith(".safetensors.index.json")
    ):
        placed = entry.json(index)["weight_map"]
        for shard in sorted(set(placed.values())):
            name = f"{index.rpartition('/')[0]}/{shard}"
            if name not in members:
                yield Finding("S3", index, f"names {shard}, which is not there", remedy)
            elif missing_here := {tensor for tensor, place in placed.items() if place == shard} - set(
                tensor_names(entry, name)
            ):
                yield Finding(
                    "S3",
                    name,
                    f"lacks {counted(len(missing_here), 'tensor')} that the index places in it",
                    remedy,
                )


def tensor_names(entry: Entry, name: str) -> list[str]:
    """Names in a safetensors header: 8 bytes of length (little endian), then JSON."""
    with entry.open(name) as handle:
        length = int.from_bytes(handle.read(8), "little")
        return [tensor for tensor in json_value(handle.read(min(length, HEADER))) if tensor != "__metadata__"]
