"""Bring one asset into a folder: `python -m toolkit assets fetch --asset world-seed --output
input/world-seed`.

manifest.json is written last and lists every file with its SHA-256 and size: a folder without it is
unfinished. Downloads continue where they were cut off, and nothing is used before its checksum is compared
with the registry.
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

from toolkit.assets import NAME, Entry, Url, World, Zoo
from toolkit.assets.download import download
from toolkit.errors import UserError
from toolkit.files import read_json, sha256, write_json

MANIFEST, PARTIAL = "manifest.json", ".partial"
ZOO = Path(__file__).parent.parent / "world" / "zoo"


def fetch(name: str, entry: Entry, folder: Path) -> int:
    """Fill `folder`, or what it is a link to, with the asset and write its manifest; return the number of
    files.

    UserError says what is wrong and what to do; a file that is not this asset's is never replaced or deleted.
    """
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"{folder} is a link to {folder.readlink()}, which does not exist: make that folder, or remove "
            "the link"
        )
    folder.mkdir(parents=True, exist_ok=True)
    archives: list[Path] = []
    if isinstance(entry, Url):
        listed_before(folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        archives = fetch_url(name, entry, folder)
    else:
        partial = folder / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)  # of an interrupted build
        if isinstance(entry, Zoo):
            copy_zoo(entry, partial)
        elif isinstance(entry, World):
            build_world(entry, partial)
        else:
            run("rehearsal", "model", "--model", entry.model, "--output", str(partial))
        replace(folder, partial)
    missing = [path for path in entry.files.values() if not (folder / path).exists()]
    if missing:
        raise UserError(f"{name} was fetched but has no {' and no '.join(missing)}: mend its entry in {NAME}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in archives)
    listed = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in files
    }
    write_json(folder / MANIFEST, {"asset": name, "source": entry.model_dump(), "files": listed})
    for archive in archives:
        archive.unlink()
    return len(listed)


def listed_before(folder: Path) -> set[str]:
    """The files of an earlier fetch, by its manifest; UserError when that is another program's."""
    if not (folder / MANIFEST).exists():
        return set()
    manifest = read_json(folder / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or manifest.keys() != {"asset", "source", "files"}
        or not isinstance(manifest["files"], dict)
    ):
        raise UserError(
            f"{folder / MANIFEST} is no manifest of an asset: move it away, or choose another folder"
        )
    return {MANIFEST, *manifest["files"]}


def replace(folder: Path, partial: Path) -> None:
    """Put the files of `partial` in the place of an earlier fetch's; UserError when others lie there."""
    earlier = listed_before(folder)
    new = {
        path.relative_to(folder / PARTIAL).as_posix(): path
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    old = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if not path.is_relative_to(partial) and not path.is_dir()
    }
    for name, path in old.items():
        # what an interrupted fetch has already put there equals the new file
        if name not in earlier and not (name in new and path.is_file() and sha256(path) == sha256(new[name])):
            raise UserError(
                f"{folder} holds {name}, which is no file of this asset: move it away, or choose another "
                "folder"
            )
    for path in old.values():
        path.unlink()
    for name, path in new.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(folder / name)
    shutil.rmtree(partial)


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


def fetch_url(name: str, entry: Url, folder: Path) -> list[Path]:
    """Download and unpack; return the archives, which can go once the manifest is written."""
    unknown = [file.name for file in entry.downloads if file.sha256 is None]
    if unknown:
        raise UserError(
            f"{name} cannot be verified, because its publisher states no checksum: in {NAME} under "
            f"{name}.downloads, fill in the sha256 of {', '.join(unknown)}"
        )
    archives = []
    for file in entry.downloads:
        path = folder / file.name
        download(file, path)
        if file.name.endswith(".tar.gz"):
            unpack(path, folder)
            archives.append(path)
    return archives


def unpack(archive: Path, folder: Path) -> None:
    """Put what is in the one folder of `archive` into `folder`. UserError for links, devices and names that
    lead elsewhere."""

    def member_filter(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        path = PurePosixPath(member.name)
        inner = PurePosixPath(*path.parts[1:])
        if (
            path.is_absolute()
            or ".." in path.parts
            or not (member.isdir() or (member.isfile() and inner.parts))
        ):
            raise UserError(
                f"{archive} holds {member.name!r}, a link or a name outside its one folder: nothing of it is "
                "used"
            )
        return (
            tarfile.data_filter(member.replace(name=str(inner), deep=False), destination)
            if inner.parts
            else None
        )

    print(f"unpacking {archive.name}", file=sys.stderr, flush=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter=member_filter)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from None
