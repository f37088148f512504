"""Experiments side by side on the same questions, with paired bootstrap intervals.

    python -m toolkit evaluate compare --results BASELINE_DIR DIR ... --seed 1 --resamples 10000 --output compare.json --markdown compare.md

A DIR is an experiment's folder below output/eval_results; the first one is the baseline. Questions are drawn with replacement, the same
ones for both experiments; the interval holds the middle 95 % of the resampled values. The unit of MMBench is the question with all its
rotations. The intervals speak of the choice of questions alone, not of training with another seed.
"""

from pathlib import Path
from typing import Any

import numpy

from toolkit.errors import UserError
from toolkit.files import read_json, write_json, write_text
from toolkit.record import read_record

BENCHMARKS = ("textvqa", "mmbench")
TITLES = {"textvqa": "TextVQA", "mmbench": "MMBench (circular)", "score": "Contest score"}
PERCENTILES = (2.5, 97.5)


def load_scores(folder: Path, benchmark: str) -> tuple[float, dict[str, float], str]:
    """(accuracy in percent, `{question: score}`, SHA-256 of the answers' texts) of one experiment.

    UserError if score.json is missing or not from `evaluate`, or not the file that the record beside it lists.
    """
    path = folder / benchmark / "score.json"
    score = read_json(path)
    if (record := path.with_name("run.json")).exists():
        read_record(record, f"evaluate {benchmark}").output(path, "score")
    single = score.get("scores") if isinstance(score, dict) else None
    numbers = [score.get("accuracy"), *single.values()] if isinstance(single, dict) and single else [None]
    if not all(type(number) in (int, float) for number in numbers) or not isinstance(score.get("texts"), str):
        raise UserError(f"{path} lacks accuracy, scores by question or the texts' hash: run `python -m toolkit evaluate {benchmark}` again")
    return score["accuracy"], score["scores"], score["texts"]


def assert_same_questions(baseline: dict[str, float], other: dict[str, float], names: tuple[Path, Path], benchmark: str) -> None:
    """UserError naming a question that only one of two experiments answered."""
    lone = sorted(baseline.keys() ^ other.keys())
    if lone:
        owner = names[0] if lone[0] in baseline else names[1]
        raise UserError(f"{names[0]} and {names[1]} differ in {len(lone)} {benchmark} questions: only {owner} answered {lone[0]!r}")


def interval(values: numpy.ndarray) -> list[float | None]:
    """The middle 95 % of resampled values; an unbounded end is null."""
    return [float(bound) if numpy.isfinite(bound) else None for bound in numpy.percentile(values, PERCENTILES, method="nearest")]


def ratio(treatment: numpy.ndarray, baseline: numpy.ndarray) -> numpy.ndarray:
    """treatment / baseline, infinite where the baseline scores nothing."""
    return numpy.divide(treatment, baseline, out=numpy.full_like(treatment, numpy.inf), where=baseline > 0)


def verdict(bounds: list[float | None], neutral: float) -> str:
    """What an interval says against the value of "no difference"."""
    low, high = bounds
    if low is None or low > neutral:
        return "better"
    return "worse" if high is not None and high < neutral else "undecided"


def resampled_means(scores: numpy.ndarray, resamples: int, generator: numpy.random.Generator) -> numpy.ndarray:
    """Percent means [experiments, resamples] of scores [experiments, questions], every experiment on the same drawn questions."""
    questions = scores.shape[1]
    means = [scores[:, generator.integers(questions, size=questions)].mean(axis=1) for _ in range(resamples)]
    return 100.0 * numpy.array(means).T


def summarise(names: list[str], exact: numpy.ndarray, drawn: numpy.ndarray) -> dict[str, Any]:
    """Rows of one benchmark. exact [experiments]: accuracies in percent; drawn [experiments, resamples]."""
    rows = {names[0]: {"accuracy": float(exact[0]), "interval": interval(drawn[0])}}
    ratios = ratio(exact, numpy.full_like(exact, exact[0]))
    for row, name in enumerate(names[1:], start=1):
        difference = interval(drawn[row] - drawn[0])
        rows[name] = {
            "accuracy": float(exact[row]),
            "interval": interval(drawn[row]),
            "difference": float(exact[row] - exact[0]),
            "difference_interval": difference,
            "ratio": float(ratios[row]) if numpy.isfinite(ratios[row]) else None,
            "ratio_interval": interval(ratio(drawn[row], drawn[0])),
            "verdict": verdict(difference, 0.0),
        }
    return rows


def compare(folders: list[Path], seed: int, resamples: int) -> dict[str, Any]:
    """Compare each folder with the first. UserError when the question sets differ or there are fewer than two folders.

    The contest's score is the mean of both ratios to the baseline; null where the baseline scores nothing.
    """
    names = [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise UserError("--results needs the baseline's folder and at least one other, all of different names")
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    result = {"baseline": names[0], "experiments": names[1:], "seed": seed, "resamples": resamples, "confidence": 95, "benchmarks": {}}
    exact_ratios, drawn_ratios = [], []
    for benchmark in BENCHMARKS:
        accuracies, by_folder, texts = zip(*(load_scores(folder, benchmark) for folder in folders), strict=True)
        for folder, scores in zip(folders, by_folder, strict=True):
            assert_same_questions(by_folder[0], scores, (folders[0], folder), benchmark)
        scores = numpy.array([[float(own[key]) for key in by_folder[0]] for own in by_folder])
        exact = numpy.array(accuracies, dtype=float)
        drawn = resampled_means(scores, resamples, generator)
        rows = {name: row | {"texts": digest} for (name, row), digest in zip(summarise(names, exact, drawn).items(), texts, strict=True)}
        result["benchmarks"][benchmark] = {"questions": scores.shape[1], "results": rows}
        exact_ratios.append(ratio(exact, numpy.full_like(exact, exact[0])))
        drawn_ratios.append(ratio(drawn, numpy.broadcast_to(drawn[0], drawn.shape)))
    mean, means = numpy.mean(exact_ratios, axis=0), numpy.mean(drawn_ratios, axis=0)
    result["score"] = {
        name: {
            "score": float(mean[row]) if numpy.isfinite(mean[row]) else None,
            "interval": interval(means[row]),
            "verdict": verdict(interval(means[row]), 1.0),
        }
        for row, name in enumerate(names[1:], start=1)
    }
    return result


def bounds(pair: list[float | None], digits: int) -> str:
    """An interval as text."""
    return " to ".join("unbounded" if value is None else f"{value:.{digits}f}" for value in pair)


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number as text; a ratio to zero has none."""
    return "none" if value is None else f"{value:{sign}.{digits}f}"


def markdown(result: dict[str, Any]) -> str:
    """The comparison as a table."""
    lines = [
        "| benchmark | experiment | accuracy % | difference | interval | ratio | interval | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for benchmark, content in result["benchmarks"].items():
        for name, row in content["results"].items():
            cells = [f"{TITLES[benchmark]}, {content['questions']} questions", name, number(row["accuracy"], 2)]
            if name == result["baseline"]:
                cells += ["", "", "", "", "baseline"]
            else:
                cells += [number(row["difference"], 2, "+"), bounds(row["difference_interval"], 2), number(row["ratio"], 4)]
                cells += [bounds(row["ratio_interval"], 4), row["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    for name, row in result["score"].items():
        cells = [TITLES["score"], name, "", "", "", number(row["score"], 4), bounds(row["interval"], 4), row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    how = f"{result['resamples']} resamples, seed {result['seed']}"
    note = f"95 % intervals by paired bootstrap over questions, {how}; the baseline is {result['baseline']}."
    return "\n".join([*lines, "", note, ""])


def write_comparison(result: dict[str, Any], output: Path, table: Path | None) -> None:
    """Write the JSON and, if asked for, the markdown."""
    write_json(output, result)
    if table:
        write_text(table, markdown(result))
