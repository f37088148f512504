"""MME: two yes-or-no questions about each image, in ten tasks of perception and four of cognition (Fu et al.
2023).

The rule is that of the authors' eval_tool (calculation.py), which LLaVA's convert_answer_to_mme.py feeds: the
first four characters of an answer, in lower case, hold "yes" or else "no", or the answer is wrong. A task
scores 100 times its accuracy plus 100 times the share of images with both answers right. The tool pairs
neighbouring lines; here the two questions of an image are a pair, wherever they stand.

The labels lie beside the images: DIR/TASK/FILE.txt or DIR/TASK/questions_answers_YN/FILE.txt, a question, a
tab and Yes or No a line.
"""

from collections.abc import Hashable, Iterator
from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Judged, Label, Labelled, parts, share, shown
from toolkit.benchmarks.questions import SHORT, first_of
from toolkit.errors import UserError
from toolkit.files import read_lines

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ENDING = "Please answer yes or no."  # of the questions in the label files; LLaVA's end with SHORT
ANSWERS = ("yes", "no")


def yes_or_no(text: str) -> str:
    """ "yes", "no" or "other", as the official scorer reads an answer."""
    begin = text.lower()[:4]
    return next((answer for answer in ANSWERS if answer in begin), "other")


def question_of(prompt: str) -> str:
    """A question without the instruction after it, LLaVA's or the authors'."""
    return prompt.replace(SHORT, "").strip().removesuffix(ENDING).strip()


def pairs(judged: list[Judged]) -> list[bool]:
    """Whether both answers about an image are right, for each image of a task."""
    images: dict[Hashable, bool] = {}
    for answer in judged:
        image = answer.label.key[:2]  # type: ignore[index]  # task, file and question
        images[image] = images.get(image, True) and bool(answer.score)
    return list(images.values())


class Mme(Labelled):
    """All tasks that the folder of images has."""

    def key(self, row: dict[str, Any]) -> Hashable:
        """(task, name of the image without its ending, question)."""
        name, prompt = row.get("question_id"), row.get("prompt")
        if not isinstance(name, str) or not isinstance(prompt, str):
            return None
        path = name.split("/")
        return path[0], path[-1].partition(".")[0], question_of(prompt)

    def labels(self, files: Files) -> list[Label]:
        labels, problems = [], []
        root = files[self.images or ""]
        for task in (*PERCEPTION, *COGNITION):
            folder = root / task / "questions_answers_YN"
            for path in sorted((folder if folder.is_dir() else root / task).glob("*.txt")):
                lines = [line.decode(errors="replace").strip().split("\t") for _, line in read_lines(path)]
                if len(lines) != 2 or any(cells[1:] not in (["Yes"], ["No"]) for cells in lines):
                    problems.append(f"{path} is not two lines of a question, a tab and Yes or No")
                for question, *answer in lines:
                    key = (task, path.name.partition(".")[0], question_of(question))
                    labels.append(Label(key, "".join(answer).lower(), task))
        if problems or not labels:
            raise UserError(
                first_of(problems) if problems else f"{root} has no task of MME: take the official folder"
            )
        return labels

    def judge(self, text: str, label: Label) -> float:
        return float(yes_or_no(text) == label.right)

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """The score is that of perception; a folder without tasks of cognition has no score for it.
        `accuracy` and `both` (right) of a task are in percent."""
        tasks = {}
        for task, answers in parts(judged).items():
            accuracy, both = 100.0 * share(answers), 100.0 * (sum(pairs(answers)) / len(pairs(answers)))
            others = sum(yes_or_no(answer.text) == "other" for answer in answers)
            tasks[task] = {"score": accuracy + both, "accuracy": accuracy, "both": both, "other": others}
        kinds = {
            name: sum(tasks[task]["score"] for task in kind if task in tasks)
            for name, kind in (("perception", PERCEPTION), ("cognition", COGNITION))
            if tasks.keys() & set(kind)
        }
        return {"score": next(iter(kinds.values())), **kinds, "tasks": tasks}

    def breaks(self, judged: list[Judged]) -> Iterator[str]:
        tasks = parts(judged)
        for task in (*PERCEPTION, *COGNITION):
            if task not in tasks:
                yield f"the task {task} is missing, where the official tool ends: take the official folder"
        for answer in judged:
            if set("\n\r\t") & set(answer.text):
                yield (
                    f"the answer to {shown(answer.label.key)} has a line break or a tab, which the official "
                    "tool's tables cannot hold: put a space in its place"
                )


MME = Mme(
    name="mme",
    title="MME",
    measure="MME (accuracy)",
    files={"mme_questions": "llava_mme.jsonl"},
    question_file="mme_questions",
    images="mme_images",
    image_folder="MME_Benchmark_release_version",
    bounds=Bounds(distinct=2, top_share=0.95),
)
