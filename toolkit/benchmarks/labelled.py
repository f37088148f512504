"""What the benchmarks share whose answers are judged one by one: each against a label, which is found by the
question's id and never by the place of a line.

    python -m toolkit evaluate score --benchmark gqa --questions DIR --answers answers.jsonl

An answer file that the official script ends on, or joins with the wrong labels, is refused in a sentence. A
benchmark says what its official script passes over (`tolerates`) and on which answers it ends (`breaks`).
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.benchmarks.base import Benchmark, Files
from toolkit.benchmarks.questions import (
    Load,
    Question,
    Reference,
    first_of,
    folder_images,
    is_key,
    keyed,
    load_questions,
    name_problem,
)
from toolkit.errors import UserError
from toolkit.files import read_jsonl

MISSING, REPEATED, UNKNOWN = "missing", "repeated", "unknown"  # what an official script may pass over


@dataclass(frozen=True)
class Label:
    """What an answer is judged by. key: of its question, see `Labelled.key`. part: of the benchmark that it
    belongs to. counts: whether it counts in the score."""

    key: Hashable
    right: Any
    part: str = ""
    counts: bool = True


@dataclass(frozen=True)
class Judged:
    """A label with the line that answers it (None: there is none) and the score of the answer, 0 to 1."""

    label: Label
    row: dict[str, Any] | None
    score: float

    @property
    def text(self) -> str:
        return self.row["text"] if self.row else ""


def share(judged: Iterable[Judged]) -> float:
    """The mean score, 0 to 1."""
    scores = [answer.score for answer in judged]
    return sum(scores) / len(scores)


def parts(judged: Iterable[Judged]) -> dict[str, list[Judged]]:
    """The answers by the part of the benchmark that they belong to, in the order of the labels."""
    groups: dict[str, list[Judged]] = {}
    for answer in judged:
        groups.setdefault(answer.label.part, []).append(answer)
    return groups


def checked(row: Any, where: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """An object of a label file; UserError unless it has these fields, with values of these kinds."""
    wrong = [
        field
        for field, kind in kinds.items()
        if not isinstance(row, dict)
        or not isinstance(row.get(field), kind)
        or (isinstance(row[field], bool) and kind is not bool)
    ]
    if wrong:
        raise UserError(f"{where} lacks {' and '.join(wrong)} of the right kind: take the official file")
    return row


def listed(rows: Any, path: Path, image: str = "", **kinds: type | tuple[type, ...]) -> list[dict[str, Any]]:
    """The list in a label file, its objects `checked`. image: the field with the name of an image."""
    if not isinstance(rows, list):
        raise UserError(f"{path} has no list of questions: take the official file")
    for number, row in enumerate(rows, start=1):
        checked(row, f"{path}, question {number}", **kinds)
        if image and (problem := name_problem(row.get(image))):
            raise UserError(f"{path}, question {number}: {problem}")
    return rows


def shown(key: Hashable) -> str:
    """A question's key in messages and in score.json."""
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)


@dataclass(frozen=True, kw_only=True)
class Labelled(Benchmark):
    """A benchmark of this kind. question_file: the one of `files` that LLaVA's questions are in."""

    max_new_tokens: int = 128  # default of LLaVA's answering script
    answer_file: str = "answers.jsonl"
    question_file: str = ""
    tolerates: frozenset[str] = frozenset()

    @abstractmethod
    def labels(self, files: Files) -> list[Label]:
        """Every label, in the order of the official file."""

    @abstractmethod
    def judge(self, text: str, label: Label) -> float:
        """The score of an answer, 0 to 1."""

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """`{score: the figure that papers quote, …}`: as a rule the mean in percent, with that of each
        part."""
        groups = {name: 100.0 * share(answers) for name, answers in parts(judged).items() if name}
        return {"score": 100.0 * share(judged), **groups}

    def key(self, row: dict[str, Any]) -> Hashable:
        """What names the question of an answer's line, or of a question's head; None for a line that names
        none."""
        return row["question_id"] if is_key(row.get("question_id")) else None

    def by_key(self, labels: list[Label]) -> dict[Hashable, Label]:
        """The labels by all keys that an answer's line may have; UserError for two labels with one key."""
        by_key = {label.key: label for label in labels}
        if len(by_key) < len(labels):
            counts = Counter(label.key for label in labels)
            raise UserError(
                f"{self.title} has two labels for question {shown(counts.most_common(1)[0][0])}: take the "
                "official files"
            )
        return by_key

    def unlabelled(self, key: Hashable, known: Mapping[Hashable, Label]) -> str:
        """Why no label has the key of an answer's line, as a clause. known: `by_key`."""
        return "which is not asked"

    def breaks(self, judged: list[Judged]) -> Iterator[str]:
        """A sentence for each reason for which the official script ends with an error on these answers."""
        yield from ()

    def asked(self, files: Files) -> list[Question]:
        """The questions as they are put to the model, without a look at the labels."""
        return load_questions(files[self.question_file])

    def questions(self, files: Files, instruction: str | None = None) -> list[Question]:
        """Labels that do not fit are found now, not after hours of answering."""
        labels, questions = self.by_key(self.labels(files)), self.asked(files)
        problems, seen = [], set()
        for question in questions:
            key = self.key(question.head)
            if key not in labels or key in seen:
                reason = "is asked twice" if key in seen else "has no label"
                problems.append(f"{self.title}, question {shown(key)} {reason}: take the official files")
            seen.add(key)
        if problems:
            raise UserError(first_of(problems))
        return questions

    def load(self, files: Files, questions: list[Question]) -> Load:
        return folder_images(files[self.images or ""], questions)

    def rows(
        self, labels: list[Label], answers: Path, tolerated: frozenset[str]
    ) -> tuple[dict[Hashable, dict], Counter[str]]:
        """The answer lines by the key of their label, of several the last, and how many were passed over as
        repeated or unknown; UserError for a fault of the file that is not `tolerated`."""
        known = self.by_key(labels)
        otherwise_written = {str(key): key for key in known}
        rows: dict[Hashable, dict] = {}
        passed_over: Counter[str] = Counter()
        problems = []
        for number, row in enumerate(read_jsonl(answers), start=1):
            where = f"{answers}, answer {number}"
            key = self.key(row) if isinstance(row, dict) else None
            label = known.get(key)
            if key is None or not isinstance(row.get("text"), str):
                problems.append(f"{where} does not name its question, or has no text")
            elif label is None and str(key) in otherwise_written:
                problems.append(
                    f"{where} is for question {key!r}, where {otherwise_written[str(key)]!r} is expected"
                )
            elif label is None:
                passed_over[UNKNOWN] += 1
                if UNKNOWN not in tolerated:
                    problems.append(f"{where} is for question {shown(key)}, {self.unlabelled(key, known)}")
            elif label.key in rows and REPEATED not in tolerated:
                problems.append(f"{where} answers question {shown(label.key)} a second time")
            else:
                passed_over.update([REPEATED] if label.key in rows else [])
                rows[label.key] = row
        if not problems and not rows:
            raise UserError(f"{answers} holds no answers")
        if MISSING not in tolerated:
            problems += [
                f"{answers} has no answer for question {shown(label.key)}"
                for label in labels
                if label.counts and label.key not in rows
            ]
        if problems:
            raise UserError(first_of(problems))
        return rows, passed_over

    def score(self, files: Files, answers: Path | None, complete: bool = True) -> dict[str, Any]:
        """As `Benchmark.score`, with `totals`. If the answers must be `complete`, the questions that are
        asked count; else all that have labels."""
        if answers is None:
            raise UserError(f"the answers to {self.title} are missing: name their file")
        labels = self.labels(files)
        if complete:
            asked = {self.key(question.head) for question in self.questions(files)}
            labels = [label for label in labels if label.key in asked]
        if not any(label.counts for label in labels):
            raise UserError(f"{self.title} has no question that counts: take the official files")
        rows, passed_over = self.rows(labels, answers, frozenset() if complete else self.tolerates)
        judged = [
            Judged(label, row, self.judge(row["text"], label) if row else 0.0)
            for label in labels
            if label.counts
            for row in [rows.get(label.key)]
        ]
        if not complete and (problems := list(self.breaks(judged))):
            raise UserError(f"{answers}: {first_of(problems)}")
        return {
            "accuracy": 100.0 * share(judged),
            "questions": len(judged),
            "empty": sum(answer.row is not None and not answer.text for answer in judged),
            "unanswered": sum(answer.row is None for answer in judged),
            **passed_over,
            **self.totals(judged),
            "scores": keyed(
                (shown(answer.label.key) for answer in judged), [answer.score for answer in judged]
            ),
        }

    def references(self, files: Files, questions: list[Question]) -> dict[str, Reference]:
        """The label of each question that counts; of a label of several values the first is the answer."""
        labels, judged = self.by_key(self.labels(files)), {}
        for place, question in enumerate(questions):
            label = labels[self.key(question.head)]
            right = label.right[0] if isinstance(label.right, tuple) else label.right
            if label.counts:
                texts = [str(text) for text in (right if isinstance(right, list) else [right])]
                judged[shown(label.key)] = Reference([place], texts, label.part)
        return judged

    def items(self, files: Files) -> tuple[dict[str, Path | bytes], dict[str, str]]:
        """Images alone: a short question with its short answer says nothing about a caption."""
        names = dict.fromkeys(question.image for question in self.asked(files))
        return {name: files[self.images or ""] / name for name in names}, {}
