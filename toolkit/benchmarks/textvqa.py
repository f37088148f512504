"""TextVQA: the questions put to the model and the soft accuracy of its answers, number for number that of the
official scorer.

    python -m toolkit evaluate textvqa-score --annotations TextVQA_0.5.1_val.json --answers bm1.jsonl

The scorer is the "M4C evaluator" (facebookresearch/mmf), which normalises text as the VQA challenge server
does; its slips are kept, because every published number has them.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from toolkit.benchmarks.base import Benchmark, Bounds, Files
from toolkit.benchmarks.questions import (
    Load,
    Question,
    Reference,
    first_of,
    folder_images,
    is_key,
    keyed,
    load_questions,
)
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl

MAX_NEW_TOKENS = 128  # default of the official answering script
ANSWERS_PER_QUESTION = 10

# "," and "?" stand in the official list too, but no text reaches this step with one of them. The official
# rule "a comma between digits" is dead for the same reason.
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
# A negated look-ahead was meant as look-behind in the official pattern and always holds: what is left is "a
# period before no digit".
PERIOD = re.compile(r"\.(?!\d)")
# re.UNICODE is passed where `count` belongs, and its value is 32: a 33rd period stays.
PERIODS_REMOVED = 32

ARTICLES = frozenset(("a", "an", "the"))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(DIGITS)}
CONTRACTED = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've
    y'all'll you'd you'd've you'll you're you've
"""
# Every spelling that lacks one apostrophe is repaired ("couldnt've" and "couldn'tve"), but "somebody'd" loses
# its own: so the table has it.
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in CONTRACTED.split()
    for at, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"


def normalise(text: str) -> str:
    """Text as the official scorer compares it: lower case, punctuation, articles, number words and
    contractions made uniform."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # A mark vanishes when it touches a space anywhere in the text, and becomes a space otherwise.
    text = text.translate(
        {ord(mark): "" if f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
    )
    text = PERIOD.sub("", text, count=PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(answers: list[str]) -> dict[str, float]:
    """Score of every distinct normalised answer: over the ten sets of nine people, the mean of min(1, people
    who said it / 3).

    The terms are added in the order of the people: another order can change the last digit.
    """
    normal = [normalise(answer) for answer in answers]
    counts = Counter(normal)
    scores = {}
    for candidate, count in counts.items():
        terms = [min(1, float(count - (other == candidate)) / 3) for other in normal]
        scores[candidate] = sum(terms) / len(terms)
    return scores


def question_of(prompt: str) -> str:
    """The question within a prompt, in lower case. Three shapes are known; ValueError for any other."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        _, begin, tail = prompt.partition("Question: ")
        question, end, _ = tail.partition(" Short answer:")
        if begin and end:
            return question.lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError("its prompt has none of the three known shapes")


def load_annotations(path: Path) -> tuple[dict[tuple, list[str]], Counter[tuple]]:
    """The human answers by (image_id, question in lower case), and how often each of these is annotated.

    The last of several counts, as in the official scorer. An integer that is not in quotes is the text of its
    digits. UserError names the first entry with anything else.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise UserError(f'{path} has no list "data": it must be a TextVQA annotation file')
    humans: dict[tuple, list[str]] = {}
    expected: Counter[tuple] = Counter()
    for number, row in enumerate(data["data"], start=1):
        where = f"{path}, data entry {number}"
        if not isinstance(row, dict) or not {"image_id", "question", "answers"} <= row.keys():
            raise UserError(f"{where} lacks image_id, question or answers")
        if not is_key(row["image_id"]) or not isinstance(row["question"], str):
            raise UserError(f"{where}: image_id must be a text or an integer, question a text")
        if not isinstance(row["answers"], list):
            raise UserError(
                f"{where}, image_id {row['image_id']!r}: answers must be a list of {ANSWERS_PER_QUESTION} "
                "texts"
            )
        for place, answer in enumerate(row["answers"], start=1):
            if not is_key(answer):
                raise UserError(
                    f"{where}, image_id {row['image_id']!r}: answer {place} is {json.dumps(answer):.40}, a "
                    "text is expected"
                )
        key = (row["image_id"], row["question"].lower())
        humans[key] = [str(answer) for answer in row["answers"]]
        expected[key] += 1
    return humans, expected


def references(
    annotations: Path, heads: list[dict[str, Any]], source: Path, complete: bool = True
) -> tuple[list[tuple[str, list[str]]], int, int]:
    """`(key, ten human answers)` of each question asked, the number of annotated questions that are not
    asked, and of those that are asked once more.

    Matched by (image_id, question); `heads` hold question_id and prompt. UserError, with the first problem
    and the number of them, for a row that cannot be matched and, if the rows must be `complete`, unless they
    ask every annotated question as often as it is annotated.
    """
    humans, expected = load_annotations(annotations)
    problems = []
    matched: list[tuple[str, list[str]]] = []
    seen: Counter[tuple] = Counter()
    for number, row in enumerate(heads, start=1):
        try:
            if (
                not isinstance(row, dict)
                or not is_key(row.get("question_id"))
                or not isinstance(row.get("prompt"), str)
            ):
                raise ValueError("it lacks question_id or a prompt")
            key = (row["question_id"], question_of(row["prompt"]))
        except ValueError as error:
            problems.append(f"{source}, row {number} cannot be matched: {error}")
            continue
        seen[key] += 1
        if key not in humans:
            problems.append(
                f"{annotations} has no entry with image_id {key[0]!r} and question {key[1]!r} of {source}, "
                f"row {number}"
            )
        elif len(humans[key]) != ANSWERS_PER_QUESTION:
            problems.append(
                f"{annotations}, image_id {key[0]!r}, has {counted(len(humans[key]), 'answer')} instead of "
                f"{ANSWERS_PER_QUESTION}"
            )
        elif complete and seen[key] > expected[key]:
            problems.append(f"{source}, row {number} has image_id {key[0]!r}, question {key[1]!r} once more")
        else:
            matched.append((f"{key[0]}: {key[1]}", humans[key]))
    missing = expected - seen
    if complete:
        problems += [
            f"{source} has no row for image_id {image!r}, question {text!r}" for image, text in missing
        ]
    if problems or not matched:
        raise UserError(first_of(problems) if problems else f"{source} holds no answers")
    return matched, missing.total(), (seen - expected).total()


def score(annotations: Path, answers: Path, complete: bool = True) -> dict[str, Any]:
    """`{accuracy (percent), questions, empty, unanswered, scores: {question: 0..1}}` of an answer file.

    Unless it must be `complete`, the lines that are there are scored, `repeated` lines too, as the official
    scorer does.
    """
    rows = list(read_jsonl(answers))
    matched, unanswered, repeated = references(annotations, rows, answers, complete)
    values = []
    for number, (row, (_, humans)) in enumerate(zip(rows, matched, strict=True), start=1):
        if not isinstance(row.get("text"), str):
            raise UserError(f"{answers}, answer {number} has no text")
        values.append(soft_scores(humans).get(normalise(row["text"]), 0.0))
    return {
        "accuracy": 100.0 * (sum(values) / len(values)),
        "questions": len(values),
        "empty": sum(not row["text"] for row in rows),
        "unanswered": unanswered,
        **({"repeated": repeated} if repeated else {}),
        "scores": keyed((key for key, _ in matched), values),
    }


class TextVQA(Benchmark):
    """The validation split, as LLaVA's question file asks it: with OCR tokens in the prompt."""

    def questions(self, files: Files, instruction: str | None = None) -> list[Question]:
        """Annotations that do not fit are found now, not after hours of answering."""
        questions = load_questions(files["questions"])
        references(files["annotations"], [question.head for question in questions], files["questions"])
        return questions

    def load(self, files: Files, questions: list[Question]) -> Load:
        return folder_images(files["images"], questions)

    def score(self, files: Files, answers: Path | None, complete: bool = True) -> dict[str, Any]:
        if answers is None:
            raise UserError(f"the answers to {self.title} are missing: name their file")
        return score(files["annotations"], answers, complete)

    def references(self, files: Files, questions: list[Question]) -> dict[str, Reference]:
        """The answers of the ten people."""
        heads = [question.head for question in questions]
        matched, *_ = references(files["annotations"], heads, files["questions"])
        answers = [Reference([place], humans) for place, (_, humans) in enumerate(matched)]
        return keyed((key for key, _ in matched), answers)

    def items(self, files: Files) -> tuple[dict[str, Path | bytes], dict[str, str]]:
        """A question's text has the answer that most people gave."""
        questions = load_questions(files["questions"])
        matched, *_ = references(
            files["annotations"], [question.head for question in questions], files["questions"]
        )
        texts = {
            key: f"{key.partition(': ')[2]} {Counter(answers).most_common(1)[0][0]}"
            for key, answers in matched
        }
        return {
            name: files["images"] / name for name in dict.fromkeys(question.image for question in questions)
        }, texts


TEXTVQA = TextVQA(
    name="textvqa",
    title="TextVQA",
    measure="TextVQA",
    contest=True,
    max_new_tokens=MAX_NEW_TOKENS,
    files={"questions": "llava_textvqa_val_v051_ocr.jsonl", "annotations": "TextVQA_0.5.1_val.json"},
    images="images",
    image_folder="train_images",
    not_scored_with=("questions",),
    answer_file="bm1.jsonl",
    bounds=Bounds(distinct=200, top_share=0.2, empty_share=0.02),
)
