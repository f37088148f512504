"""A question as a benchmark puts it to the model, its image, and the image-swap control."""

import base64
import random
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_jsonl
from toolkit.images import Unreadable, opened, rgb
from toolkit.progress import Progress

Draft = tuple[str, tuple[int, int]] | None  # see toolkit.images.opened
Load = Callable[..., Image.Image]  # (question, draft=None) to its RGB image
Value = TypeVar("Value")


@dataclass(frozen=True)
class Question:
    """One line of an answer file before it is answered.

    head: its first fields, question_id first. message: the user's words, without the image marker. image: a
    file name or base64 text. tail: the fields that follow the answer's text.
    """

    head: dict[str, Any]
    message: str
    image: str
    tail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What a scored question is judged by, for people to read.

    places: of its answers in the answer file, several where it is asked in rotations. right: answers that
    count, one for each person who was asked. part: of the benchmark that it belongs to, empty for none.
    """

    places: list[int]
    right: list[str]
    part: str = ""


LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def is_key(value: Any) -> bool:
    """Whether a value can name a question or an image: a text or an integer. True is none, and 1.0 would be
    found for 1."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def name_problem(name: Any) -> str | None:
    """What is wrong with the name of an image in a folder, as a phrase; None for a good name."""
    if not isinstance(name, str) or not name:
        return f"image is {name!r:.40}, the name of a file is expected"
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return f"image {name!r:.100} does not lie in the folder of images"
    return None


def first_of(problems: list[str]) -> str:
    """The first problem, and how many more there are."""
    more = len(problems) - 1
    return problems[0] + (f" (and {counted(more, 'more such problem')})" if more else "")


def keyed(keys: Iterable[str], values: list[Value]) -> dict[str, Value]:
    """`{key: value}`; a key that comes again gets " #2", " #3", so that no value is lost."""
    result: dict[str, Value] = {}
    seen: dict[str, int] = {}
    for key, value in zip(keys, values, strict=True):
        seen[key] = seen.get(key, 0) + 1
        result[key if seen[key] == 1 else f"{key} #{seen[key]}"] = value
    return result


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a question file as LLaVA writes them (JSON lines; question_id, image, text). UserError names
    the first bad one."""
    rows, problems = [], []
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, question {number}"
        if not isinstance(row, dict) or not {"question_id", "image", "text"} <= row.keys():
            problems.append(f"{where} lacks question_id, image or text: take the official question file")
        elif not is_key(row["question_id"]) or not isinstance(row["text"], str):
            problems.append(f"{where}: question_id must be a text or an integer, text a text")
        elif problem := name_problem(row["image"]):
            problems.append(f"{where}: {problem}")
        rows.append(row)
    if problems or not rows:
        raise UserError(first_of(problems) if problems else f"{path} holds no questions")
    return rows


def load_questions(path: Path) -> list[Question]:
    """The questions of such a file: the text is the prompt."""
    return [
        Question({"question_id": row["question_id"], "prompt": row["text"]}, row["text"], row["image"])
        for row in load_rows(path)
    ]


def choices(question: str, options: Iterable[str]) -> str:
    """A question with its options, a letter and a line each."""
    return "\n".join([question, *(f"{chr(ord('A') + n)}. {option}" for n, option in enumerate(options))])


def shuffle_images(questions: list[Question], seed: int) -> list[Question]:
    """The questions with every distinct image replaced by another: what is still right was guessed
    without looking.

    Questions that share an image share its substitute. A random cycle through all images (Sattolo) leaves
    none in its place.
    """
    images = list(dict.fromkeys(question.image for question in questions))
    if len(images) < 2:
        raise UserError(
            "questions with at least two different images are needed to exchange them: take the official "
            "benchmark"
        )
    other, generator = images.copy(), random.Random(seed)
    for last in range(len(other) - 1, 0, -1):
        pick = generator.randrange(last)
        other[last], other[pick] = other[pick], other[last]
    substitute = dict(zip(images, other, strict=True))
    return [replace(question, image=substitute[question.image]) for question in questions]


def folder_images(folder: Path, questions: list[Question]) -> Load:
    """A loader of images from files below `folder`. UserError names the first that is absent; links that lead
    elsewhere are counted."""
    names = sorted({question.image for question in questions})
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            first_of(
                [f"{folder / name} does not exist: fetch the evaluation images again" for name in absent]
            )
        )
    home = folder.resolve()
    if outside := [name for name in names if not (folder / name).resolve().is_relative_to(home)]:
        print(
            f"warning: {counted(len(outside), 'image is a link', 'images are links')} out of {folder}, the "
            f"first is {outside[0]}",
            file=sys.stderr,
        )
    return lambda question, draft=None: decode(
        folder / question.image, f"question {_id(question)}: {folder / question.image}", draft
    )


def inline_bytes(text: str) -> bytes:
    """The file that a base64 text holds, line ends and spaces ignored; ValueError for any other sign."""
    return base64.b64decode("".join(text.split()), validate=True)


def inline_image(question: Question, draft: Draft = None) -> Image.Image:
    """The image of a question that carries it as base64."""
    name = f"the image of question {_id(question)}"
    try:
        content = inline_bytes(question.image)
    except ValueError as error:
        raise UserError(f"{name} is not valid base64: {error}") from None
    return decode(content, name, draft)


def _id(question: Question) -> Any:
    return question.head["question_id"]


def decode(source: Path | bytes, name: str, draft: Draft = None) -> Image.Image:
    """An RGB image. A damaged one ends the evaluation: without it the score would be of other questions."""
    try:
        return rgb(opened(source, draft))
    except (Unreadable, OSError) as error:
        raise UserError(f"{name} cannot be read ({error}): fetch the evaluation data again") from None


def assert_readable(questions: list[Question], load: Load) -> None:
    """UserError for images that cannot be decoded: now, not after hours of answering. A JPEG is not computed
    at its full size."""

    def problem(question: Question) -> str | None:
        try:
            load(question, ("L", (1, 1)))
        except UserError as error:
            return str(error)
        return None

    distinct = {question.image: question for question in questions}.values()
    problems, progress = [], Progress("checking images", len(distinct))
    with ThreadPoolExecutor() as pool:
        for unreadable in pool.map(problem, distinct):
            problems += [unreadable] if unreadable else []
            progress.step()
    if problems:
        raise UserError(first_of(problems))
