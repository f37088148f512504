"""E1, E2, E3: the answers of an entry made with the kit: complete, by a model that looks, what they score."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from toolkit.audit.submission import Submission
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.benchmarks.mmbench import LETTERS, ROTATION
from toolkit.bundle.findings import WARNING, Finding
from toolkit.contest.ruleset import Rules
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_lines
from toolkit.parse import Malformed, json_value

# questions of the contest's files: TextVQA's validation set, mmbench_dev_20230712 with its rotations
QUESTIONS = dict(zip(CONTEST, (5000, 4377), strict=True))
ROTATED = next(name for name in CONTEST if BENCHMARKS[name].further_files)  # and put into a table for upload
FEW = 100  # answers from which on they are judged
CHUNK = re.compile(r"\d+_\d+\.jsonl")  # what one of the kit's processes answered
LOT = 3.0  # standard deviations within which choices are as good as drawn
REMEDY = "run the kit's evaluation with the weights that are handed in, and compare"


@dataclass
class Answers:
    """A benchmark's answers. rows: the lines; file: where they stand."""

    benchmark: str
    file: str
    rows: list[dict[str, Any]]

    def texts(self) -> list[str]:
        return [str(row.get("text", "")).strip() for row in self.rows]


def read(submission: Submission, model: str) -> Iterator[Answers]:
    """The answers of a model to the contest's benchmarks; UserError for a line that is none."""
    for benchmark in QUESTIONS:
        folder = re.escape(f"output/eval_results/{model}/{benchmark}/")
        files = submission.names(rf"{folder}(?:answers/[^/]+/)?[^/]+\.jsonl")
        whole = [name for name in files if not CHUNK.fullmatch(name.rpartition("/")[2])]
        if files:
            file = (whole or files)[0]
            yield Answers(benchmark, file, list(_rows(submission, file)))


def _rows(submission: Submission, name: str) -> Iterator[dict[str, Any]]:
    for number, line in read_lines(submission.path(name)):
        try:
            row = json_value(line)
        except Malformed as error:
            raise UserError(f"{name}, line {number}: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}, line {number} is not an object with an answer")
        yield row


def complete(answers: Answers, rules: Rules) -> Iterator[Finding]:
    """E1: as many answers as questions, each question once, none empty beyond the bound, no mark of a
    simulation."""

    def finding(message: str, line: int | None = None, **more: Any) -> Finding:
        return Finding("E1", answers.file, message, REMEDY, line=line, **more)

    expected, rows = QUESTIONS[answers.benchmark], answers.rows
    if len(rows) != expected:
        yield finding(f"{len(rows)} answers, the benchmark has {expected} questions")
    keys = Counter((str(row.get("question_id")), str(row.get("prompt"))) for row in rows)
    if repeated := [key for key, count in keys.items() if count > 1]:
        times = counted(len(repeated), "question is", "questions are")
        yield finding(f"{times} answered more than once, first {repeated[0][0]}")
    empty = answers.texts().count("")
    if rows and empty / len(rows) > rules.bounds(answers.benchmark).empty_share:
        yield finding(f"{empty} of {len(rows)} answers are empty")
    for number, row in enumerate(rows, start=1):
        notes = str({key: value for key, value in row.items() if key not in ("prompt", "text", "options")})
        if marks := [marker for marker in rules.markers if marker in notes.lower()]:
            yield finding(f"the answer carries the mark {marks[0]!r} of a simulation", number)
            break


def varied(answers: Answers, rules: Rules) -> Iterator[Finding]:
    """E2: neither a few answers for all questions nor letters drawn by lot."""

    def finding(message: str, **more: Any) -> Finding:
        return Finding("E2", answers.file, message, REMEDY, **more)

    texts, bounds = [text.lower() for text in answers.texts()], rules.bounds(answers.benchmark)
    if len(texts) < FEW:
        return
    (answer, top), distinct = Counter(texts).most_common(1)[0], len(set(texts))
    if distinct < bounds.distinct:
        few = ", ".join(f"{text!r} ({count})" for text, count in Counter(texts).most_common(5))
        yield finding(
            f"{distinct} different answers to {len(texts)} questions, {bounds.distinct} are expected: {few}"
        )
    if top / len(texts) > bounds.top_share:
        yield finding(f"{top} of {len(texts)} answers are {answer!r}, at most {bounds.top_share:.0%} may be")
    if answers.benchmark == ROTATED and (by_lot := _by_lot(answers.rows)):
        yield finding(by_lot, severity=WARNING)


def _by_lot(rows: list[dict[str, Any]]) -> str | None:
    """Why the letters are as good as drawn: where there are four options all letters are as frequent, and the
    option that one stands for in one order says nothing of the next order. A weak model prefers a letter."""
    pairs, equal, chance, variance = 0, 0, 0.0, 0.0
    letters, by_question = Counter[str](), defaultdict(list)
    for row in rows:
        number, options, text = row.get("question_id"), row.get("options"), str(row.get("text", "")).strip()
        if isinstance(number, int) and isinstance(options, list) and text in LETTERS[: len(options)]:
            by_question[number % ROTATION].append((str(options[LETTERS.index(text)]), len(options)))
            letters[text] += len(options) == len(LETTERS)
    expected = letters.total() / len(LETTERS)
    if expected < FEW or any(
        abs(letters[letter] - expected) > LOT * math.sqrt(expected) for letter in LETTERS
    ):
        return None
    for choices in by_question.values():
        for (first, options), (second, _) in pairwise(choices):
            pairs, equal = pairs + 1, equal + (first == second)
            chance, variance = chance + 1 / options, variance + (1 / options) * (1 - 1 / options)
    if pairs < FEW or abs(equal - chance) > LOT * math.sqrt(variance):
        return None
    return (
        f"{equal} of {pairs} choices are the same option when the options are rotated, {chance:.0f} of "
        "letters drawn by lot would be"
    )


def same(mine: Answers, other: Answers) -> int:
    """Questions that two files answer with the same text."""
    texts = {
        (str(row.get("question_id")), str(row.get("prompt"))): str(row.get("text")) for row in other.rows
    }
    return sum(
        texts.get((str(row.get("question_id")), str(row.get("prompt")))) == str(row.get("text"))
        for row in mine.rows
    )


def copied(mine: Answers, other: Answers, name: str, rules: Rules) -> Iterator[Finding]:
    """E2: two models that were trained otherwise do not give the same answers."""
    count, limit = same(mine, other), rules.bounds(mine.benchmark).same_share
    if len(mine.rows) >= FEW and count / len(mine.rows) > limit:
        message = f"{count} of {len(mine.rows)} answers are those of {name}"
        yield Finding("E2", mine.file, message, REMEDY)


def assert_references(folder: Path) -> None:
    """UserError unless `folder` holds the official files of a benchmark, and all of each that it has."""
    present = [name for name in QUESTIONS if (folder / name).is_dir()]
    if not present:
        raise UserError(f"{folder} holds none of {', '.join(QUESTIONS)}: name the kit's folder eval_stage_1")
    for name in present:
        places = (
            ["*.tsv"]
            if name == ROTATED
            else [BENCHMARKS[name].files[file] for file in BENCHMARKS[name].scored_with]
        )
        for place in places:
            if not any((folder / name).glob(place)):
                raise UserError(f"{folder / name / place} is not there: name the kit's folder eval_stage_1")


def score(answers: Answers, references: Path, path: Path) -> float:
    """E3: percent, with the benchmark's official files in `references`; UserError for files or answers that
    the official scorer cannot join."""
    benchmark = BENCHMARKS[answers.benchmark]
    files = benchmark.official_files(references, path)
    return benchmark.score({name: files[name] for name in benchmark.scored_with}, path)["accuracy"]


def tables(submission: Submission, model: str) -> Iterator[tuple[str, list[Any]]]:
    """(file, predictions) of each table for upload; UserError for one that cannot be read."""
    from toolkit.benchmarks.upload import table_cells
    from toolkit.bundle.zip.archive import Bad
    from toolkit.bundle.zip.contents import Allowance, assert_plain_table

    folder = re.escape(f"output/eval_results/{model}/{ROTATED}/")
    for name in submission.names(rf"{folder}(?:[^/]+/)*[^/]+\.xlsx"):
        path = submission.path(name)
        try:
            assert_plain_table(path, Allowance(submission.sizes[name]))
        except Bad as bad:
            raise UserError(f"{name} {bad}") from None
        sheets = table_cells(path)
        header, *rows = sheets[0] if sheets and sheets[0] else [()]
        columns = [cell[1] for cell in header]
        place = columns.index("prediction") if "prediction" in columns else None
        yield name, [row[place][1] for row in rows] if place is not None else []


def uploaded(name: str, predictions: list[Any], answers: Answers | None) -> Iterator[Finding]:
    """E1: a table for upload has a prediction in each row, those of the answers."""
    given = [str(value) for value in predictions if value not in (None, "")]
    if len(given) < len(predictions) or not predictions:
        message = f"{len(given)} of {len(predictions)} rows have a prediction"
        yield Finding("E1", name, message, REMEDY)
    elif answers and Counter(given) != Counter(answers.texts()):
        yield Finding("E3", name, f"its predictions are not the answers of {answers.file}", REMEDY)
