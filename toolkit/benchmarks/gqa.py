"""GQA: questions about relations in a scene, answered in a word (Hudson and Manning 2019), testdev-balanced.

The rule is that of LLaVA's convert_gqa_for_eval.py (c121f043), which takes all trailing periods off and makes
the rest lower case, and of GQA's eval.py: equality with the answer, on balanced questions.
"""

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Label, Labelled, checked
from toolkit.errors import UserError
from toolkit.files import read_json


class Gqa(Labelled):
    """The balanced questions of a question file that may hold others."""

    def labels(self, files: Files) -> list[Label]:
        """part: "open" for questions that query, else "binary"."""
        path = files["gqa_labels"]
        questions = read_json(path)
        if not isinstance(questions, dict):
            raise UserError(f"{path} is not an object of questions by id: take the official file")
        labels = []
        for identifier, row in questions.items():
            where = f"{path}, question {identifier}"
            checked(row, where, answer=str, isBalanced=bool, types=dict)
            structure = checked(row["types"], where, structural=str)["structural"]
            part = "open" if structure == "query" else "binary"
            labels.append(Label(identifier, row["answer"], part, row["isBalanced"]))
        return labels

    def judge(self, text: str, label: Label) -> float:
        return float(text.rstrip(".").lower() == label.right)


GQA = Gqa(
    name="gqa",
    title="GQA",
    measure="GQA (accuracy)",
    files={
        "gqa_questions": "llava_gqa_testdev_balanced.jsonl",
        "gqa_labels": "testdev_balanced_questions.json",
    },
    question_file="gqa_questions",
    images="gqa_images",
    image_folder="images",
    bounds=Bounds(distinct=20, top_share=0.5),
)
