"""The report: scores, data, training and merge of all experiments, every number from a record.

python -m toolkit report build --title "Raw against synthesized captions" --experiments baseline synth \\
    --output output/reports/report.md --losses output/reports/losses.svg
"""

from typing import Any

from toolkit.benchmarks import BENCHMARKS
from toolkit.contest.experiment import Absent, Experiment
from toolkit.errors import UserError
from toolkit.evaluate.comparison import bounds, checked, seeds_of
from toolkit.tables import markdown as table

COMPARISON = "output/reports/compare.json"
Table = tuple[list[str], list[list[Any]]]  # header and rows


def page(title: str, experiments: list[Experiment], figure: str, exceptions: list[list[str]]) -> str:
    """The page as Markdown; `figure` draws the losses, in the same folder; exceptions: id, file and reason of
    each. UserError if a record is missing."""
    try:
        sections = [
            ("Scores", scores(experiments)),
            ("Data", data(experiments)),
            ("Training", training(experiments, figure)),
            ("Merge", table(*merges(experiments))),
            ("Exceptions", excepted(exceptions)),
            ("How to reproduce", reproduction(experiments)),
        ]
    except Absent as absent:
        raise UserError(f"{absent} does not exist: build it first (snakemake {absent})") from None
    # one line, and no HTML, which an entry must not hold
    first = " ".join(title.split()).replace("<", "&lt;")
    return f"# {first}\n\n" + "\n".join(f"## {heading}\n\n{text}" for heading, text in sections)


def intervals(row: dict[str, Any], key: str, digits: int) -> str:
    """A row's interval over the questions, and the one over the seeds where there are several."""
    over = f"; over seeds {bounds(row['over_seeds'][key], digits)}" if "over_seeds" in row else ""
    return f"{bounds(row[key], digits)}{over}"


def scores(experiments: list[Experiment]) -> str:
    """Accuracies with their intervals, from compare.json."""
    comparison = checked(experiments[0].json(COMPARISON), COMPARISON)
    rows, again = [], []
    for benchmark, content in comparison["benchmarks"].items():
        name = BENCHMARKS[benchmark].measure
        for experiment in experiments:
            if experiment.model not in content["results"]:
                raise UserError(
                    f"{COMPARISON} does not know {experiment.model}: compare all experiments of the report"
                )
            result = content["results"][experiment.model]
            change = "baseline"
            if "difference" in result:
                between = intervals(result, "difference_interval", 2)
                change = f"{result['difference']:+.2f} ({between}), {result['verdict']}"
            interval = bounds(result["interval"], 2)
            rows.append(
                [name, content["questions"], experiment.name, f"{result['accuracy']:.2f}", interval, change]
            )
            # there is none where all questions share one image
            if control := experiment.record(benchmark).results.get("control"):
                again.append([name, experiment.name, control["questions"], control["same"]])
    header = [
        "benchmark",
        "questions",
        "experiment",
        "accuracy, %",
        "95 % interval",
        "difference to the baseline, points",
    ]
    names = {experiment.model: experiment.name for experiment in experiments}
    baseline = names.get(comparison["baseline"], comparison["baseline"])
    contest = []
    for model, row in comparison["score"].items():
        if row["score"] is None:
            score = "none, the baseline scores nothing"
        else:
            score = f"{row['score']:.4f} ({intervals(row, 'interval', 2)})"
        contest.append(
            f"Contest score of {names.get(model, model)}, the mean of its two ratios to {baseline}: {score}."
        )
    note = (
        f"Paired bootstrap over the questions, {comparison['resamples']} resamples, seed "
        f"{comparison['seed']}. These intervals speak of the choice of questions, not of training with "
        "another seed."
    )
    if seeds := seeds_of(comparison):
        note += (
            f" Accuracies, differences and scores are means over the training seeds "
            f"{', '.join(map(str, seeds))}; the intervals over seeds are Student's, of these means."
        )
    controls = table(["benchmark", "experiment", "re-evaluated with another image", "same answer"], again)
    return "\n".join([table(header, rows), *contest, "", note, "", controls])


def row_counts(experiments: list[Experiment]) -> Table:
    """Rows read, kept and trained on."""
    rows = []
    for experiment in experiments:
        results = experiment.record("data").results
        trained = experiment.record("pretrain").results["rows"]
        counts = [results[key] for key in ("read", "kept", "removed", "quarantined", "captions_changed")]
        near = len(experiment.json(f"{experiment.data}/contamination.json")["found"])
        rows.append([experiment.name, *counts, trained, near])
    header = [
        "experiment",
        "rows read",
        "kept",
        "removed",
        "quarantined",
        "captions changed",
        "rows trained on",
        "near evaluation items",
    ]
    return header, rows


def data(experiments: list[Experiment]) -> str:
    """Rows read, kept and removed by reason."""
    reasons = []
    for experiment in experiments:
        removed_by = experiment.record("data").results["removed_by"] or {"nothing": 0}
        reasons += [
            [experiment.name, operator, count]
            for operator, count in sorted(removed_by.items(), key=lambda pair: (-pair[1], pair[0]))
        ]
    removed = table(["experiment", "removed by", "rows"], reasons)
    return "\n".join([table(*row_counts(experiments)), removed])


def stages(experiments: list[Experiment]) -> Table:
    """Steps and losses of both training stages."""
    rows = []
    for experiment in experiments:
        for stage in ("pretrain", "finetune"):
            record = experiment.record(stage)
            results, settings = record.results, record.settings
            losses = [f"{results[key]:.4f}" for key in ("first_loss", "last_loss", "mean_loss")]
            label = stage if stage == "pretrain" else f"finetune, {experiment.division}"
            lora = settings.get("lora")
            base = (lora if isinstance(lora, dict) else settings).get("base", "full")
            if base != "full":
                label += f", base {base}"
            if "strategy" in settings:
                label += f", {settings['strategy']}"
            rows.append(
                [
                    experiment.name,
                    label,
                    results["rows"],
                    results["steps"],
                    settings["global_batch"],
                    settings["learning_rate"],
                    *losses,
                ]
            )
    header = [
        "experiment",
        "stage",
        "rows",
        "steps",
        "global batch",
        "peak learning rate",
        "first loss",
        "last loss",
        "mean loss",
    ]
    return header, rows


def training(experiments: list[Experiment], figure: str) -> str:
    """Steps and losses, and where the losses are drawn."""
    note = "Division closed is the kit's own recipe, full finetuning; division open is LoRA.\n"
    picture = f"![Loss of every step, faint, and the mean of the last fiftieth of the steps]({figure})\n"
    return "\n".join([table(*stages(experiments)), note, picture])


def merges(experiments: list[Experiment]) -> Table:
    """The proof of each merge."""
    rows = []
    for experiment in experiments:
        proof = experiment.record("merge").results
        difference = (
            "not applicable"
            if proof["max_logit_difference"] is None
            else f"{proof['max_logit_difference']:.2e}"
        )
        changed = f"{proof['tensors_changed']} of {proof['tensors_total']}"
        rows.append(
            [experiment.name, difference, f"{proof['tolerance']:g}", changed, proof["lora_tensors_left"]]
        )
    header = [
        "experiment",
        "largest logit difference to the adapter model",
        "tolerance",
        "tensors changed",
        "adapter tensors left",
    ]
    return header, rows


def excepted(exceptions: list[list[str]]) -> str:
    """What solution/exceptions.yaml admits to."""
    header = ["check", "file", "reason"]
    return table(header, exceptions) if exceptions else "None (solution/exceptions.yaml).\n"


def reproduction(experiments: list[Experiment]) -> str:
    """Which commands make all this again."""
    further = seeds_of(experiments[0].json(COMPARISON))[1:]
    named = ", ".join(f"`-seed{seed}`" for seed in further)
    which = f", of the first seed (the folders of the others end in {named})" if further else ""
    lines = [f"`snakemake submit.zip` builds everything that this page shows. The parts by hand{which}:", ""]
    for experiment in experiments:
        record = experiment.record("pretrain")
        lines.append(
            f"- {experiment.name}: scale {experiment.scale.name}, division {experiment.division}, seed "
            f"{record.settings['seed']}, device {record.device}, recipe "
            f"`{experiment.record('data').inputs['recipe'].path}`; scores in "
            f"{' and '.join(f'`{experiment.score(benchmark)}`' for benchmark in experiment.benchmarks)}"
        )
    lines += [
        "- `output/train.sh` holds every command of the experiment that is handed in, from the fetch to the "
        "scores",
        "",
    ]
    return "\n".join(lines)
