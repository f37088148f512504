"""ScienceQA: multiple choice from school books, half of it about an image (Lu et al. 2022).

The rule is that of LLaVA's eval_science_qa.py (c121f043): an answer is a letter, or a letter with a period, a
space and more, or holds "The answer is X" exactly once, with any character but a line break after the X.
Unanswered problems count as wrong over all and are left out of the accuracy on images; the last of several
answers counts. The model is asked the problems with an image.
"""

import re
from collections.abc import Iterator
from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import (
    MISSING,
    REPEATED,
    UNKNOWN,
    Judged,
    Label,
    Labelled,
    checked,
    listed,
    parts,
    share,
)
from toolkit.benchmarks.questions import LETTER, Question, name_problem
from toolkit.errors import UserError
from toolkit.files import read_json

LETTERS = "ABCDE"
SENTENCE = re.compile(r"The answer is ([A-Z]).")
MARKER = "<image>"  # in the prompt of an answer about an image


def letter(text: str) -> str:
    """The letter of an answer; empty where the official scorer finds none."""
    if text in tuple(LETTERS):
        return text
    if text[:1] in tuple(LETTERS) and text[1:3] == ". ":
        return text[0]
    matches = SENTENCE.findall(text)
    return matches[0] if len(matches) == 1 else ""


class ScienceQA(Labelled):
    """The test split."""

    def labels(self, files: Files) -> list[Label]:
        """part: whether the problem has an image. right: the letter, and how many there are."""
        problems, split = read_json(files["scienceqa_problems"]), read_json(files["scienceqa_splits"])
        identifiers = checked(split, str(files["scienceqa_splits"]), test=list)["test"]
        labels = []
        for identifier in identifiers:
            where = f"{files['scienceqa_problems']}, problem {identifier!r}"
            known = isinstance(problems, dict) and isinstance(identifier, str)
            row = problems.get(identifier) if known else None
            row = checked(row, where, answer=int, choices=list)
            if not 0 <= row["answer"] < min(len(row["choices"]), len(LETTERS)):
                raise UserError(f"{where}: the answer is none of its choices: take the official file")
            right = LETTERS[row["answer"]], LETTERS[: len(row["choices"])]
            labels.append(Label(identifier, right, "image" if row.get("image") else "text"))
        return labels

    def asked(self, files: Files) -> list[Question]:
        path = files[self.question_file]
        questions = []
        for number, row in enumerate(listed(read_json(path), path, id=str, conversations=list), start=1):
            where, turns = f"{path}, question {number}", row["conversations"]
            value = checked(turns[0] if turns else None, where, value=str)["value"]
            if "image" in row:
                if problem := name_problem(row["image"]):
                    raise UserError(f"{where}: {problem}")
                message = f"{value.replace(MARKER, '').strip()}\n{LETTER}"
                head = {"question_id": row["id"], "prompt": f"{MARKER}\n{message}"}
                questions.append(Question(head, message, row["image"]))
        return questions

    def question_of(self, row: dict[str, Any], instruction: str | None) -> Question:
        question = super().question_of(row, instruction)
        return Question(question.head, question.message.removeprefix(f"{MARKER}\n"), "")

    def judge(self, text: str, label: Label) -> float:
        right, letters = label.right
        return float(letter(text) == right and right in letters)

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """The score is the accuracy on problems with an image, in percent; `all`, where others were asked
        too, that on all."""
        images = [answer for answer in judged if answer.label.part == "image" and answer.row]
        others = {"all": 100.0 * share(judged)} if len(parts(judged)) > 1 else {}
        return {"score": 100.0 * share(images), **others, "images": len(images)}

    def breaks(self, judged: list[Judged]) -> Iterator[str]:
        for answer in judged:
            prompt = answer.row.get("prompt") if answer.row else ""
            if not isinstance(prompt, str):
                yield f"the answer to {answer.label.key} has no prompt"
            elif answer.row and (MARKER in prompt) != (answer.label.part == "image"):
                yield (
                    f"the prompt of the answer to {answer.label.key} and problems.json do not agree whether "
                    "there is an image"
                )
        if not any(answer.row and answer.label.part == "image" for answer in judged):
            yield "no problem with an image is answered"


SCIENCEQA = ScienceQA(
    name="scienceqa",
    title="ScienceQA",
    measure="ScienceQA (images)",
    max_new_tokens=1024,  # fixed in the official answering script
    files={
        "scienceqa_questions": "llava_test_CQM-A.json",
        "scienceqa_problems": "problems.json",
        "scienceqa_splits": "pid_splits.json",
    },
    question_file="scienceqa_questions",
    images="scienceqa_images",
    image_folder="images/test",
    tolerates=frozenset({MISSING, REPEATED, UNKNOWN}),
    bounds=Bounds(distinct=3, top_share=0.8),
)
