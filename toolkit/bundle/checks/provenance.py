"""P1, P2: every file's hash leads back, stage by stage, from the answers to the assets; records say one thing
to every reader."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.benchmarks import BENCHMARKS
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.contest.experiment import Absent
from toolkit.contest.stages import STAGES
from toolkit.errors import UserError
from toolkit.files import json_text

# What only a stage can make. The tokenizer's and other .json files beside the weights are copies and need no
# producer.
MADE = {".jsonl", ".bin", ".safetensors", ".log", ".xlsx"}

# bytes; a larger asset (full-size weights) is compared by size, its hash was when it was fetched
HASHED = 1 << 28


def formatting(entry: Entry) -> Iterator[Finding]:
    """P2: records, scores and comparisons are, byte for byte, what the toolkit writes of their values."""
    scores = [entry.score(benchmark) for benchmark in entry.benchmarks]
    compared = [f"{entry.data}/contamination.json", "output/reports/compare.json"]
    for file in [*entry.record_files.values(), *scores, *compared]:
        if entry.exists(file):
            with entry.open(file) as handle:
                if handle.read() != json_text(entry.json(file)).encode():
                    message = "is not as the toolkit writes it"
                    yield Finding("P2", file, message, f"delete it and build it again: snakemake {file}")


def links(entry: Entry) -> list[tuple[str, str, str]]:
    """(stage, input, file) of each link of the chain: the stage must have read just this file of the
    experiment. D1 proves that llava.json is the conversion of processed_data.jsonl."""
    chain = []
    for name in entry.record_files:
        stage = STAGES[name]
        reads = {**stage.reads, **(stage.of_lora if entry.division == "open" else {})}
        chain += [(name, key, entry.file(template)) for key, template in reads.items()]
    return chain


def chain(entry: Entry) -> Iterator[Finding]:
    """Outputs are the files on disk; inputs are outputs of the stage before, files of the solution, or files
    of an asset's manifest."""
    for stage, name, file in links(entry):
        record = entry.record(stage)
        again = _remedy(entry, stage, record.file)
        item = record.inputs.get(name)
        if item is None or item.path != file:
            message = f"{stage} did not read {file} but {item.path if item else 'nothing'} as its {name}"
            yield Finding("P1", record.file, message, again)
    teachers = {run.record_files["merge"] for run in entry.compared_with}
    hashes_produced: dict[str, str] = {}  # path: sha256 that the producing record states
    produced = {record_file: record_file for record_file in entry.record_files.values()} | {
        f"{entry.data}/llava.json": "convert"
    }
    for stage in entry.record_files:
        record = entry.record(stage)
        again = _remedy(entry, stage, record.file)
        for item in record.outputs.values():
            produced[item.path] = record.file
            hashes_produced[item.path] = item.sha256
            if entry.outside(item.path):
                continue
            if entry.exists(item.path) and entry.sha256(item.path) != item.sha256:
                yield Finding("P1", item.path, f"was changed after {record.file} was written", again)
            elif not entry.exists(item.path):
                yield Finding("P1", item.path, f"{record.file} names this output, it is not there", again)
        for name, item in record.inputs.items():
            if hashes_produced.get(item.path, item.sha256) != item.sha256:
                message = (
                    f"{record.stage} was made from another {item.path} than the file that "
                    f"{produced[item.path]} states"
                )
                yield Finding("P1", record.file, message, again)
            if entry.outside(item.path) and (item.path in produced or item.path.startswith("input/")):
                continue
            if item.path.startswith("input/"):
                yield from _asset(entry, record.file, name, item.path, item.sha256)
            elif name == "teacher" and item.path not in teachers:
                message = f"its teacher is {item.path}, which none of the compared runs has merged"
                yield Finding("P1", record.file, message, again)
            elif name != "teacher" and item.path not in produced and not item.path.startswith("solution/"):
                message = f"input {name} is {item.path}, which no stage of {entry.name} makes"
                yield Finding("P1", record.file, message, again)
            elif not entry.exists(item.path):
                yield Finding("P1", record.file, f"input {name} is {item.path}, which is gone", again)
            elif entry.sha256(item.path) != item.sha256:
                message = f"{record.stage} was made from another {item.path} than the file that is there"
                yield Finding("P1", record.file, message, again)
    yield from _models(entry)


def _remedy(entry: Entry, stage: str, file: str) -> str:
    """How a stage's results are made again; those of a benchmark that the configuration does not name are an
    earlier run's, and no rule makes them."""
    with suppress(Absent, UserError):
        if stage in BENCHMARKS and stage not in entry.config.benchmarks:
            return f"delete {PurePosixPath(file).parent}: the configuration does not name {stage}"
    return f"snakemake --force {file}"


def linked(entry: Entry) -> Iterator[Finding]:
    """P1: the chain of this run, and every file that only a stage can make has a record that names it."""
    yield from chain(entry)
    recorded = {f"{entry.data}/llava.json"}
    for run in entry.runs:
        for stage, file in run.record_files.items():
            recorded |= {file, *(item.path for item in run.record(stage).outputs.values())}
    for file in entry.members():
        if file.startswith("output/") and PurePosixPath(file).suffix in MADE and file not in recorded:
            message = "no record names this file as its output"
            yield Finding("P1", file, message, "delete it, or build it with the toolkit")


def _manifest(entry: Entry, path: str) -> dict[str, Any]:
    """The manifest of the asset that `path` belongs to."""
    return entry.json("/".join([*path.split("/")[:2], "manifest.json"]))


def _asset(entry: Entry, file: str, name: str, path: str, digest: str) -> Iterator[Finding]:
    """An input from input/ is the file that its asset's manifest lists."""
    asset = path.split("/")[1]
    listed = _manifest(entry, path)["files"].get(path.removeprefix(f"input/{asset}/"))
    if listed is None:
        message = f"input {name} is {path}, which the manifest of {asset} does not list"
        yield Finding("P1", file, message, f"snakemake --force {file}")
    elif listed["sha256"] != digest:
        message = f"input {name} was another {path} than the file that the manifest of {asset} lists"
        yield Finding("P1", file, message, f"snakemake --force {file}")
    elif not entry.exists(path):
        raise Absent(path)
    elif entry.length(path) != listed["bytes"] or (listed["bytes"] < HASHED and entry.sha256(path) != digest):
        yield Finding(
            "P1", path, "was changed after it was fetched", f"snakemake --force input/{asset}/manifest.json"
        )


def _models(entry: Entry) -> Iterator[Finding]:
    """The models that the recipe used are the assets in input/. Their folders' digests follow from the
    manifests (data.synthesize)."""
    record = entry.record("data")
    for name, model in record.settings["models"].items():
        if entry.outside(f"{model['path']}/manifest.json"):
            continue
        listed = {
            Path(file): value["sha256"] for file, value in _manifest(entry, model["path"])["files"].items()
        }
        listed[Path("manifest.json")] = entry.sha256(f"{model['path']}/manifest.json")
        text = "".join(f"{file.as_posix()} {listed[file]}\n" for file in sorted(listed))
        if hashlib.sha256(text.encode()).hexdigest() != model["sha256"]:
            message = f"the recipe ran with another model {name} than {model['path']}"
            yield Finding("P1", record.file, message, f"snakemake --force {record.file}")
