"""Assets that are on this machine already: a checkout of the contest's kit with its downloads, a hub's cache,
a seed set of one's own.

They are recognised by what they hold, hashed into assets.lock and linked into input/; nothing of them is
copied, changed or executed.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from toolkit.assets import NAMES, OWN, AnyEntry, Hub, Own, Url, lock, mirror, own, registry
from toolkit.assets.folder import MANIFEST, PARTIAL, digests, finish, linked, working
from toolkit.assets.lock import LOCK
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_jsonl, sha256, write_text

ROW = {"id", "text", "images"}  # keys of Data-Juicer's rows


class Recognised(NamedTuple):
    """An asset in a folder of somebody's. files: by their paths in the asset's own folder."""

    name: str
    entry: AnyEntry
    folder: Path
    files: dict[str, Path]


def adopt(
    root: Path, inputs: Path, name: str | None = None, path: Path = LOCK
) -> tuple[list[str], list[str]]:
    """Link every asset below `root` into `inputs`; return a sentence for each, and one for each that cannot
    be used, with both checksums.

    name: what a seed set of one's own in `root` shall be called, or the asset of the registry that only its
    owner has and that `root` is. UserError where nothing is recognised.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    mine = owned(root, name) or seed(root, name)
    done, problems = [], []
    for known in [mine] if mine else recognised(root):
        try:
            count = take(known, inputs, path)
            done.append(f"{known.name}: {counted(count, 'file')} of {known.folder} in {inputs / known.name}")
        except UserError as error:
            problems.append(str(error))
    if not done and not problems:
        raise UserError(
            f"{root} holds no asset of the registry and no seed set: point to a checkout of the kit, to a "
            "hub's cache, or to rows in Data-Juicer's format; `data import` makes them of any images"
        )
    return done, problems


def take(known: Recognised, inputs: Path, path: Path) -> int:
    """Hash, compare and link one asset, and record what the lock does not have."""
    name, entry, folder, files = known
    listed = digests(files)
    book = lock.read(path).get(name, {})
    mirror.compared(name, entry, listed, book, path)
    revision = folder.name if folder.parent.name == "snapshots" else None
    where = "adopted from a hub's cache" if revision else "adopted"
    lines = lock.first_use(entry, listed, where, revision)
    target = inputs / name
    with working(target):
        lock.add(path, name, {file: line for file, line in lines.items() if file not in book})
        count = finish(name, entry, target, files, listed, linked)
    if isinstance(entry, Own) and name not in registry():
        before = OWN.read_text(encoding="utf-8") if OWN.is_file() else ""
        text = yaml.safe_dump({name: entry.model_dump()}, sort_keys=False, allow_unicode=True)
        write_text(OWN, before + ("\n" if before else "") + text)
    return count


def recognised(root: Path) -> Iterator[Recognised]:
    """The assets of the registry below `root`, each once; of two that fit, the one of the folder's name."""
    known = {name: entry for name, entry in registry().items() if isinstance(entry, Url | Hub | Own)}
    seen: set[str] = set()
    for folder in folders(root):
        in_order = sorted(known.items(), key=lambda item: item[0] != folder.name)
        fitting = (fits(name, entry, folder) for name, entry in in_order if name not in seen)
        if first := next(filter(None, fitting), None):
            seen.add(first.name)
            yield first


def folders(root: Path) -> Iterator[Path]:
    """`root` and the folders below it, through links but never twice into one."""
    entered = set()
    for where, below, _ in os.walk(root, followlinks=True):
        below.sort()
        if (real := os.path.realpath(where)) in entered or Path(where).name in (PARTIAL, ".git"):
            below.clear()
            continue
        entered.add(real)
        yield Path(where)


def fits(name: str, entry: Url | Hub | Own, folder: Path) -> Recognised | None:
    """The asset, if `folder` is it: it holds what the entry promises, under names that no other asset has, in
    a hub's cache of that repository, in a folder of its name, or with a published checksum."""
    promised = {*entry.files.values(), *entry.alone}
    if not promised or not all((folder / file).exists() for file in promised):
        return None
    if isinstance(entry, Hub):
        cache = f"{entry.type}s--{entry.repository.replace('/', '--')}"
        if folder.parent.name == "snapshots":
            mine = folder.parent.parent.name == cache and entry.revision in (None, folder.name)
        else:
            mine = folder.name in (name, entry.repository.split("/")[1]) or any(
                file.sha256
                and file.bytes == (folder / file.name).stat().st_size
                and sha256(folder / file.name) == file.sha256
                for file in entry.downloads
                if not file.archive
            )
        if not mine:
            return None
        if not any(file.archive for file in entry.downloads):  # what else lies there was never fetched
            return Recognised(name, entry, folder, {file: folder / file for file in sorted(promised)})
    elif isinstance(entry, Own) and folder.name != name:
        return None
    files = everything(folder)
    if not isinstance(entry, Own):  # of one's own all is, also what `data import` rejected
        files = {path: source for path, source in files.items() if entry.holds(path)}
    return Recognised(name, entry, folder, files)


def everything(folder: Path) -> dict[str, Path]:
    """The files of a folder by their paths in it, but those of a fetch."""
    files = {
        path.relative_to(folder).as_posix(): path
        for where in folders(folder)
        for path in sorted(where.iterdir())
        if path.is_file()
    }
    return {path: source for path, source in files.items() if path != MANIFEST}


def owned(root: Path, name: str | None) -> Recognised | None:
    """The asset called `name`, if the registry knows it as one that only its owner has. UserError where
    `root` lacks its files."""
    entry = registry().get(name or "")
    if name is None or not isinstance(entry, Own) or name in own():
        return None
    if lacking := sorted(file for file in entry.files.values() if not (root / file).exists()):
        raise UserError(f"{root} is not {name}: it lacks {', '.join(lacking)}")
    return Recognised(name, entry, root, everything(root))


def seed(root: Path, name: str | None) -> Recognised | None:
    """A seed set of one's own in `root` itself: one file of Data-Juicer's rows and one LLaVA json.

    UserError where a name is given and it is none, or where it is one and the name is not good.
    """
    rows = [file for file in sorted(root.glob("*.jsonl")) if is_rows(file)]
    questions = sorted(file for file in root.glob("*.json") if file.name != MANIFEST)
    if name is None:
        if len(rows) != 1 or len(questions) != 1 or next(recognised(root), None):
            return None
        name = root.resolve().name
    elif len(rows) != 1 or len(questions) != 1:
        raise UserError(
            f"{root} holds {counted(len(rows), 'file')} of Data-Juicer's rows (.jsonl) and {len(questions)} "
            ".json: a seed set has one of each, and `data import` makes it of any folder of images with "
            "captions"
        )
    if not re.fullmatch(NAMES, name):
        raise UserError(
            f"{name!r} cannot be the name of an asset: give a --name of letters, digits, dots, _ and -"
        )
    if name in registry() and name not in own():
        raise UserError(f"{name} is an asset of the registry: give your seed set another --name")
    entry = Own(
        kind="own",
        role="images with captions of one's own",
        serves="seed",
        licence="the contestant's to state",
        files={"samples": rows[0].name, "original": questions[0].name},
    )
    return Recognised(name, entry, root, everything(root))


def is_rows(file: Path) -> bool:
    """Whether a file begins with a row in Data-Juicer's format."""
    try:
        first = next(read_jsonl(file), None)
    except UserError:
        return False
    return isinstance(first, dict) and first.keys() >= ROW
