"""Experiments that learn differently against one that trains plainly: differences over training seeds,
corrected for their number, and what each takes.

    snakemake output/reports/strategies.md --configfile workflow/config/strategies.yaml

Each measure is the mean over the seeds of the difference to the baseline with the same seed, with Student's
95 % interval. p is that of the paired t-test, corrected by Holm's method for the number of experiments, each
measure by itself; "better" and "worse" are said below 0.05. Seconds and memory are those that Snakemake noted
of both training commands; what the GPU held at its peak is monitor.jsonl's.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from scipy.stats import ttest_1samp

from toolkit.benchmarks import BENCHMARKS
from toolkit.contest.experiment import Absent, Experiment
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.evaluate.comparison import bounds, read_comparison, seeds_of
from toolkit.files import read_open_jsonl, write_json, write_text
from toolkit.intervals import of_few
from toolkit.seeds import run_name
from toolkit.tables import markdown as table

SCORE = "contest score"
STAGES = ("pretrain", "finetune")
LEVEL = 0.05


def learning(root: Path, comparison: Path) -> dict[str, Any]:
    """Every experiment of a compare.json of several seeds beside its baseline, from the files below `root`.
    UserError for one seed, or where experiments saw different numbers of rows."""
    compared, seeds, scores = over_seeds(comparison)
    baseline, experiments = compared["baseline"], compared["experiments"]
    costs = {name: cost(root, short(name), seeds) for name in (baseline, *experiments)}
    if len({taken["rows"] for taken in costs.values()}) > 1:
        seen = ", ".join(f"{name} {taken['rows']}" for name, taken in costs.items())
        raise UserError(
            f"the experiments trained on different numbers of rows: {seen}; use one recipe for all"
        )
    measures: dict[str, dict[str, list[float]]] = {}
    measures[SCORE] = {name: [score - 1 for score in scores[name]] for name in experiments}
    for benchmark, content in compared["benchmarks"].items():
        accuracies = {
            name: numpy.array(row["over_seeds"]["accuracies"]) for name, row in content["results"].items()
        }
        measures[benchmark] = {
            name: (accuracies[name] - accuracies[baseline]).tolist() for name in experiments
        }
    tested = {measure: differences(by_seed) for measure, by_seed in measures.items()}
    rows = {
        name: {"measures": {measure: tested[measure][name] for measure in tested}, "cost": costs[name]}
        for name in experiments
    }
    return {
        "baseline": baseline,
        "seeds": seeds,
        "rows": costs[baseline]["rows"],
        "cost": costs[baseline],
        "experiments": rows,
    }


def over_seeds(comparison: Path) -> tuple[dict[str, Any], list[int], dict[str, list[float]]]:
    """A compare.json, its training seeds, and each experiment's contest scores by seed, the baseline's 1.
    UserError for another file, for one of a single seed, and where the baseline scores nothing."""
    compared = read_comparison(comparison)
    seeds = seeds_of(compared)
    if len(seeds) < 2:
        raise UserError(f"{comparison} is of a single training seed: compare several (seeds: [1024, 1, …])")
    scores = {compared["baseline"]: [1.0] * len(seeds)}
    scores |= {name: row["over_seeds"]["scores"] for name, row in compared["score"].items()}
    if any(None in values for values in scores.values()):
        raise UserError(f"{comparison}: the baseline scores nothing with a seed, there is no ratio to it")
    return compared, seeds, scores


def differences(by_seed: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """By experiment: mean difference, interval, p corrected for the number of experiments, verdict."""
    p = corrected([p_value(values) for values in by_seed.values()])
    return {
        name: {
            "by_seed": values,
            "difference": float(numpy.mean(values)),
            "interval": of_few(values),
            "p": value,
            "verdict": "undecided" if value >= LEVEL else "better" if numpy.mean(values) > 0 else "worse",
        }
        for (name, values), value in zip(by_seed.items(), p, strict=True)
    }


def p_value(values: Sequence[float]) -> float:
    """Two-sided p of the t-test whether the mean is 0; 1 where all values are 0."""
    return float(ttest_1samp(values, 0.0).pvalue) if any(values) else 1.0


def corrected(values: Sequence[float]) -> list[float]:
    """p values by Holm's step-down method: the smallest times their number, the next times one less, …, none
    below one before it."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    result, largest = [1.0] * len(values), 0.0
    for number, place in enumerate(order):
        largest = max(largest, min(1.0, values[place] * (len(values) - number)))
        result[place] = largest
    return result


def cost(root: Path, experiment: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Rows that one run trains on in both stages, mean seconds over the seeds, and the largest peaks of
    memory. UserError where a file of a run is missing."""
    rows, seconds, host, gpu = set(), [], [], []
    for seed in seeds:
        run = Experiment.find(root, run_name(experiment, seed, seeds))
        try:
            records = [run.record(stage) for stage in STAGES]
        except Absent as absent:
            raise UserError(f"{absent} does not exist: train {run.name} first") from None
        rows.add(sum(record.results["steps"] * record.settings["global_batch"] for record in records))
        noted = [
            _benchmark(root, stage, Path(folder).name)
            for stage, folder in zip(STAGES, (run.pretrain, run.finetune), strict=True)
        ]
        seconds.append(sum(float(line["s"]) for line in noted))
        host += [float(line["max_rss"]) / 1024 for line in noted if line["max_rss"] not in ("-", "NA")]
        for folder in (run.pretrain, run.finetune):
            lines = read_open_jsonl(root / folder / "monitor.jsonl")
            gpu += [line["peak_gib"] for line in lines if "peak_gib" in line]
    if len(rows) > 1:
        raise UserError(f"{experiment} trained on different numbers of rows with its seeds: {sorted(rows)}")
    return {
        "rows": rows.pop(),
        "seconds": float(numpy.mean(seconds)),
        "host_gib": max(host, default=None),
        "gpu_gib": max(gpu, default=None),
    }


def _benchmark(root: Path, stage: str, run: str) -> dict[str, str]:
    """What Snakemake noted of a training command."""
    path = root / "output/benchmarks" / stage / f"{run}.tsv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))[-1]
    except (OSError, IndexError):
        raise UserError(f"{path} has no line: train {run} through snakemake, which times it") from None


def markdown(result: dict[str, Any]) -> str:
    """One line an experiment, the baseline's cost first, and how to read it."""
    measures = list(next(iter(result["experiments"].values()))["measures"])
    header = ["experiment"]
    for measure in measures:
        label = SCORE if measure == SCORE else BENCHMARKS[measure].measure
        header += [f"{label}: difference, 95 %", "p", ""]
    header += ["s", "host GiB", "GPU GiB"]
    rows = [[short(result["baseline"]), *[""] * 3 * len(measures), *_cost(result["cost"], result["cost"])]]
    for name, row in result["experiments"].items():
        cells = [short(name)]
        for measure, tested in row["measures"].items():
            digits = 4 if measure == SCORE else 2
            cells.append(f"{tested['difference']:+.{digits}f} ({bounds(tested['interval'], digits)})")
            cells += [f"{tested['p']:.3f}", tested["verdict"]]
        rows.append([*cells, *_cost(row["cost"], result["cost"])])
    note = (
        f"Training seeds {', '.join(map(str, result['seeds']))}; every run trains on {result['rows']} rows. "
        f"Differences to {short(result['baseline'])} with the same seed, Student's 95 % intervals; p of "
        f"the paired t-test, corrected for {counted(len(result['experiments']), 'experiment')} (Holm). s: "
        "both training stages, mean over the seeds; a resumed training counts from where it resumed."
    )
    return f"{table(header, rows)}\n{note}\n"


def short(name: str) -> str:
    """An experiment's name in the configuration, from that of its finetuning folder."""
    return name.partition("-Finetune-")[2] or name


def _cost(cost: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    memory = ["" if cost[key] is None else f"{cost[key]:.2f}" for key in ("host_gib", "gpu_gib")]
    return [f"{cost['seconds']:.0f} ({cost['seconds'] / baseline['seconds']:.2f} x)", *memory]


def write(result: dict[str, Any], output: Path, page: Path) -> None:
    """strategies.json and the table."""
    write_json(output, result)
    write_text(page, markdown(result))
