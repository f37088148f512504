"""Bring assets into folders: `python -m toolkit assets fetch --asset world-seed --output input/world-seed`.

Downloads continue where they were cut off. Nothing is used before its checksum is compared with the
registry's, or else with that of assets.lock; what neither knows is recorded there. TOOLKIT_MIRROR, a folder
that `assets export` made, is asked before the network.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from toolkit.assets import (
    NAME,
    AnyEntry,
    Download,
    File,
    Hub,
    Own,
    Package,
    Random,
    Url,
    World,
    Zoo,
    hub,
    lock,
    mirror,
)
from toolkit.assets.archive import unpack
from toolkit.assets.download import Meter, Source, download, have, length
from toolkit.assets.folder import (
    MANIFEST,
    PARTIAL,
    digest,
    digests,
    finish,
    intact,
    manifest,
    move,
    present,
    working,
)
from toolkit.assets.lock import CONTENT, LOCK, Expected, Locked
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

ZOO = Path(__file__).parent.parent / "world" / "zoo"
AT_ONCE = 4  # assets that are fetched side by side
SPARE = 1 << 30  # bytes of free disk that a fetch leaves

Book = Mapping[str, Locked]


class Job(NamedTuple):
    """An asset and the folder that it goes into."""

    name: str
    entry: AnyEntry
    folder: Path


def fetch_all(jobs: list[Job], locked: bool = False, path: Path = LOCK) -> dict[str, int]:
    """Fetch side by side, under one progress; return the number of files of each asset.

    Before the first byte: with `locked`, UserError for a file that assets.lock does not have; UserError
    where the disk has no room. At the end UserError with a line for each asset that failed.
    """
    book = lock.read(path)
    for job in jobs:
        if locked and isinstance(job.entry, Url | Hub | Own):
            files = () if isinstance(job.entry, Own) else job.entry.downloads
            lock.refuse_unlocked(job.name, files, book.get(job.name, {}), path)
    meter = Meter("fetched")
    check_disk({job.folder: sum(needed(job, book.get(job.name, {}), meter)) for job in jobs})
    counts, problems = {}, []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {job.name: pool.submit(fetch, job.name, job.entry, job.folder, path, meter) for job in jobs}
        try:
            for name, future in running.items():
                try:
                    counts[name] = future.result()
                except UserError as error:
                    problems.append(str(error) if len(jobs) == 1 else f"{name}: {error}")
        except BaseException:  # interrupted, or the disk is full: nothing more is begun
            meter.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if problems:
        raise UserError("\n".join(problems))
    return counts


def fetch(name: str, entry: AnyEntry, folder: Path, path: Path = LOCK, meter: Meter | None = None) -> int:
    """Fill `folder`, or what it is a link to, with the asset and write its manifest; return the number of
    files. path: of assets.lock.

    UserError says what is wrong and what to do; a file that is not this asset's is never replaced or deleted.
    """
    with working(folder) as partial:
        manifest(folder)  # of another program: nothing is touched
        match entry:
            case World() | Zoo() | Random() | Package():
                staged = partial / "made"
                shutil.rmtree(staged, ignore_errors=True)  # of an interrupted build
                make(entry, staged)
                files = {
                    file.relative_to(staged).as_posix(): file
                    for file in sorted(staged.rglob("*"))
                    if file.is_file()
                }
                return finish(name, entry, folder, files, digests(files), move)
            case _ if mirror.has(name):
                return mirror.take(name, entry, folder, path)
            case Own():
                return kept(name, entry, folder, path)
            case _:
                return from_network(name, entry, folder, partial, path, meter)


def make(entry: World | Zoo | Random | Package, folder: Path) -> None:
    """What the toolkit draws, ships or builds itself, or an installed package holds."""
    match entry:
        case Zoo():
            copy_zoo(entry, folder)
        case Package():
            copy_members(entry, folder)
        case World():
            build_world(entry, folder)
        case Random():
            run("rehearsal", "model", "--model", entry.model, "--output", str(folder))


def from_network(
    name: str, entry: Url | Hub, folder: Path, partial: Path, path: Path, meter: Meter | None
) -> int:
    """Download and unpack what is missing, compare, record, put into place."""
    known = lock.read(path).get(name, {})
    before = manifest(folder) or {}
    at = None if isinstance(entry, Url) else entry.revision or _locked_revision(known)
    files: dict[str, Path] = {}
    listed: dict[str, dict[str, Any]] = {}
    for file in entry.downloads:
        expected = lock.expected(name, file, known, path)
        key = file.name + CONTENT
        if file.archive and key in known:
            inner = content_of(entry, folder)
            if len(inner) == known[key].files and _same(digested := digests(inner), known[key]):
                files, listed = files | inner, listed | digested
                continue
        where, line = at_hand(name, file, folder, partial, expected, listed_before=file.name in before)
        if line is None:
            line = bring(entry, file, where, expected, at, meter)
            at = at or line.revision
            if not expected and line.address.startswith("http:"):
                print(
                    f"{name}: {file.name} came over plain http, and nobody publishes its checksum: compare "
                    f"its line in {path} with somebody else's",
                    file=sys.stderr,
                    flush=True,
                )
        new = {file.name: line}
        if file.archive:
            inner = unpacked(entry, file, where, partial / "unpacked")
            digested = digests(inner)
            new[key] = lock.content(digested, line.address, line.revision)
            if key in known and not _same(digested, known[key]):
                by = Expected(known[key].sha256, str(path))
                raise UserError(lock.differs(f"the content of {name}/{file.name}", new[key].sha256, by))
        else:
            inner, digested = {file.name: where}, {file.name: line.model_dump(include={"sha256", "bytes"})}
        lock.add(path, name, {key: line for key, line in new.items() if key not in known})
        files, listed = files | inner, listed | digested
    return finish(name, entry, folder, files, dict(sorted(listed.items())), move)


def at_hand(
    name: str, file: File, folder: Path, partial: Path, expected: Expected | None, listed_before: bool
) -> tuple[Path, Locked | None]:
    """Where a file lies with its line of the lock, or where it has to be fetched to and None.

    It may lie in the folder since an earlier fetch or by the user's own hand, or in .partial since one that
    was killed. UserError for a file of the user's with another checksum.
    """
    fetched, put = partial / file.name, folder / file.name
    for place in (put, fetched):
        if not place.is_file():
            continue
        line = Locked(**digest(place), address=f"{put}, where it lay", date=lock.today())
        if place == fetched:
            came = noted(fetched)
            if came is None or came.sha256 != line.sha256:
                continue
            line = came
        if not expected or line.sha256 == expected.sha256:
            if file.archive and place == put:  # goes once it is unpacked
                fetched.parent.mkdir(parents=True, exist_ok=True)
                place = place.replace(fetched)
            return place, line
        if place == put and not listed_before:
            raise UserError(
                f"{lock.differs(str(place), line.sha256, expected)}: move it away, and it will be fetched"
            )
    return fetched, None


def noted(path: Path) -> Locked | None:
    """The line of a file in .partial that came as a whole, but was not used yet."""
    note = path.with_name(f"{path.name}.line")
    try:
        return Locked.model_validate(read_json(note)) if note.is_file() else None
    except ValidationError:
        return None


def content_of(entry: Url | Hub, folder: Path) -> dict[str, Path]:
    """What may be the content of the asset's archive; Snakemake deletes manifests before it makes them."""
    return {
        path: file
        for path, file in present(folder).items()
        if path not in {MANIFEST, *entry.alone} and entry.holds(path) and file.is_file()
    }


def unpacked(entry: Url | Hub, file: File, archive: Path, folder: Path) -> dict[str, Path]:
    """The files of an archive by their paths in the asset's folder, but for those that have an address of
    their own or that are not the asset's."""
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted one
    into = f"{file.into}/" if file.into else ""
    try:
        inner = {into + path: source for path, source in unpack(archive, folder, file.take).items()}
    except UserError:
        archive.with_name(f"{archive.name}.line").unlink(missing_ok=True)  # is fetched anew
        raise
    return {path: source for path, source in inner.items() if path not in entry.alone and entry.holds(path)}


def _same(listed: Mapping[str, Mapping[str, Any]], line: Locked) -> bool:
    return lock.content(listed, "", None).sha256 == line.sha256


def _locked_revision(known: Book) -> str | None:
    """The commit that the lock has for an asset whose entry pins none."""
    return next((line.revision for line in known.values() if line.revision), None)


def bring(
    entry: Url | Hub,
    file: File,
    path: Path,
    expected: Expected | None,
    at: str | None,
    meter: Meter | None,
) -> Locked:
    """Download one file to `path` and return its line of the lock."""
    sources, problems = [], []
    size = file.bytes
    if isinstance(entry, Hub):
        try:
            located = hub.locate(entry, file.name, at or hub.revision(entry))
            at = located.revision
            size = located.bytes if size is None else size
            expected = expected or (Expected(located.sha256, "the hub") if located.sha256 else None)
            sources.append(located.source)
        except UserError as error:
            problems.append(str(error))
        sources += [Source(f"{mirror}/{file.name}") for mirror in entry.mirrors]
    elif isinstance(file, Download):
        sources += [Source(url) for url in (file.url, *file.mirrors)]
    used = download(sources, path, expected, size, meter, problems)
    line = Locked(**digest(path), address=str(used or sources[0]), revision=at, date=lock.today())
    write_json(path.with_name(f"{path.name}.line"), line.model_dump())
    return line


def kept(name: str, entry: Own, folder: Path, path: Path) -> int:
    """Compare a folder of the contestant's own with its manifest and the lock."""
    listed, known = manifest(folder), lock.read(path).get(name, {}).get(CONTENT)
    remedy = f"run `assets adopt` on the folder that you have of {name}"
    if listed is None or known is None:
        raise UserError(f"{folder} is not there as an asset of your own, and no address has it: {remedy}")
    files = {file: folder / file for file in listed if (folder / file).is_file()}
    now = digests(files)
    if (line := lock.content(now, "", None)).sha256 != known.sha256:
        raise UserError(
            f"{lock.differs(name, line.sha256, Expected(known.sha256, str(path)))}: restore it, or {remedy} "
            f"under another name"
        )
    return finish(name, entry, folder, files, now, move)


def needed(job: Job, known: Book, meter: Meter) -> Iterator[int]:
    """Bytes of disk that an asset still takes, as far as anybody says; the content of an archive is counted
    like the archive until the lock knows better. meter: is told what will come from the network."""
    if not isinstance(job.entry, Url | Hub):
        return
    if mirror.has(job.name):
        yield 0 if manifest(job.folder) else mirror.size(job.name)
        return
    listed = manifest(job.folder)
    whole = listed is not None and intact(job.folder, listed)
    asking = True
    for file in job.entry.downloads:
        if whole if file.archive else (job.folder / file.name).is_file():
            continue
        size = file.bytes
        if size is None and file.name in known:
            size = known[file.name].bytes
        if size is None and asking:
            asking = (size := stated(job.entry, file, known)) is not None
        if size is None:
            continue
        where = job.folder / PARTIAL / file.name
        meter.expect(where, size)
        yield max(size - have(where), 0)
        if file.archive:
            content = known.get(file.name + CONTENT)
            yield content.bytes if content else size


def stated(entry: Url | Hub, file: File, known: Book) -> int | None:
    """The size that a server states, None where none does."""
    if isinstance(file, Download):
        return length(Source(file.url))
    assert isinstance(entry, Hub)
    try:
        at = entry.revision or _locked_revision(known) or hub.revision(entry)
        return hub.locate(entry, file.name, at).bytes
    except UserError:  # will be said by the fetch itself, which may know a mirror
        return None


def check_disk(wanted: Mapping[Path, int]) -> None:
    """UserError where a file system has less room than the folders in it will take."""
    room: dict[int, tuple[Path, int]] = {}
    for folder, count in wanted.items():
        there = folder.resolve()
        while not there.exists():
            there = there.parent
        device = there.stat().st_dev
        room[device] = there, room.get(device, (there, 0))[1] + count
    for there, count in room.values():
        free = shutil.disk_usage(there).free
        if count and free < count + SPARE:
            raise UserError(
                f"{gigabytes(count + SPARE)} of free disk are needed in {there}, there are "
                f"{gigabytes(free)}: free some space, or make the asset's folder a link to a larger disk"
            )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def build_world(entry: World, folder: Path) -> None:
    """Draw a part of the embedded world."""
    sizes = [f"--{key}={value}" for key in ("rows", "side") if (value := getattr(entry, key))]
    run("world", "build", "--part", entry.part, "--seed", str(entry.seed), *sizes, "--output", str(folder))


def run(*command: str) -> None:
    """Another command of the toolkit, which makes the asset; UserError when it fails."""
    if status := subprocess.run([sys.executable, "-m", "toolkit", *command], check=False).returncode:
        raise UserError(f"`python -m toolkit {' '.join(command)}` failed ({status}), see the lines above")


def copy_zoo(entry: Zoo, folder: Path) -> None:
    """Copy a model that is shipped with the toolkit; its checksums are those of the training run that made
    it."""
    prefix = f"{entry.folder}/"
    shipped = {
        path: value for path, value in read_json(ZOO / "zoo.json")["files"].items() if path.startswith(prefix)
    }
    if not shipped:
        raise UserError(
            f"{ZOO / 'zoo.json'} lists no file in {prefix}: restore toolkit/world/zoo from the repository"
        )
    for path, value in sorted(shipped.items()):
        if not (ZOO / path).is_file() or sha256(ZOO / path) != value["sha256"]:
            raise UserError(
                f"{ZOO / path} is missing or not the file that its manifest lists: restore toolkit/world/zoo "
                "from the repository"
            )
        target = folder / path.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ZOO / path, target)


def copy_members(entry: Package, folder: Path) -> None:
    """Copy files out of an installed package, whose bytes the registry knows."""
    try:
        package = importlib.metadata.distribution(entry.package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"its files come inside the Python package {entry.package}, which is not installed: run `make "
            f"setup EXTRAS={entry.extra}`"
        ) from None
    folder_of_modules = Path(str(package.locate_file("")))
    problem = UserError(
        f"{entry.package} {package.version} has other files than {NAME} lists, or lacks some: run `make "
        f"setup EXTRAS={entry.extra}`, which installs the version that has them"
    )
    try:
        # a path inside the archive is read like a path
        root = zipfile.Path(folder_of_modules / entry.archive) if entry.archive else folder_of_modules
        for name, member in entry.members.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with (root / member.path).open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            if sha256(target) != member.sha256:
                raise problem
    except (FileNotFoundError, zipfile.BadZipFile):
        raise problem from None
