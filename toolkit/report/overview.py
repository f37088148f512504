"""One page over all experiments of a configuration, for a browser, without network: scores, every answer,
data, training, time, merge and the records behind them.

    python -m toolkit report overview --config output/reports/config.yaml --output output/reports/index.html

Every number is read from a record, a log or compare.json. It is not packed: memory, speed and seconds differ
from run to run, and an entry holds no page that a browser would run (S6).
"""

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Files
from toolkit.config import Config
from toolkit.contest.experiment import Absent, Experiment
from toolkit.contest.stages import EVALUATED, TRAINED, Stage
from toolkit.errors import UserError
from toolkit.evaluate.comparison import bounds, checked, number
from toolkit.pages import script_source
from toolkit.report.answers import browsed
from toolkit.report.figures import panels
from toolkit.report.page import COMPARISON, merges, row_counts, stages
from toolkit.seeds import run_name

TEMPLATE = Path(__file__).with_name("overview.html.j2")
Times = list[tuple[str, int, float, float]]  # rule, runs, predicted and actual seconds


def runs_of(config: Config, root: Path = Path()) -> list[Experiment]:
    """All training runs of a configuration: the experiments with the first seed, the baseline's first, then
    those with further seeds. UserError for one that was not trained."""
    names = sorted(config.experiments, key=lambda name: name != config.compare.baseline)
    return [
        Experiment.find(root, run_name(name, seed, config.seeds)) for seed in config.seeds for name in names
    ]


def overview(
    config: Config,
    runs: list[Experiment],
    files: Mapping[str, Files],
    times: Times,
    exceptions: list[list[str]],
    beside: Path,
) -> str:
    """The page as HTML. runs: as `runs_of` gives them. files: of each benchmark. exceptions: id, file and
    reason of each. beside: the page's folder, from which its links lead. UserError if a record is missing."""
    experiments = runs[: len(config.experiments)]

    def link(file: str) -> str:
        return os.path.relpath(file, beside)

    try:
        values = {
            "title": config.report.title,
            "facts": facts(config, experiments),
            "scores": scores(experiments),
            "counts": row_counts(experiments),
            "funnels": [(each, each.record("data").results["funnel"]) for each in experiments],
            "stages": stages(runs),
            "panels": [(title, data_address(svg)) for title, svg in panels(runs)],
            "times": times,
            "merges": merges(runs),
            "exceptions": exceptions,
            "flow": flow(runs, link),
            "records": [(run, [run.record(stage) for stage in run.record_files]) for run in runs],
            "answers": browsed(experiments, files, beside),
        }
    except Absent as absent:
        raise UserError(f"{absent} does not exist: build it first (snakemake {absent})") from None
    return rendered(values | {"link": link, "seeds": config.seeds, "comparison": COMPARISON})


def rendered(values: dict[str, Any]) -> str:
    """The template filled in. Every text is escaped; `answers` cannot end the element it stands in."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["grouped"] = lambda value: f"{value:,}" if isinstance(value, int) else value
    digest = script_source(TEMPLATE.read_text(encoding="utf-8"))
    return environment.get_template(TEMPLATE.name).render(values, script_hash=digest)


def data_address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def facts(config: Config, experiments: list[Experiment]) -> list[tuple[str, str]]:
    """What the page is about, in a line."""
    devices = {
        experiment.record(stage).device for experiment in experiments for stage in experiment.record_files
    }
    return [
        ("model", f"MGM-{experiments[0].size}"),
        ("scale", config.scale),
        ("finetuning", {"open": "LoRA (open)", "closed": "full (closed)"}[config.finetune.division]),
        ("seeds" if len(config.seeds) > 1 else "seed", ", ".join(map(str, config.seeds))),
        ("computed on", ", ".join(sorted(devices))),
        ("handed in", config.submit.experiment),
    ]


def scores(experiments: list[Experiment]) -> dict[str, Any]:
    """What compare.json says, with verdicts in words. UserError where it lacks an experiment."""
    comparison = checked(experiments[0].json(COMPARISON), COMPARISON)
    names = {experiment.model: experiment.name for experiment in experiments}
    if absent := names.keys() - {comparison["baseline"], *comparison["experiments"]}:
        raise UserError(f"{COMPARISON} does not know {min(absent)}: compare all experiments of the page")
    baseline = names.get(comparison["baseline"], comparison["baseline"])
    benchmarks = []
    for benchmark, content in comparison["benchmarks"].items():
        rows = [
            {
                "name": names.get(model, model),
                "accuracy": row["accuracy"],
                "shown": number(row["accuracy"], 2),
                "interval": row["interval"],
                "bounds": bounds(row["interval"], 2),
                "difference": number(row["difference"], 2, "+") if "difference" in row else None,
                "intervals": intervals(row, "difference_interval", 2),
                "verdict": row.get("verdict"),
                "words": words(row, baseline) if "verdict" in row else "",
            }
            for model, row in content["results"].items()
        ]
        benchmarks.append(
            {"title": BENCHMARKS[benchmark].measure, "questions": content["questions"], "rows": rows}
        )
    contest = [
        {
            "name": names.get(model, model),
            "score": number(row["score"], 2),
            "intervals": intervals(row, "interval", 2),
            "verdict": row["verdict"],
            "words": words(row, baseline),
        }
        for model, row in comparison["score"].items()
    ]
    return {
        "baseline": baseline,
        "benchmarks": benchmarks,
        "contest": contest,
        "resamples": comparison["resamples"],
        "seed": comparison["seed"],
    }


def intervals(row: dict[str, Any], key: str, digits: int) -> list[tuple[str, str]]:
    """(over what, bounds) of a row's intervals: over the questions, and over the seeds where there are
    several."""
    spread = row.get("over_seeds", {})
    over = {"questions": row.get(key), "seeds": spread.get("interval" if key == "interval" else key)}
    return [(name, bounds(pair, digits)) for name, pair in over.items() if pair]


def words(row: dict[str, Any], baseline: str) -> str:
    """A verdict as a sentence."""
    several = "over_seeds" in row
    subject, verb = ("both 95 % intervals", "lie") if several else ("the 95 % interval", "lies")
    if row["verdict"] == "undecided":
        subject = "one of the 95 % intervals" if several else subject
        return f"Undecided: {subject} does not exclude that it equals {baseline}."
    side = {"better": "above", "worse": "below"}[row["verdict"]]
    return f"{row['verdict'].capitalize()} than {baseline}: {subject} {verb} wholly {side}."


def flow(runs: list[Experiment], link: Callable[[str], str]) -> list[list[dict[str, Any]]]:
    """The stages in running order, those that do not wait for each other together, each with what it left
    behind in every run."""

    def step(stage: Stage) -> dict[str, Any]:
        file = stage.record or "{data}/llava.json"  # the conversion leaves no record
        return {
            "name": stage.name,
            "did": stage.did,
            "results": [(run.name, link(run.file(file))) for run in runs],
        }

    evaluated = [step(stage) for stage in EVALUATED if stage.name in runs[0].benchmarks]
    compared = {
        "name": "compare",
        "did": "compared the experiments on the same questions",
        "results": [("all", link(COMPARISON))],
    }
    return [*([step(stage)] for stage in TRAINED), evaluated, [compared]]
