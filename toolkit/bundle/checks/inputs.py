"""Files of the assets that an entry was made from, by what its records name."""

from pathlib import Path

from toolkit.benchmarks import BENCHMARKS
from toolkit.bundle.entry import Entry
from toolkit.bundle.papers.train_script import asset_file
from toolkit.contest.experiment import Experiment
from toolkit.contest.records import File, Record

BASE = ("llm", "clip", "convnext")


def folder_of(entry: Experiment, relative: str) -> Path:
    """A folder of an asset; Outside or Absent if the asset is not at hand."""
    asset = "/".join(relative.split("/")[:2])
    return entry.path(f"{asset}/manifest.json").parent.joinpath(*relative.split("/")[2:])


def first_file(record: Record, model: str) -> File | None:
    """The input of a training that holds a base model's weights, of several shards the first."""
    return record.inputs.get(model) or record.inputs.get(f"{model}-1")


def base_folders(entry: Entry, record: Record) -> dict[str, Path]:
    """The folders of the models of BASE that a training started from; Outside where one is not at hand."""
    files = {model: first_file(record, model) for model in BASE}
    return {model: folder_of(entry, file.path).parent for model, file in files.items() if file}


def files_of(entry: Experiment, benchmark: str) -> dict[str, Path]:
    """The files of a benchmark by name, and its folder of images in the same asset."""
    inputs, kind = entry.record(benchmark).inputs, BENCHMARKS[benchmark]
    files = {name: entry.path(inputs[name].path) for name in kind.files}
    if kind.images:
        files[kind.images] = folder_of(entry, asset_file(inputs[next(iter(files))], kind.images))
    return files
