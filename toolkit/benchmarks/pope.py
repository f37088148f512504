"""POPE: is an object in the picture? Yes-or-no questions in three samplings of absent objects (RUCAIBox/POPE,
Li et al. 2023).

    python -m toolkit evaluate pope-score --pope-questions llava_pope_test.jsonl --answers pope.jsonl \\
        --pope-adversarial coco_pope_adversarial.json --pope-popular coco_pope_popular.json --pope-random
        coco_pope_random.json

The scorer is LLaVA's eval_pope.py: the first sentence of an answer means no when one of its words is No, not
or no, else yes. It joins answers to labels by line; here they are joined by number, and image and question
have to be the same: the label files of POPE's newest commit are in another order than LLaVA's questions and
would give a random score, so they are refused (commit e3e39262 fits).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.benchmarks.base import Benchmark, Bounds, Files
from toolkit.benchmarks.questions import Load, Question, first_of, folder_images, is_key, keyed, name_problem
from toolkit.errors import UserError
from toolkit.files import read_jsonl

SAMPLINGS = ("adversarial", "popular", "random")
NEGATIVES = {"No", "not", "no"}
ANSWERS = ("yes", "no")
# LLaVA's number of a question is that of its label, plus a multiple of this for each sampling
BLOCK = 10_000_000

Asked = tuple[str, str, str]  # sampling, image, question without its instruction


def yes_or_no(text: str) -> str:
    """ "yes" or "no", as the official scorer reads an answer."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIVES & set(words) else "yes"


def load_questions(path: Path) -> list[tuple[Question, Asked]]:
    """Questions of LLaVA's file (question_id, image, text, category), each with what its label is found
    by."""
    questions, problems, seen = [], [], set()
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, question {number}"
        if not isinstance(row, dict) or not {"question_id", "image", "text", "category"} <= row.keys():
            problems.append(f"{where} lacks question_id, image, text or category: take LLaVA's question file")
        elif (
            not is_key(row["question_id"])
            or not isinstance(row["text"], str)
            or row["category"] not in SAMPLINGS
        ):
            problems.append(
                f"{where}: question_id, text or category ({', '.join(SAMPLINGS)}) is of another kind"
            )
        elif problem := name_problem(row["image"]):
            problems.append(f"{where}: {problem}")
        elif row["question_id"] in seen:
            problems.append(f"{where}: question_id {row['question_id']} is there a second time")
        else:
            seen.add(row["question_id"])
            question = Question(
                {"question_id": row["question_id"], "prompt": row["text"]}, row["text"], row["image"]
            )
            questions.append((question, (row["category"], row["image"], row["text"].partition("\n")[0])))
    if problems or not questions:
        raise UserError(first_of(problems) if problems else f"{path} holds no questions")
    return questions


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


def labelled(files: Files) -> list[tuple[Question, str, str]]:
    """(question, sampling, label) in the order of the questions; UserError for a question that its label is
    not about."""
    labels, pairs, problems = load_labels(files), [], []
    for question, (sampling, image, text) in load_questions(files["pope_questions"]):
        number = question.head["question_id"]
        label = labels.get((sampling, number % BLOCK if isinstance(number, int) else number))
        if label is None or label[:2] != (image, text):
            problems.append(
                f"{files[f'pope_{sampling}']} has no label for question {number}, {text!r} about {image}"
            )
        else:
            pairs.append((question, sampling, label[2]))
    if problems:
        raise UserError(f"{first_of(problems)}: take the label files of POPE's commit e3e39262")
    return pairs


def measures(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Of (answer, label) pairs, in percent; yes is positive. A ratio of nothing is 0 (the official script
    ends with an error)."""
    correct = sum(answer == label for answer, label in pairs)
    true = sum(answer == label == "yes" for answer, label in pairs)
    said_yes, are_yes = (sum(pair[place] == "yes" for pair in pairs) for place in (0, 1))
    precision = true / said_yes if said_yes else 0.0
    recall = true / are_yes if are_yes else 0.0
    f1 = 2 * precision * recall / (precision + recall) if true else 0.0
    shares = {
        "accuracy": correct / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes": said_yes / len(pairs),
    }
    return {"questions": len(pairs), **{name: 100.0 * share for name, share in shares.items()}}


def score(files: Files, answers: Path, complete: bool = True) -> dict[str, Any]:
    """`{accuracy, f1 (mean of the three samplings, percent), questions, empty, unanswered, samplings: {name:
    measures}, scores}`."""
    labels = {
        question.head["question_id"]: (sampling, label) for question, sampling, label in labelled(files)
    }
    texts: dict[Any, str] = {}
    problems = []
    for number, row in enumerate(read_jsonl(answers), start=1):
        if (
            not isinstance(row, dict)
            or not is_key(row.get("question_id"))
            or not isinstance(row.get("text"), str)
        ):
            problems.append(f"{answers}, answer {number} lacks question_id or text")
        elif row["question_id"] not in labels:
            problems.append(
                f"{answers}, answer {number} is for question {row['question_id']}, which is not asked"
            )
        elif row["question_id"] in texts:
            problems.append(f"{answers}, answer {number} answers question {row['question_id']} a second time")
        else:
            texts[row["question_id"]] = row["text"]
    unanswered = [key for key in labels if key not in texts]
    if complete:
        problems += [f"{answers} has no answer for question {key}" for key in unanswered]
    if problems or not texts:
        raise UserError(first_of(problems) if problems else f"{answers} holds no answers")
    correct = {key: int(yes_or_no(text) == labels[key][1]) for key, text in texts.items()}
    samplings = {}
    for sampling in SAMPLINGS:
        if pairs := [
            (yes_or_no(text), labels[key][1]) for key, text in texts.items() if labels[key][0] == sampling
        ]:
            samplings[sampling] = measures(pairs)
    return {
        "accuracy": 100.0 * sum(correct.values()) / len(correct),
        "f1": sum(sampling["f1"] for sampling in samplings.values()) / len(samplings),
        "questions": len(correct),
        "empty": sum(not text for text in texts.values()),
        "unanswered": len(unanswered),
        "samplings": samplings,
        "scores": keyed(map(str, correct), list(correct.values())),
    }


class Pope(Benchmark):
    """The three samplings in one run, as LLaVA's question file has them."""

    def questions(self, files: Files, instruction: str | None = None) -> list[Question]:
        return [question for question, _, _ in labelled(files)]

    def load(self, files: Files, questions: list[Question]) -> Load:
        return folder_images(files["pope_images"], questions)

    def score(self, files: Files, answers: Path | None, complete: bool = True) -> dict[str, Any]:
        if answers is None:
            raise UserError(f"the answers to {self.title} are missing: name their file")
        return score(files, answers, complete)

    def items(self, files: Files) -> tuple[dict[str, Path | bytes], dict[str, str]]:
        """Images alone: "Is there a cat in the image? yes" is too short to say anything about a caption."""
        entries = load_questions(files["pope_questions"])
        return {
            name: files["pope_images"] / name
            for name in dict.fromkeys(question.image for question, _ in entries)
        }, {}

    def warnings(self, files: Files) -> Iterator[str]:
        unasked = len(load_labels(files)) - len(labelled(files))
        if unasked:
            yield f"{files['pope_questions']} asks {unasked} questions fewer than have labels"


POPE = Pope(
    name="pope",
    title="POPE",
    measure="POPE (accuracy)",
    contest=False,
    max_new_tokens=128,  # default of the official answering script
    files={
        "pope_questions": "LLaVA's question file, JSON lines",
        **{f"pope_{sampling}": f"labels of the {sampling} sampling, JSON lines" for sampling in SAMPLINGS},
    },
    images="pope_images",
    answer_file="pope.jsonl",
    bounds=Bounds(distinct=2, top_share=0.95),
)
