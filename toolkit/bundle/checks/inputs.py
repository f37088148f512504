"""Files of the assets that an entry was made from, by what its records name."""

from pathlib import Path

from toolkit.benchmarks import BENCHMARKS
from toolkit.bundle.entry import Entry
from toolkit.bundle.papers.train_script import asset_file


def folder_of(entry: Entry, relative: str) -> Path:
    """A folder of an asset; Outside or Absent if the asset is not at hand."""
    asset = "/".join(relative.split("/")[:2])
    return entry.path(f"{asset}/manifest.json").parent.joinpath(*relative.split("/")[2:])


def files_of(entry: Entry, benchmark: str) -> dict[str, Path]:
    """The files of a benchmark by name, and its folder of images in the same asset."""
    inputs, kind = entry.record(benchmark).inputs, BENCHMARKS[benchmark]
    files = {name: entry.path(inputs[name].path) for name in kind.files}
    if kind.images:
        files[kind.images] = folder_of(entry, asset_file(inputs[next(iter(files))], kind.images))
    return files
