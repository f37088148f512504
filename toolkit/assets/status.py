"""What a configuration's assets are: how large, here or not, in the lock or not, from where."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from toolkit.assets import AnyEntry, Hub, Url, entry, lock, mirror, origin
from toolkit.assets.folder import PARTIAL, intact, manifest
from toolkit.assets.lock import CONTENT, LOCK, Locked
from toolkit.counted import counted
from toolkit.tables import markdown

HEADER = ("role", "asset", "size", "present", "locked", "missing", "from")


class State(NamedTuple):
    """One asset. missing: bytes still to come, as far as they are known; unknown: files of unknown size."""

    name: str
    bytes: int
    present: str
    locked: str
    missing: int
    unknown: int
    origin: str
    own: bool = False


def states(names: Iterable[str], inputs: Path, path: Path = LOCK) -> dict[str, State]:
    """The state of each asset; file sizes are compared, bytes are not read."""
    book = lock.read(path)
    return {name: state(name, entry(name), inputs / name, book.get(name, {})) for name in names}


def state(name: str, entry: AnyEntry, folder: Path, known: Mapping[str, Locked]) -> State:
    listed = manifest(folder)
    here = listed is not None and intact(folder, listed)
    size = sum(file["bytes"] for file in listed.values()) if listed else 0
    if not isinstance(entry, Url | Hub):
        drawn = entry.kind != "own"
        locked = "not needed" if drawn else "yes" if CONTENT in known else "no"
        return State(name, size, _present(folder, listed, here), locked, 0, 0, origin(entry)[0], not drawn)
    in_lock = [file for file in entry.downloads if {file.name, file.name + CONTENT} & known.keys()]
    missing = unknown = stated = 0
    for file in entry.downloads:
        length = file.bytes
        if length is None and file.name in known:
            length = known[file.name].bytes
        unknown += length is None and not here
        stated += length or 0
        if not here and not (folder / file.name).is_file():
            missing += length or 0
    locked = "yes" if len(in_lock) == len(entry.downloads) else f"{len(in_lock)} of {len(entry.downloads)}"
    source = origin(entry)[0]
    if mirror.has(name):
        source = f"the mirror {mirror.root()}"
    elif any(line.address.startswith("adopted") for line in known.values()):
        source = "adopted"
    return State(name, size or stated, _present(folder, listed, here), locked, missing, unknown, source)


def _present(folder: Path, listed: Mapping | None, here: bool) -> str:
    if here:
        return "yes"
    if listed is not None:
        return "damaged"
    return "begun" if (folder / PARTIAL).is_dir() else "no"


def table(roles: Mapping[str, str], read: Iterable[str], states: Mapping[str, State]) -> str:
    """A Markdown table of the assets by role, and a line with what is missing. read: the roles that a run
    needs."""
    read = set(read)
    rows = []
    for role, name in roles.items():
        state = states[name]
        needed = role in read
        rows.append(
            (
                role,
                name,
                size(state.bytes, state.unknown),
                state.present if needed or state.present != "no" else "no need",
                state.locked,
                _missing(state) if needed and state.present != "yes" else "",
                state.origin,
            )
        )
    wanted = [states[name] for name in dict.fromkeys(roles[role] for role in roles if role in read)]
    absent = [state for state in wanted if state.present != "yes"]
    missing, unknown = sum(state.missing for state in absent), sum(state.unknown for state in absent)
    fetched = size(missing, unknown) or "nothing"
    are = "is" if len(absent) == 1 else "are"
    summary = (
        f"{len(absent)} of {len(wanted)} assets that the run reads {are} missing: {fetched} to fetch\n"
        if absent
        else f"all {len(wanted)} assets that the run reads are here\n"
    )
    return f"{markdown(HEADER, rows)}\n{summary}"


def _missing(state: State) -> str:
    return "run `assets adopt`" if state.own else size(state.missing, state.unknown) or "the run makes it"


def size(count: int, unknown: int = 0) -> str:
    """Bytes for people, and how many files of unknown size are not in them; nothing for none of both."""
    if not (count or unknown):
        return ""
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if number >= 1000:
            number, unit = number / 1000, larger
    text = f"{number:.1f} {unit}" if unit != "B" else f"{count} B"
    files = f"{counted(unknown, 'file')} of unknown size"
    return files if unknown and not count else f"{text} + {files}" if unknown else text
