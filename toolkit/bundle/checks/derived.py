"""P3: what is made of other files of the entry is made again and compared, byte for byte: report, figure,
tables, configuration, licences, crate.

A reader believes a report before he reads a record, so nothing here is what the contestant wrote: only the
title and the reasons of exceptions are his words.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.bundle.checks.answers import COMPARISON
from toolkit.bundle.checks.exceptions import listed
from toolkit.bundle.checks.inputs import BASE, first_file
from toolkit.bundle.checks.training import LOG, lora_of
from toolkit.bundle.entry import CONFIG, Entry
from toolkit.bundle.findings import WARNING, Finding
from toolkit.bundle.papers import crate, sources
from toolkit.bundle.papers.sbom import sbom
from toolkit.config import STRATEGIES
from toolkit.contest import records
from toolkit.contest.experiment import Experiment
from toolkit.contest.records import Record
from toolkit.data.samples import row_problem
from toolkit.evaluate import compare
from toolkit.files import json_text
from toolkit.parse import LOGGED
from toolkit.report.figures import draw_losses_of_all, log
from toolkit.report.page import page

REPORTS = "output/reports"
FIGURE = f"{REPORTS}/losses.svg"
DRAWN = 10_000  # steps of a stage that are drawn: 665,000 instructions make 5,200
DRAWS = 500_000_000  # questions drawn by the bootstrap: 8 runs of both benchmarks, resampled 10,000 times


def consistent(entry: Entry) -> Iterator[Finding]:
    """P3."""
    yield from _configured(entry)
    yield from _compared(entry)
    makers: dict[str, Callable[[], str]] = {
        CONFIG: lambda: sources.config_text(entry.config),
        f"{REPORTS}/compare.md": lambda: compare.markdown(entry.json(COMPARISON)),
        f"{REPORTS}/report.md": lambda: _report(entry),
        f"{REPORTS}/licences.json": lambda: json_text(sources.licences(entry.config, entry.registry)),
        crate.FILE: lambda: json_text(crate.document(entry)),
    }
    for file, make in makers.items():
        # of the files that no rule requires each may be left out
        if file in entry.required() or entry.exists(file):
            yield from _same(entry, file, make().encode())
    yield from _packages(entry)
    yield from _checked(entry)


def _same(entry: Entry, file: str, expected: bytes) -> Iterator[Finding]:
    with entry.open(file) as handle:
        if handle.read(len(expected) + 1) != expected:
            message = "is not what the toolkit makes of the entry's records and scores"
            yield Finding("P3", file, message, f"delete it and build it again: snakemake {file}")


def _report(entry: Entry) -> str:
    config = entry.config
    pages: dict[str, Experiment] = {run.name: run for run in entry.runs}
    experiments = [pages[name] for name in config.experiments]
    return page(config.report.title, experiments, Path(FIGURE).name, listed(entry))


def _packages(entry: Entry) -> Iterator[Finding]:
    """The figure and the bill of materials: their bytes are those of the packages that an entry was made
    with; with others here they are shown as not compared."""
    same = {entry.record(stage).lock for stage in entry.record_files} == {records.lock()} != {None}
    for file, make in ((FIGURE, lambda: _figure(entry)), (f"{REPORTS}/sbom.cdx.json", _materials)):
        if file not in entry.required() and not entry.exists(file):
            continue
        for finding in _same(entry, file, make()):
            if same:
                yield finding
            else:
                message = "differs from what the packages here make, which are not those of the entry"
                yield Finding(
                    "P3", file, message, "compare it by eye, or in the entry's environment", severity=WARNING
                )


def _materials() -> bytes:
    return json_text(sbom()).encode()


def _figure(entry: Entry) -> bytes:
    pages: dict[str, Experiment] = {run.name: run for run in entry.runs}
    experiments = [pages[name] for name in entry.config.experiments]
    for run in experiments:
        for stage in ("pretrain", "finetune"):
            file = log(run, stage)
            lines = (
                run.path(file).read_bytes().splitlines() if run.length(file) <= LOG else [b""] * (DRAWN + 1)
            )
            if len(lines) > DRAWN or max(map(len, lines), default=0) > LOGGED:
                return b""  # T1 has said what is wrong with this log
    with tempfile.TemporaryDirectory() as folder:
        draw_losses_of_all(experiments, Path(folder) / "losses.svg")
        return (Path(folder) / "losses.svg").read_bytes()


def _compared(entry: Entry) -> Iterator[Finding]:
    """compare.json follows from the scores of all runs."""
    config, runs = entry.config, entry.runs
    again = f"snakemake --force {COMPARISON}"
    for run in runs:
        for benchmark in config.benchmarks:
            run.path(run.score(benchmark)), run.path(run.record_files[benchmark])  # copies of an archive's
    questions = sum(len(entry.json(run.score(name))["scores"]) for run in runs for name in config.benchmarks)
    if config.compare.resamples * questions > DRAWS:
        message = f"{config.compare.resamples} resamples of {questions} answers are more than are recomputed"
        yield Finding("P3", CONFIG, message, "use fewer resamples")
        return
    folders = [entry.root / run.results for run in runs if run.name in config.experiments]
    result = compare.compare(
        folders, config.compare.seed, config.compare.resamples, list(config.benchmarks), config.seeds
    )
    if not _near(entry.json(COMPARISON), result):
        message = "does not follow from the scores of the runs that it compares"
        yield Finding("E3", COMPARISON, message, again)


def _near(first: Any, second: Any) -> bool:
    """Equal but for the last bits of numbers, which depend on the machine."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_near(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_near, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)
    return type(first) is type(second) and first == second


def _configured(entry: Entry) -> Iterator[Finding]:
    """The configuration and the records of every run say the same."""
    config = entry.config
    stated = {"experiment": config.submit.experiment, "rules": config.submit.rules}
    for key, actual in {"experiment": entry.name, "rules": entry.rules.name}.items():
        if stated[key] != actual:
            message = f"submit.{key} is {stated[key]}, the entry is of {actual}"
            yield Finding("P3", CONFIG, message, "build the entry with this configuration")
    for problem in entry.rules.foreign(dict(config.assets)):
        yield Finding("P3", CONFIG, problem, "build the entry with an asset that the rules name")
    baseline = entry.runs[0].record("data")
    if baseline.settings["process"]:
        message = "the baseline's recipe chooses or changes rows: the score is not against the seed as it is"
        remedy = "compare with a baseline whose recipe has no step"
        yield Finding("P3", baseline.file, message, remedy, severity=WARNING)
    for run in entry.runs:
        for file, key, expected, actual in _settings(run):
            if expected != actual:
                message = f"{key} is {actual!r}, {CONFIG} says {expected!r}"
                yield Finding("P3", file, message, "build the entry with this configuration")


def _settings(run: Entry) -> Iterator[tuple[str, str, Any, Any]]:
    """(record, key, value in the configuration, value in the record) of one run."""
    config = run.config
    experiment = Path(run.data).name
    seed = config.seeds[0] if run.name == experiment else int(run.name.rpartition("-seed")[2])
    data, pretrain, finetune = (run.record(stage) for stage in ("data", "pretrain", "finetune"))
    yield (
        data.file,
        "recipe",
        f"solution/recipes/{config.experiments[experiment].recipe}.yaml",
        data.inputs["recipe"].path,
    )
    # beside the rows
    images = str(PurePosixPath(data.inputs["samples"].path).parent)
    yield data.file, "settings.images.path", images, data.settings["images"]["path"]
    for record in (pretrain, finetune):
        yield record.file, "settings.scale", config.scale, record.settings["scale"]
        yield record.file, "settings.seed", seed, record.settings["seed"]
        strategy = config.experiments[experiment].strategy
        stated = strategy if record.stage in STRATEGIES.get(strategy or "", ()) else None
        yield record.file, "settings.strategy", stated, record.settings.get("strategy")
    yield pretrain.file, "settings.base", config.pretrain.base, pretrain.settings.get("base", "full")
    teacher = finetune.inputs.get("teacher")
    taught_by = teacher and Path(teacher.path).parent.name.partition("-Finetune-")[2]
    yield finetune.file, "inputs.teacher", config.experiments[experiment].teacher, taught_by
    yield finetune.file, "settings.division", config.finetune.division, finetune.settings["division"]
    if config.finetune.division == "open":
        names = ("rank", "alpha", "dropout", "base")
        lora = lora_of(finetune)
        yield (
            finetune.file,
            "settings.lora",
            [
                config.finetune.lora_rank,
                config.finetune.lora_alpha,
                config.finetune.lora_dropout,
                config.finetune.base,
            ],
            [lora.get(name) for name in names],
        )
    roles = [("samples", data, "seed"), ("samples", finetune, "instruction")]
    roles += [(model, record, model) for record in (pretrain, finetune) for model in BASE]
    for name, record, role in roles:
        yield record.file, f"inputs.{name}", getattr(config.assets, role), _asset(record, name)
    for role, model in data.settings["models"].items():
        yield (
            data.file,
            f"settings.models.{role}",
            getattr(config.assets, role, None),
            Path(model["path"]).name,
        )
    for benchmark, asked in config.benchmarks.items():
        record = run.record(benchmark)
        prompt = asked.prompt or run.benchmarks[benchmark].instruction
        yield record.file, "settings.prompt", prompt, record.settings.get("prompt")
        for key, value in (
            ("decoding", "greedy"),
            ("max_new_tokens", run.benchmarks[benchmark].max_new_tokens),
        ):
            yield record.file, f"settings.{key}", value, record.settings.get(key)
        for name in run.benchmarks[benchmark].files:
            yield record.file, f"inputs.{name}", config.assets.evaluation, _asset(record, name)


def _asset(record: Record, name: str) -> str | None:
    """The asset that an input belongs to."""
    item = first_file(record, name)
    parts = item.path.split("/") if item else []
    return parts[1] if len(parts) > 2 and parts[0] == "input" else None


def _checked(entry: Entry) -> Iterator[Finding]:
    """check.json counts the rows and images that are there, and no problem."""
    file = f"{entry.data}/check.json"
    samples = f"{entry.data}/processed_data.jsonl"
    if not entry.exists(file) or entry.outside(samples):
        return
    rows = [row for _, _, row, _ in entry.lines(samples) if not row_problem(row)]
    expected = {"rows": len(rows), "images": len({row["images"][0] for row in rows}), "problems": []}
    value = entry.json(file)
    if value.keys() != {*expected, "set_aside", "outside"} or any(
        value[key] != expected[key] for key in expected
    ):
        yield Finding("P3", file, "does not count what is there", f"snakemake --force {file}")
