"""A question as both benchmarks put it to the model, its image, and the control that shuffles the images."""

import base64
import binascii
import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit.errors import UserError


@dataclass(frozen=True)
class Question:
    """One line of an answer file before it is answered.

    head: its first fields, question_id first. message: the user's words, without the image marker. image: a file name or base64 text.
    tail: the fields that follow the answer's text.
    """

    head: dict[str, Any]
    message: str
    image: str
    tail: dict[str, Any] = field(default_factory=dict)


def first_of(problems: list[str]) -> str:
    """The first problem, and how many more there are."""
    return problems[0] + (f" (and {len(problems) - 1} more such problems)" if len(problems) > 1 else "")


def keyed(keys: Iterable[str], values: list[float]) -> dict[str, float]:
    """`{key: value}`; a key that comes again gets " #2", " #3", so that no value is lost."""
    result, seen = {}, {}
    for key, value in zip(keys, values, strict=True):
        seen[key] = seen.get(key, 0) + 1
        result[key if seen[key] == 1 else f"{key} #{seen[key]}"] = value
    return result


def shuffle_images(questions: list[Question], seed: int) -> list[Question]:
    """The questions with every distinct image replaced by another one: what is still right was guessed without looking.

    Questions that share an image share its substitute. A random cycle through all images (Sattolo) leaves none in its place.
    """
    images = list(dict.fromkeys(question.image for question in questions))
    if len(images) < 2:
        raise UserError("questions with at least two different images are needed to exchange them: take the official benchmark")
    other, generator = images.copy(), random.Random(seed)
    for last in range(len(other) - 1, 0, -1):
        pick = generator.randrange(last)
        other[last], other[pick] = other[pick], other[last]
    substitute = dict(zip(images, other, strict=True))
    return [replace(question, image=substitute[question.image]) for question in questions]


def folder_images(folder: Path, questions: list[Question]) -> Callable[[Question], Image.Image]:
    """A loader of RGB images from files below `folder`; all that are absent are reported before the first question."""
    absent = sorted({question.image for question in questions if not (folder / question.image).is_file()})
    if absent:
        raise UserError(first_of([f"{folder / name} does not exist: fetch the evaluation images again" for name in absent]))
    return lambda question: decode(folder / question.image, str(folder / question.image))


def inline_image(question: Question) -> Image.Image:
    """The RGB image of a question that carries it as base64."""
    name = f"the image of question {question.head['question_id']}"
    try:
        return decode(io.BytesIO(base64.b64decode(question.image)), name)
    except binascii.Error as error:
        raise UserError(f"{name} is not valid base64: {error}") from None


def decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    """An RGB image. A damaged one ends the evaluation: without it the score would be of other questions."""
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read ({type(error).__name__}): fetch the evaluation data again") from None
