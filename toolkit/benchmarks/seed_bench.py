"""SEED-Bench, version 1: multiple choice about images (types 1 to 9) and frames of videos (types 10 to 12; Li
et al. 2023).

The rule is that of LLaVA's convert_seed_for_submission.py (c121f043): the answer is the letter and nothing
else. A question about an image is named by an integer there; SEED-Bench.json has it as a text, and answers
that do too would all be wrong without a word.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Judged, Label, Labelled, checked, listed, parts, share
from toolkit.errors import UserError
from toolkit.files import read_json


class SeedBench(Labelled):
    """Images and, where the question file has them, frames of videos."""

    def labels(self, files: Files) -> list[Label]:
        """part: the question's type. right: the letter, and whether it is about an image."""
        path = files["seed_labels"]
        data = checked(read_json(path), str(path), questions=list, question_type=dict)
        types = {number: name for name, number in data["question_type"].items() if isinstance(number, int)}
        kinds: dict[str, Any] = {
            "question_id": (str, int),
            "answer": str,
            "data_type": str,
            "question_type_id": int,
        }
        labels = []
        for number, row in enumerate(listed(data["questions"], path, **kinds), start=1):
            key = row["question_id"]
            with suppress(ValueError):  # "v12", about a video, stays a text
                key = int(key)
            if row["question_type_id"] not in types:
                raise UserError(
                    f"{path}, question {number} has a type without a name: take the official file"
                )
            right = row["answer"], row["data_type"] == "image"
            labels.append(Label(key, right, types[row["question_type_id"]]))
        return labels

    def judge(self, text: str, label: Label) -> float:
        return float(text == label.right[0])

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """The score is the accuracy on images, in percent; `all` that on all questions."""
        images = [answer for answer in judged if answer.label.right[1]]
        if not images:
            raise UserError(f"no question of {self.title} is about an image: take the official files")
        types = {name: 100.0 * share(answers) for name, answers in parts(judged).items()}
        others = {"all": 100.0 * share(judged)} if len(images) < len(judged) else {}
        return {"score": 100.0 * share(images), **others, "types": types}

    def breaks(self, judged: list[Judged]) -> Iterator[str]:
        for name, answers in parts(judged).items():
            if not any(answer.score for answer in answers):
                yield f"no answer of the type {name} is right, and the official script ends there"


SEED_BENCH = SeedBench(
    name="seed_bench",
    title="SEED-Bench",
    measure="SEED-Bench (accuracy)",
    files={"seed_questions": "llava-seed-bench.jsonl", "seed_labels": "SEED-Bench.json"},
    question_file="seed_questions",
    images="seed_images",
    bounds=Bounds(distinct=3, top_share=0.8),
)
