"""output/train.sh: the commands that made an experiment, as the records of its stages state them.

    python -m toolkit bundle train-script --experiment synth --output output/train.sh

The contest wants the training script as evidence. Made from the records, it says what was run, not what was
meant to be run.
"""

import shlex
from collections.abc import Iterator

from toolkit import assets
from toolkit.benchmarks.base import Benchmark, flag
from toolkit.contest.experiment import Absent, Experiment
from toolkit.contest.records import File, Record
from toolkit.errors import UserError

HEAD = """#!/usr/bin/env bash
# How the experiment {name} was made, from the records of its stages:
# division {division}, scale {scale}, seed {seed}.
# Run it in the repository's environment; `snakemake` does the same and skips what is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
"""


def script(experiment: Experiment) -> str:
    """The text of train.sh. UserError if a record is missing or was made with a path outside the
    repository."""
    try:
        head = HEAD.format(
            name=experiment.name,
            division=experiment.division,
            scale=experiment.scale.name,
            seed=experiment.record("pretrain").settings["seed"],
        )
        steps = [
            ("data and models", list(_fetch(experiment))),
            ("the experiment's data, checked and converted", list(_data(experiment))),
            *(
                (f"{stage}", [recorded_arguments(experiment.record(stage))])
                for stage in ("pretrain", "finetune", "merge")
            ),
            *(
                (benchmark.title, [_evaluate(experiment, benchmark)])
                for benchmark in experiment.benchmarks.values()
            ),
        ]
    except Absent as absent:
        raise UserError(f"{absent} does not exist: build it first (snakemake {absent})") from None
    blocks = ["\n".join([f"# {title}", *map(fold, commands)]) for title, commands in steps]
    return "\n".join([head, "\n\n".join(blocks), ""])


def recorded_arguments(record: Record) -> list[str]:
    """The arguments of `python -m toolkit` that a training record states."""
    words = record.settings.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{record.file} has no list settings.command: run the stage again")
    if words[:3] != ["python", "-m", "toolkit"]:
        raise UserError(
            f"{record.file}: settings.command is not a command of the toolkit: run the stage again"
        )
    if absolute := [word for word in words if word.startswith("/") or "=/" in word]:
        raise UserError(
            f"{record.file} was made with {absolute[0]}: run the stage from the repository's root with "
            "relative paths"
        )
    return words[3:]


def fold(words: list[str]) -> str:
    """One shell command, a flag a line."""
    lines = ["python -m toolkit"]
    for word in words:
        if word.startswith("--"):
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)


def asset_of(path: str) -> str:
    """The asset in input/ that a file belongs to."""
    folder, name = path.split("/")[:2]
    if folder != "input" or name not in assets.registry():
        raise UserError(
            f"{path} does not belong to an asset of the registry: fetch the asset and run the stage on it"
        )
    return name


def asset_file(item: File, name: str) -> str:
    """The file or folder that the registry calls `name`, of the asset that `item` belongs to."""
    asset = asset_of(item.path)
    return f"input/{asset}/{assets.entry(asset).files[name]}"


def _fetch(experiment: Experiment) -> Iterator[list[str]]:
    """One command for each asset that a stage read."""
    paths = [
        item.path for stage in experiment.record_files for item in experiment.record(stage).inputs.values()
    ]
    paths += [f"{model['path']}/" for model in experiment.record("data").settings["models"].values()]
    for name in dict.fromkeys(asset_of(path) for path in paths if path.startswith("input/")):
        yield ["assets", "fetch", "--asset", name, "--output", f"input/{name}"]


def _data(experiment: Experiment) -> Iterator[list[str]]:
    record = experiment.record("data")
    samples, original = record.inputs["samples"], asset_file(record.inputs["samples"], "original")
    processed, images = f"{experiment.data}/processed_data.jsonl", record.settings["images"]["path"]
    synthesize = [
        "data",
        "synthesize",
        "--recipe",
        record.inputs["recipe"].path,
        "--samples",
        samples.path,
        "--images",
        images,
    ]
    for name, model in record.settings["models"].items():
        synthesize += ["--model", f"{name}={model['path']}"]
    synthesize += ["--output", processed, "--removed", f"{experiment.data}/removed.jsonl"]
    yield [*synthesize, "--record", experiment.record_files["data"]]
    check = ["data", "check", "--samples", processed, "--images", images, "--original", original]
    tokens = ["--question-tokens", str(experiment.scale.question_tokens)]
    yield [*check, *tokens, "--output", f"{experiment.data}/check.json"]
    convert = [
        "data",
        "convert",
        processed,
        f"{experiment.data}/llava.json",
        "--to",
        "llava",
        "--original",
        original,
    ]
    yield [*convert, "--cap", str(experiment.scale.cap), *tokens]


def _evaluate(experiment: Experiment, benchmark: Benchmark) -> list[str]:
    record = experiment.record(benchmark.name)
    words = ["evaluate", benchmark.name, "--model", experiment.finetune]
    for name in benchmark.inputs:
        first = record.inputs[next(iter(benchmark.files))]
        path = asset_file(first, name) if name == benchmark.images else record.inputs[name].path
        words += [flag(name), path]
    if benchmark.instruction is not None:
        words += ["--prompt", record.settings["prompt"]]
    output = f"{experiment.results}/{benchmark.name}"
    return [*words, "--batch-size", str(record.settings["batch_size"]), "--output", output]
