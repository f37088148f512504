"""DocVQA: questions about scanned documents (Mathew et al. 2021), validation split; the test split's answers
are not public.

The measure is ANLS, by the script of the Robust Reading Competition (infographicsvqa_eval.py, as kept in
QwenLM/Qwen-VL): one minus the edit distance in lower case and single spaces, divided by the length of the
longer text as it was in capitals; the best over the answers, 0 below one half.
"""

from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Label, Labelled, checked, listed
from toolkit.benchmarks.questions import SHORT, Question
from toolkit.errors import UserError
from toolkit.files import read_json

THRESHOLD = 0.5


def distance(first: str, second: str) -> int:
    """Levenshtein's: how many characters are put in, taken out or exchanged."""
    above = list(range(len(second) + 1))
    for row, character in enumerate(first, start=1):
        line = [row]
        for column, other in enumerate(second, start=1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (character != other)))
        above = line
    return above[-1]


def anls(text: str, answers: list[str]) -> float:
    """The score of an answer, 0 or 0.5 to 1."""

    def farness(answer: str) -> float:
        plain, own = (" ".join(words.strip().lower().split()) for words in (answer, text))
        length = max(len(answer.upper()), len(text.upper()))
        return distance(plain, own) / length if length else 0.0

    score = 1 - min(map(farness, answers))
    return score if score >= THRESHOLD else 0.0


class DocVQA(Labelled):
    """val_v1.0.json has both questions and answers."""

    def entries(self, files: Files) -> list[dict[str, Any]]:
        path = files["docvqa_labels"]
        data = checked(read_json(path), str(path), data=list, dataset_name=str)["data"]
        rows = listed(data, path, "image", questionId=int, question=str)
        for number, row in enumerate(rows, start=1):
            answers = row.get("answers")
            if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
                raise UserError(
                    f"{path}, question {number} has no list of answers (the test split has none: take the "
                    "validation split)"
                )
        return rows

    def labels(self, files: Files) -> list[Label]:
        return [Label(row["questionId"], row["answers"]) for row in self.entries(files)]

    def asked(self, files: Files) -> list[Question]:
        return [
            Question({"question_id": row["questionId"], "prompt": message}, message, row["image"])
            for row in self.entries(files)
            for message in [f"{row['question']}\n{SHORT}"]
        ]

    def judge(self, text: str, label: Label) -> float:
        return anls(text, label.right)


DOCVQA = DocVQA(
    name="docvqa",
    title="DocVQA",
    measure="DocVQA (ANLS)",
    files={"docvqa_labels": "val_v1.0.json"},
    images="docvqa_images",
    bounds=Bounds(distinct=20, top_share=0.5),
)
