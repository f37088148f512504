"""The image-swap control: a sample of a benchmark's questions re-evaluated, each with another question's
image.

`python -m toolkit evaluate textvqa` and `... mmbench` write it as control.jsonl beside the scores. A line
carries the answer_id of the answer that the same question got with its own image. A model that looks at the
image answers many of them otherwise.
"""

import hashlib
import json
import random
from typing import Any

from toolkit.benchmarks.questions import Question, shuffle_images

FILE = "control.jsonl"
QUESTIONS = 100  # re-evaluated, or all if there are fewer
SEED = 1024  # of the sample and of the exchange of images


def places(count: int) -> list[int]:
    """Places, among `count` questions, of those that are re-evaluated: the same for every model."""
    return sorted(random.Random(SEED).sample(range(count), min(QUESTIONS, count)))


def exchanged(questions: list[Question]) -> list[Question]:
    """The questions at `places`, with images of others; UserError where all share one image."""
    shuffled = shuffle_images(questions, SEED)
    return [shuffled[place] for place in places(len(questions))]


def answer_text(row: dict[str, Any]) -> str:
    """An answer's text as two of them are compared."""
    return str(row["text"]).strip().lower()


def agreement(answers: list[dict[str, Any]], control: list[dict[str, Any]]) -> dict[str, int]:
    """`{questions, same}`: how many questions were re-evaluated, and how many of them got the same answer.
    Rows of answer files."""
    again = [answers[place] for place in places(len(answers))]
    return {
        "questions": len(again),
        "same": sum(
            answer_text(answer) == answer_text(swapped)
            for answer, swapped in zip(again, control, strict=True)
        ),
    }


def texts_sha256(answers: list[dict[str, Any]]) -> str:
    """SHA-256 over the texts alone: equal for two models that answer every question alike."""
    return hashlib.sha256(json.dumps([answer_text(row) for row in answers]).encode()).hexdigest()
