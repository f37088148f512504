"""Experiments side by side on the same questions: paired bootstrap over the questions and, with several, the
spread over training seeds.

    python -m toolkit evaluate compare --results BASELINE_DIR DIR ... --seed 1 --resamples 10000 --output
    compare.json --markdown compare.md

A DIR is an experiment's folder below output/eval_results; the first is the baseline. Two intervals say two
things:

- over questions: they are drawn with replacement, the same questions for all experiments; the interval holds
  the middle 95 % of the resampled values. The unit of MMBench is the question with all its rotations. It
  speaks of the choice of questions, with the models as trained.
- over seeds (`--seeds 1024 7 8`: DIR, DIR-seed7, DIR-seed8): Student's 95 % interval of the mean over the
  seeds, of differences and ratios paired by seed. It speaks of training again with another seed, on these
  questions.

With several seeds accuracies, ratios and scores are means over them, and "better" or "worse" is said where
both intervals say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.contest.records import read_record
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.evaluate.comparison import bounds, number, seeds_of
from toolkit.files import read_json, write_json, write_text
from toolkit.intervals import Interval, middle, of_few, resampled_means
from toolkit.seeds import with_seed
from toolkit.tables import markdown as table

WITHOUT_EFFECT = ("device", "batch_size")  # settings of an evaluation that decide no answer


@dataclass(frozen=True)
class Score:
    """One experiment's. accuracy: percent. questions: score by question. texts: SHA-256 of the answers'
    texts. settings: that decide the answers beside model and questions."""

    accuracy: float
    questions: dict[str, float]
    texts: str
    settings: dict[str, Any]


def load_score(folder: Path, benchmark: str) -> Score:
    """The score of one experiment.

    UserError if score.json is missing or not from `evaluate`, or not the file that the record beside it
    lists.
    """
    path = folder / benchmark / "score.json"
    score = read_json(path)
    if (record := path.with_name("run.json")).exists():
        read_record(record, f"evaluate {benchmark}").output(path, "score")
    single = score.get("scores") if isinstance(score, dict) else None
    numbers = [score.get("accuracy"), *single.values()] if isinstance(single, dict) and single else [None]
    settings = score.get("settings", {}) if isinstance(score, dict) else None
    if (
        not all(type(number) in (int, float) for number in numbers)
        or not isinstance(score.get("texts"), str)
        or not isinstance(settings, dict)
    ):
        raise UserError(
            f"{path} lacks accuracy, scores by question, the texts' hash or settings: run `python -m toolkit "
            f"evaluate {benchmark}` again"
        )
    deciding = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    return Score(score["accuracy"], score["scores"], score["texts"], deciding)


def assert_asked_alike(baseline: Score, other: Score, names: tuple[Path, Path], benchmark: str) -> None:
    """UserError naming a question that only one of two experiments answered, or a setting in which their
    evaluations differ."""
    for key in sorted(baseline.settings.keys() | other.settings.keys()):
        values = baseline.settings.get(key), other.settings.get(key)
        if values[0] != values[1]:
            raise UserError(
                f"{names[0]} answered {benchmark} with {key} {values[0]!r}, {names[1]} with {values[1]!r}: "
                "evaluate both alike"
            )
    lone = sorted(baseline.questions.keys() ^ other.questions.keys())
    if lone:
        owner = names[0] if lone[0] in baseline.questions else names[1]
        raise UserError(
            f"{names[0]} and {names[1]} differ in {len(lone)} {benchmark} questions: only {owner} answered "
            f"{lone[0]!r}"
        )


def ratio(treatment: numpy.ndarray, baseline: numpy.ndarray) -> numpy.ndarray:
    """treatment / baseline; where the baseline scores nothing infinite, and 1 where neither scores."""
    neither = numpy.where(treatment > 0, numpy.inf, 1.0)
    return numpy.divide(treatment, baseline, out=neither, where=baseline > 0)


def verdict(intervals: Sequence[Interval], neutral: float) -> str:
    """What all intervals say against the value of "no difference"."""
    if all(low is not None and low > neutral for low, _ in intervals):
        return "better"
    return "worse" if all(high is not None and high < neutral for _, high in intervals) else "undecided"


@dataclass(frozen=True)
class Measured:
    """One benchmark. names: of the experiments, the baseline first. seeds: of their trainings.

    exact: accuracies in percent [experiments, seeds]. resampled: in percent [experiments, seeds, resamples].
    texts: SHA-256 of the answers' texts by experiment and seed.
    """

    names: list[str]
    seeds: list[int]
    questions: int
    exact: numpy.ndarray
    resampled: numpy.ndarray
    texts: list[list[str]]

    def over_seeds(self, row: int) -> dict[str, Any]:
        """What the seeds of an experiment say, for compare.json."""
        spread = {
            "seeds": self.seeds,
            "accuracies": self.exact[row].tolist(),
            "texts": self.texts[row],
            "interval": of_few(self.exact[row]),
        }
        if row:
            spread["difference_interval"] = of_few(self.exact[row] - self.exact[0])
        return spread

    def results(self) -> dict[str, Any]:
        """Rows of compare.json by experiment."""
        means, resampled = self.exact.mean(axis=1), self.resampled.mean(axis=1)
        rows = {}
        for row, name in enumerate(self.names):
            rows[name] = {"accuracy": float(means[row]), "interval": middle(resampled[row])}
            seeds = {"over_seeds": self.over_seeds(row)} if len(self.seeds) > 1 else {}
            if row:
                difference = middle(resampled[row] - resampled[0])
                value, interval = mean_ratio([self], row)
                intervals = [difference, *(spread["difference_interval"] for spread in seeds.values())]
                rows[name] |= {
                    "difference": float(means[row] - means[0]),
                    "difference_interval": difference,
                    "ratio": value,
                    "ratio_interval": interval,
                    "verdict": verdict(intervals, 0.0),
                }
            rows[name] |= {"texts": self.texts[row][0], **seeds}
        return rows


def measure(
    folders: list[Path], seeds: list[int], benchmark: str, resamples: int, generator: numpy.random.Generator
) -> Measured:
    """Load and resample one benchmark. UserError when the questions or how they were asked differ."""
    loaded = [[load_score(with_seed(folder, seed, seeds), benchmark) for seed in seeds] for folder in folders]
    first = loaded[0][0]
    for folder, runs in zip(folders, loaded, strict=True):
        for seed, score in zip(seeds, runs, strict=True):
            assert_asked_alike(first, score, (folders[0], with_seed(folder, seed, seeds)), benchmark)
    by_question = numpy.array(
        [[[float(score.questions[key]) for key in first.questions] for score in runs] for runs in loaded]
    )
    exact = numpy.array([[score.accuracy for score in runs] for runs in loaded], dtype=float)
    flat = resampled_means(by_question.reshape(-1, by_question.shape[-1]), resamples, generator)
    resampled = 100.0 * flat.reshape(*exact.shape, resamples)
    texts = [[score.texts for score in runs] for runs in loaded]
    names = [folder.resolve().name for folder in folders]
    return Measured(names, seeds, len(first.questions), exact, resampled, texts)


def ratios_by_seed(measured: list[Measured], row: int) -> list[float | None]:
    """An experiment's ratio to the baseline by seed, the mean over benchmarks; None with a seed for which the
    baseline scores nothing in one of them."""
    scored = numpy.all([benchmark.exact[0] > 0 for benchmark in measured], axis=0)
    ratios = numpy.mean([ratio(benchmark.exact[row], benchmark.exact[0]) for benchmark in measured], axis=0)
    return [float(value) if there else None for value, there in zip(ratios, scored, strict=True)]


def mean_ratio(measured: list[Measured], row: int) -> tuple[float | None, Interval]:
    """The mean over the seeds of `ratios_by_seed`, and its interval over the questions; (None, unbounded)
    where one seed has none."""
    by_seed = [value for value in ratios_by_seed(measured, row) if value is not None]
    if len(by_seed) < len(measured[0].seeds):
        return None, [None, None]
    resampled = [ratio(benchmark.resampled[row], benchmark.resampled[0]) for benchmark in measured]
    return float(numpy.mean(by_seed)), middle(numpy.mean(resampled, axis=(0, 1)))


def contest_score(measured: list[Measured]) -> dict[str, Any]:
    """By experiment: the mean of the ratios to the baseline over the contest's benchmarks; null where the
    baseline scores nothing."""
    names, seeds = measured[0].names, measured[0].seeds
    rows: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(names[1:], start=1):
        score, interval = mean_ratio(measured, row)
        intervals = [interval]
        rows[name] = {"score": score, "interval": interval}
        if len(seeds) > 1:
            scores = ratios_by_seed(measured, row)
            known = [value for value in scores if value is not None]
            intervals.append([None, None] if score is None else of_few(known))
            rows[name]["over_seeds"] = {"seeds": seeds, "scores": scores, "interval": intervals[1]}
        rows[name]["verdict"] = verdict(intervals, 1.0)
    return rows


def compare(
    folders: list[Path],
    seed: int,
    resamples: int,
    benchmarks: Sequence[str] = CONTEST,
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Compare each folder with the first. seeds: of the trainings; the folders' own is the first, see
    toolkit.seeds.

    UserError when the questions or how they were asked differ, there are fewer than two folders, or a
    benchmark of the contest is not among `benchmarks`.
    """
    names = [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise UserError(
            "--results needs the baseline's folder and at least one other, all of different names"
        )
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))} has a seed twice: one training is no spread")
    if absent := [name for name in CONTEST if name not in benchmarks]:
        raise UserError(f"--benchmarks lacks {' and '.join(absent)}, which the contest's score is made of")
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    result: dict[str, Any] = {
        "baseline": names[0],
        "experiments": names[1:],
        "seed": seed,
        "resamples": resamples,
        "confidence": 95,
    }
    ordered = [*CONTEST, *(name for name in BENCHMARKS if name in benchmarks and name not in CONTEST)]
    measured = {name: measure(folders, list(seeds), name, resamples, generator) for name in ordered}
    result["benchmarks"] = {
        name: {"questions": benchmark.questions, "results": benchmark.results()}
        for name, benchmark in measured.items()
    }
    result["score"] = contest_score([measured[name] for name in CONTEST])
    return result


def markdown(result: dict[str, Any]) -> str:
    """The comparison as tables: over questions, and over seeds where there are several."""
    rows = []
    for benchmark, content in result["benchmarks"].items():
        for name, row in content["results"].items():
            cells = [
                f"{BENCHMARKS[benchmark].measure}, {counted(content['questions'], 'question')}",
                name,
                number(row["accuracy"], 2),
            ]
            if name == result["baseline"]:
                cells += ["", "", "", "", "baseline"]
            else:
                cells += [
                    number(row["difference"], 2, "+"),
                    bounds(row["difference_interval"], 2),
                    number(row["ratio"], 4),
                ]
                cells += [bounds(row["ratio_interval"], 4), row["verdict"]]
            rows.append(cells)
    for name, row in result["score"].items():
        rows.append(
            [
                "Contest score",
                name,
                "",
                "",
                "",
                number(row["score"], 4),
                bounds(row["interval"], 4),
                row["verdict"],
            ]
        )
    header = [
        "benchmark",
        "experiment",
        "accuracy %",
        "difference",
        "interval",
        "ratio",
        "interval",
        "verdict",
    ]
    method = f"{result['resamples']} resamples, seed {result['seed']}"
    note = (
        f"95 % intervals by paired bootstrap over questions, {method}; the baseline is {result['baseline']}."
    )
    return "\n".join([table(header, rows), note, "", *over_seeds(result)])


def over_seeds(result: dict[str, Any]) -> list[str]:
    """The table of several seeds and its note, nothing for a single seed."""
    rows = []
    for benchmark, content in result["benchmarks"].items():
        for name, row in content["results"].items():
            if "over_seeds" in row:
                spread = row["over_seeds"]
                values = " ".join(number(value, 2) for value in spread["accuracies"])
                change = bounds(spread["difference_interval"], 2) if "difference_interval" in spread else ""
                rows.append(
                    [BENCHMARKS[benchmark].measure, name, values, bounds(spread["interval"], 2), change]
                )
    for name, row in result["score"].items():
        if "over_seeds" in row:
            spread = row["over_seeds"]
            values = " ".join(number(value, 4) for value in spread["scores"])
            rows.append(["Contest score", name, values, bounds(spread["interval"], 4), ""])
    if not rows:
        return []
    header = ["benchmark", "experiment", "by seed", "interval of the mean", "interval of the difference"]
    note = (
        f"Training seeds {', '.join(map(str, seeds_of(result)))}: Student's 95 % intervals of means over the "
        "seeds, differences paired by seed."
    )
    return [table(header, rows), note, ""]


def write_comparison(result: dict[str, Any], output: Path, markdown_file: Path | None) -> None:
    """Write the JSON and, if asked for, the Markdown."""
    write_json(output, result)
    if markdown_file:
        write_text(markdown_file, markdown(result))
