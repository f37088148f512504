"""A mirror for machines without network: a folder with each asset's files and manifest, and a lock.

`python -m toolkit assets export DIR` makes it of what is in input/; with TOOLKIT_MIRROR=DIR a fetch takes
from there what it holds, compares it with registry and lock like anything from the network, and never copies
within one file system.
"""

import os
from pathlib import Path

from toolkit.assets import AnyEntry, Hub, Own, Url, lock
from toolkit.assets.folder import copied, digests, finish, intact, manifest, working
from toolkit.assets.lock import CONTENT, LOCK, Expected, Locked
from toolkit.errors import UserError

VARIABLE = "TOOLKIT_MIRROR"


def root() -> Path | None:
    """The mirror that the environment names; UserError when it is not there."""
    if not (value := os.environ.get(VARIABLE)):
        return None
    if not Path(value).is_dir():
        raise UserError(f"{VARIABLE} is {value}, which is not a folder: mount it, or unset {VARIABLE}")
    return Path(value)


def has(name: str) -> bool:
    """Whether the mirror, if there is one, holds the asset."""
    return (folder := root()) is not None and (folder / name / "manifest.json").is_file()


def size(name: str) -> int:
    """Bytes of an asset that the mirror holds."""
    source = root()
    return sum(file["bytes"] for file in (manifest(source / name) or {}).values()) if source else 0


def take(name: str, entry: AnyEntry, folder: Path, path: Path) -> int:
    """Fill `folder` from the mirror; its lock says where the files came from at first."""
    source = root()
    assert source is not None
    files, listed = whole(source / name)
    compared(name, entry, listed, lock.read(path).get(name, {}), path)
    theirs = lock.read(source / LOCK.name).get(name, {})
    compared(name, entry, listed, theirs, source / LOCK.name)
    ours = lock.read(path).get(name, {})
    stated = lock.first_use(entry, listed, "a mirror", None) | theirs
    lock.add(path, name, {file: line for file, line in stated.items() if file not in ours})
    return finish(name, entry, folder, files, listed, copied)


def export(names: dict[str, AnyEntry], inputs: Path, target: Path, path: Path = LOCK) -> dict[str, int]:
    """Put the assets that are in `inputs` and not made anywhere at will into `target`; return how many files
    each has."""
    counts = {}
    book = lock.read(path)
    for name, entry in names.items():
        if not isinstance(entry, Url | Hub | Own):  # made without a network anywhere
            continue
        files, listed = whole(inputs / name)
        compared(name, entry, listed, book.get(name, {}), path)
        with working(target / name):
            counts[name] = finish(name, entry, target / name, files, listed, copied)
        lock.add(target / LOCK.name, name, book.get(name, {}))
    return counts


def whole(folder: Path) -> tuple[dict[str, Path], dict[str, dict]]:
    """The files of an asset and their digests; UserError for one that is not what the manifest lists."""
    stated = manifest(folder)
    if stated is None or not intact(folder, stated):
        raise UserError(f"{folder} is not whole: fetch that asset first")
    files = {file: folder / file for file in stated}
    listed = digests(files)
    if wrong := [file for file in listed if listed[file] != stated[file]]:
        by = Expected(stated[wrong[0]]["sha256"], f"{folder / 'manifest.json'}")
        raise UserError(lock.differs(str(folder / wrong[0]), listed[wrong[0]]["sha256"], by))
    return files, listed


def compared(
    name: str, entry: AnyEntry, listed: dict[str, dict], known: dict[str, Locked], path: Path
) -> None:
    """UserError where files differ from what the registry or the lock says of them."""
    for file in entry.downloads if isinstance(entry, Url | Hub) else []:
        expected = lock.expected(name, file, known, path)
        if expected and file.name in listed and listed[file.name]["sha256"] != expected.sha256:
            raise UserError(lock.differs(f"{name}/{file.name}", listed[file.name]["sha256"], expected))
    for key in known:
        if key.endswith(CONTENT):
            inner = {file: value for file, value in listed.items() if file not in entry.alone}
            line = lock.content(inner, "", None)
            if line.sha256 != known[key].sha256:
                what = f"the content of {name}"
                raise UserError(lock.differs(what, line.sha256, Expected(known[key].sha256, str(path))))
