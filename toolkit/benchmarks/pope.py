"""POPE: is an object in the picture? Yes-or-no questions in three samplings of absent objects (RUCAIBox/POPE,
Li et al. 2023).

The rule is that of LLaVA's eval_pope.py (c121f043): the first sentence of an answer means no when one of its
words is No, not or no, else yes. It joins answers to labels by line; here they are joined by number, and
image and question have to be the same: the label files of POPE's newest commit are in another order than
LLaVA's questions and would give a random score, so they are refused (commit e3e39262 fits).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Judged, Label, Labelled, parts
from toolkit.benchmarks.questions import first_of, is_key, load_rows
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_jsonl

SAMPLINGS = ("adversarial", "popular", "random")
NEGATIVES = {"No", "not", "no"}
ANSWERS = ("yes", "no")
# LLaVA's number of a question is that of its label, plus a multiple of this for each sampling
BLOCK = 10_000_000


def yes_or_no(text: str) -> str:
    """ "yes" or "no", as the official scorer reads an answer."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIVES & set(words) else "yes"


def load_labels(files: Files) -> dict[tuple[str, int], tuple[str, str, str]]:
    """(image, question, "yes" or "no") by sampling and number, of the label files (JSON lines question_id,
    image, text, label)."""
    labels, problems = {}, []
    for sampling in SAMPLINGS:
        path = files[f"pope_{sampling}"]
        for number, row in enumerate(read_jsonl(path), start=1):
            if (
                not isinstance(row, dict)
                or row.get("label") not in ANSWERS
                or not {"question_id", "image", "text"} <= row.keys()
            ):
                problems.append(f"{path}, line {number} lacks question_id, image, text or a label yes or no")
            elif not is_key(row["question_id"]) or (sampling, row["question_id"]) in labels:
                problems.append(
                    f"{path}, line {number}: question_id {row['question_id']!r} is not a number or repeated"
                )
            else:
                labels[sampling, row["question_id"]] = row["image"], row["text"], row["label"]
    if problems:
        raise UserError(first_of(problems))
    return labels


def measures(judged: list[Judged]) -> dict[str, float]:
    """Of the answers, 0 to 1; yes is positive. A ratio of nothing is 0 (the official script ends with an
    error)."""
    pairs = [(yes_or_no(answer.text), answer.label.right) for answer in judged]
    correct = sum(answer == label for answer, label in pairs)
    true = sum(answer == label == "yes" for answer, label in pairs)
    said_yes, are_yes = (sum(pair[place] == "yes" for pair in pairs) for place in (0, 1))
    precision = true / said_yes if said_yes else 0.0
    recall = true / are_yes if are_yes else 0.0
    f1 = 2 * precision * recall / (precision + recall) if true else 0.0
    return {
        "accuracy": correct / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes": said_yes / len(pairs),
    }


class Pope(Labelled):
    """The three samplings in one run, as LLaVA's question file has them."""

    def labels(self, files: Files) -> list[Label]:
        """In the order of the questions; UserError for a question that its label is not about."""
        path, known, labels, problems = files[self.question_file], load_labels(files), [], []
        for number, row in enumerate(load_rows(path), start=1):
            key, sampling = row["question_id"], row.get("category")
            if sampling not in SAMPLINGS:
                problems.append(f"{path}, question {number}: the category is not {', '.join(SAMPLINGS)}")
                continue
            about = (row["image"], row["text"].partition("\n")[0])
            label = known.get((sampling, key % BLOCK if isinstance(key, int) else key))
            if label is None or label[:2] != about:
                problems.append(
                    f"{files[f'pope_{sampling}']} has no label for question {key}, {about[1]!r} about "
                    f"{about[0]}: take the label files of POPE's commit e3e39262"
                )
            else:
                labels.append(Label(key, label[2], sampling))
        if problems:
            raise UserError(first_of(problems))
        return labels

    def judge(self, text: str, label: Label) -> float:
        return float(yes_or_no(text) == label.right)

    def totals(self, judged: list[Judged]) -> dict[str, Any]:
        """The score is the mean F1 of the samplings, in percent."""
        groups = parts(judged)
        by_sampling = {name: measures(groups[name]) for name in SAMPLINGS if name in groups}
        samplings = {
            name: {"questions": len(groups[name]), **{key: 100.0 * value for key, value in shares.items()}}
            for name, shares in by_sampling.items()
        }
        f1 = sum(shares["f1"] for shares in by_sampling.values()) / len(by_sampling)
        return {"score": 100.0 * f1, "samplings": samplings}

    def breaks(self, judged: list[Judged]) -> Iterator[str]:
        for sampling, answers in parts(judged).items():
            if not measures(answers)["f1"]:
                yield f"no answer of the sampling {sampling} is a right yes, and F1 would be 0 / 0"

    def published(self, files: Files, answers: Path) -> dict[str, Any]:
        """The official script joins by line: with fewer questions than labels, the lines do not fit."""
        if problems := list(self.warnings(files)):
            raise UserError(f"{problems[0]}: take the official file")
        return super().published(files, answers)

    def warnings(self, files: Files) -> Iterator[str]:
        unasked = len(load_labels(files)) - len(self.labels(files))
        if unasked:
            other = f"{counted(abs(unasked), 'question')} {'fewer' if unasked > 0 else 'more'}"
            yield f"{files[self.question_file]} asks {other} than have labels"


POPE = Pope(
    name="pope",
    title="POPE",
    measure="POPE (accuracy)",
    files={
        "pope_questions": "llava_pope_test.jsonl",
        **{f"pope_{sampling}": f"coco/coco_pope_{sampling}.json" for sampling in SAMPLINGS},
    },
    question_file="pope_questions",
    images="pope_images",
    image_folder="val2014",
    answer_file="pope.jsonl",
    bounds=Bounds(distinct=2, top_share=0.95),
)
