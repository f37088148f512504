"""OCRBench: 1,000 questions about text in images, from about thirty data sets (Liu et al. 2023).

The rule is that of Yuliang-Liu/MultimodalOCR's example.py (794c36d6): an answer has to contain the item's,
both in lower case, stripped, with a space for a line break; formulas (HME100k) keep their case and lose all
spaces. The number of right answers is quoted; an item without an answer is passed over.

In the official file some ids come with several data sets; an answer to such an item also needs
`dataset_name`.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import MISSING, Judged, Label, Labelled, listed, parts
from toolkit.benchmarks.questions import Question
from toolkit.errors import UserError
from toolkit.files import read_json

FORMULAS = "HME100k"


def plain(text: str, formula: bool) -> str:
    """A text as the official scorer compares it."""
    if formula:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


class OCRBench(Labelled):
    """OCRBench.json has both questions and answers."""

    def key(self, row: dict[str, Any]) -> Hashable:
        """(data set, id), or the id alone."""
        identifier = super().key(row)
        return (row["dataset_name"], identifier) if isinstance(row.get("dataset_name"), str) else identifier

    def by_key(self, labels: list[Label]) -> dict[Hashable, Label]:
        identifiers = Counter(label.key[1] for label in labels)  # type: ignore[index]  # see `labels`
        alone = {label.key[1]: label for label in labels if identifiers[label.key[1]] == 1}  # type: ignore[index]
        return super().by_key(labels) | alone

    def unlabelled(self, key: Hashable, known: Mapping[Hashable, Label]) -> str:
        pairs = (pair for pair in known if isinstance(pair, tuple))
        if datasets := [dataset for dataset, identifier in pairs if identifier == key]:
            return f"which {' and '.join(datasets)} have: add dataset_name"
        return super().unlabelled(key, known)

    def entries(self, files: Files) -> list[dict[str, Any]]:
        path = files["ocrbench_labels"]
        kinds: dict[str, Any] = {
            "dataset_name": str,
            "id": (int, str),
            "question": str,
            "answers": (str, list),
            "type": str,
        }
        rows = listed(read_json(path), path, "image_path", **kinds)
        for number, row in enumerate(rows, start=1):
            if not all(isinstance(answer, str) for answer in row["answers"]):
                raise UserError(f"{path}, question {number}: answers must be texts: take the official file")
        return rows

    def labels(self, files: Files) -> list[Label]:
        return [
            Label(
                (row["dataset_name"], row["id"]),
                row["answers"] if isinstance(row["answers"], list) else [row["answers"]],
                row["type"],
            )
            for row in self.entries(files)
        ]

    def asked(self, files: Files) -> list[Question]:
        return [
            Question(
                {"question_id": row["id"], "dataset_name": row["dataset_name"], "prompt": row["question"]},
                row["question"],
                row["image_path"],
            )
            for row in self.entries(files)
        ]

    def judge(self, text: str, label: Label) -> float:
        formula = label.key[0] == FORMULAS  # type: ignore[index]  # see `labels`
        return float(any(plain(right, formula) in plain(text, formula) for right in label.right))

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """The score is the number of right answers."""
        return {
            "score": int(sum(answer.score for answer in judged)),
            "types": {
                name: int(sum(answer.score for answer in answers)) for name, answers in parts(judged).items()
            },
        }


OCRBENCH = OCRBench(
    name="ocrbench",
    title="OCRBench",
    measure="OCRBench (accuracy)",
    files={"ocrbench_labels": "OCRBench.json"},
    images="ocrbench_images",
    image_folder="OCRBench_Images",
    head=("question_id", "dataset_name", "prompt"),
    tolerates=frozenset({MISSING}),
    bounds=Bounds(distinct=20, top_share=0.5),
)
