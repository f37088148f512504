"""ChartQA: questions about charts, half written by people, half by a program (Masry et al. 2022).

The rule is the relaxed accuracy of pix2struct's metrics.py (945f27e9), which Qwen-VL has too: two numbers are
equal within 5 % of the right one, in binary floating point; other texts are equal but for case. Nothing is
stripped. Questions are named human_N and augmented_N, N from 0 in their file.
"""

from contextlib import suppress
from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Judged, Label, Labelled, listed, parts
from toolkit.benchmarks.questions import Question
from toolkit.files import read_json

HALVES = ("human", "augmented")
TOLERANCE = 0.05
ENDING = "Answer the question with a single word."  # lmms-eval's; LLaVA and MGM have no ChartQA


def number(text: str) -> float | None:
    """The value of a text that Python reads as a number; with % after it, a hundredth."""
    with suppress(ValueError):
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    return None


def relaxed(text: str, right: str) -> bool:
    """Whether an answer counts as right."""
    value, target = number(text), number(right)
    if value is not None and target:  # a target of 0 is compared as text
        return abs(value - target) / abs(target) <= TOLERANCE
    return text.lower() == right.lower()


def percent(judged: list[Judged]) -> float:
    """The accuracy, rounded as there: the sum is multiplied by 100, not the mean."""
    return 100.0 * sum(answer.score for answer in judged) / len(judged)


class ChartQA(Labelled):
    """Both halves of the test split."""

    def entries(self, files: Files) -> dict[str, dict[str, Any]]:
        """The rows of both files, by the names of their questions."""
        return {
            f"{half}_{place}": row
            for half in HALVES
            for path in [files[f"chartqa_{half}"]]
            for place, row in enumerate(listed(read_json(path), path, "imgname", query=str, label=str))
        }

    def labels(self, files: Files) -> list[Label]:
        return [Label(key, row["label"], key.partition("_")[0]) for key, row in self.entries(files).items()]

    def asked(self, files: Files) -> list[Question]:
        return [
            Question({"question_id": key, "prompt": message}, message, row["imgname"])
            for key, row in self.entries(files).items()
            for message in [f"{row['query']}\n{ENDING}"]
        ]

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """The score and that of each half, in percent."""
        score = percent(judged)
        halves = {half: percent(answers) for half, answers in parts(judged).items()}
        return {"accuracy": score, "score": score, **halves}

    def judge(self, text: str, label: Label) -> float:
        return float(relaxed(text, label.right))


CHARTQA = ChartQA(
    name="chartqa",
    title="ChartQA",
    measure="ChartQA (relaxed accuracy)",
    files={f"chartqa_{half}": f"test_{half}.json" for half in HALVES},
    images="chartqa_images",
    image_folder="png",
    bounds=Bounds(distinct=20, top_share=0.5),
)
