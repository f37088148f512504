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
    """The files of a benchmark by name, without its folder of images, which no question or score needs."""
    record = entry.record(benchmark)
    return {name: entry.path(record.inputs[name].path) for name in BENCHMARKS[benchmark].files}


def images_of(entry: Entry, benchmark: str) -> dict[str, Path]:
    """The folder of images by its name, of the asset that the benchmark's files belong to; nothing where the
    files hold them."""
    name, inputs = BENCHMARKS[benchmark].images, entry.record(benchmark).inputs
    if name is None:
        return {}
    first = next(iter(BENCHMARKS[benchmark].files))
    return {name: folder_of(entry, asset_file(inputs[first], name))}
