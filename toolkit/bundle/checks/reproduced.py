"""E4: questions re-evaluated with the packed model. An answer that it does not give is fabricated.

    python -m toolkit bundle verify submit.zip --deep 200 --seed 7

Answers and image-swap control are judged apart, each by a sample that is drawn from a seed of the
reviewer's system: whoever made the archive cannot know which questions that will be. Decoding is greedy, so
an answer may differ only where another machine's rounding decides between two tokens.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.benchmarks.questions import Question
from toolkit.bundle.checks import answers
from toolkit.bundle.checks.inputs import files_of
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.evaluate import control
from toolkit.mgm.answer import Answerer
from toolkit.mgm.generate import ROUNDING

TIES = 0.03  # largest share of answers that rounding may have decided
SHARES = (1, 2, 5, 10)  # percent of forged answers for which the remarks say how many find them
CERTAINTY = 0.99
JUDGED = 20  # answers of a file that differ and are looked at: one that is not a near-tie decides
REMEDY = "delete the answers and evaluate again"


@dataclass(frozen=True)
class Sample:
    """How many answers of each file are re-evaluated (None: all), and the seed that they are drawn from."""

    count: int | None
    seed: int

    def places(self, name: str, total: int) -> list[int]:
        """Places among `total` answers of the file called `name`, sorted."""
        count = total if self.count is None else min(self.count, total)
        return sorted(random.Random(f"{self.seed} {name}").sample(range(total), count))


def needed(total: int, forged: int) -> int:
    """How many of `total` answers, drawn without replacement, hold one of `forged` with probability
    CERTAINTY: the hypergeometric distribution's chance of none."""
    missed = 1.0
    for drawn in range(total):
        if missed <= 1 - CERTAINTY + 1e-12:
            return drawn
        missed *= max(0, total - forged - drawn) / (total - drawn)
    return total


def reproduced(entry: Entry, model: Path, sample: Sample, remarks: list[str]) -> Iterator[Finding]:
    """The model in the folder `model` gives the answers that the files of `entry` state, with the questions'
    own images and with the exchanged ones."""
    # may be outside, so before loading
    evaluation = {benchmark: answers.questions(entry, benchmark) for benchmark in entry.answers}
    pictures = {benchmark: files_of(entry, benchmark) for benchmark in entry.benchmarks}
    answerer = Answerer(model)
    remarks.append(f"E4: {entry.name}: drawn with the seed {sample.seed}, --seed {sample.seed} repeats it")
    for benchmark, questions in evaluation.items():
        swapped = [questions, control.exchanged(questions)]
        for file, asked in zip((entry.answers[benchmark], entry.control(benchmark)), swapped, strict=True):
            places = sample.places(file, len(asked))
            rows = entry.rows(file)
            if len(rows) != len(asked):
                yield Finding("E4", file, f"{len(rows)} answers to {len(asked)} questions", REMEDY)
                continue
            load = entry.benchmarks[benchmark].load(pictures[benchmark], asked)
            chosen = [(asked[place], rows[place]) for place in places]
            yield from _judged(entry, benchmark, file, answerer, chosen, load, remarks)
            remarks.append(f"E4: {_power(len(asked))}")


def _judged(
    entry: Entry,
    benchmark: str,
    file: str,
    answerer: Answerer,
    chosen: list[tuple[Question, dict[str, Any]]],
    load: Any,
    remarks: list[str],
) -> Iterator[Finding]:
    """Answers to these questions: equal, or a near-tie of the model's logits."""
    asked, tokens = [question for question, _ in chosen], entry.benchmarks[benchmark].max_new_tokens
    generated = dict(
        answerer.stream(
            [question.message for question in asked],
            [question.image for question in asked],
            lambda number: load(asked[number]),
            tokens,
        )
    )
    differing = [number for number, (_, row) in enumerate(chosen) if generated[number] != row["text"]]
    # half precision rounds more, wherever it was used
    kinds = {entry.record(benchmark).device, answerer.device.type}
    tolerance = ROUNDING[torch.float32 if kinds == {"cpu"} else torch.float16]
    forged = [
        number
        for number in differing[:JUDGED]
        if not answerer.near(
            asked[number].message, load(asked[number]), chosen[number][1]["text"], tokens, tolerance
        )
    ]
    ties = len(differing) - len(forged)
    remarks.append(
        f"E4: {file}: {len(chosen) - len(differing)} of {len(chosen)} answers are reproduced, "
        f"{min(JUDGED, ties)} near-ties"
    )
    if forged:
        first = asked[forged[0]].head["question_id"]
        message = (
            f"{len(differing)} of {len(chosen)} answers are not the packed model's, the first is to question "
            f"{first}: {chosen[forged[0]][1]['text']!r}, it says {generated[forged[0]]!r}"
        )
        yield Finding("E4", file, message, REMEDY)
    elif ties > max(1, TIES * len(chosen)):
        message = f"{ties} of {len(chosen)} answers differ: more near-ties than rounding makes"
        yield Finding("E4", file, message, REMEDY)


def _power(total: int) -> str:
    """How large samples have to be."""
    shares = ", ".join(f"{share} %: {needed(total, math.ceil(total * share / 100))}" for share in SHARES)
    return f"a forged share is found with {CERTAINTY:.0%} probability by so many answers of {total}: {shares}"
