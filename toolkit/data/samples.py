"""Rows in Data-Juicer's format (`id`, `text`, `images`), and everything that can be wrong with one or with
the conversation made of it.

A row is `{"id": "000270672", "text": "<__dj__image>\\na red mug <|__dj__eoc|>", "images":
["images/00027/000270672.jpg"]}`: exactly one image, one image token, a caption, and a path relative to the
folder of images. Used by `data synthesize` and `data check`.
"""

import hashlib
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from toolkit import images
from toolkit.files import read_lines as lines_of
from toolkit.parse import Malformed, json_value
from toolkit.processes import AHEAD, ordered, pool
from toolkit.progress import Progress

IMAGE_TOKEN = "<__dj__image>"
END_TOKEN = "<|__dj__eoc|>"
# folder beside an experiment's rows: images that its recipe made (the contest's name)
SYNTHETIC = "synthetic_images"
# hexadecimal digits of such an image's SHA-256 that are its name: who has the rows can tell its images
HASH = 32
LLAVA_TOKEN = "<image>"  # the trainer's own token: inside a caption it would stand for a second image
# Control tokens of Gemma, Vicuna and Llama-3. Labels are made by splitting at the end of a turn and by
# counting all but padding: with one of them in a caption nothing of the conversation is trained on, here and
# in the official code.
CONTROL_TOKENS = re.compile(
    r"<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|/s)>"
    r"|<\|(?:begin_of_text|end_of_text|(?:start|end)_header_id|eot_id|reserved_special_token_\d+)\|>"
)
# NUL, escape and the like, and signs that turn the direction of writing
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
MOST_CHARACTERS = 1 << 14  # of a caption or question: eight for each of the 2,048 tokens that are trained on
# most of a question: a sequence of the contest's models has 2,048, an image takes 576, an answer at least one
QUESTION_TOKENS = 1471
TOGETHER = 64  # images that a process is given at a time
WHOLE = 1 << 24  # bytes of a file that is held in memory


def caption_of(text: str) -> str:
    """The caption of a row's text, without the two tokens."""
    return text.replace(IMAGE_TOKEN, "").replace(END_TOKEN, "").strip()


def text_of(caption: str) -> str:
    """A row's text with this caption, in the seed's form."""
    return f"{IMAGE_TOKEN}\n{caption} {END_TOKEN}"


def only_images(batch: Sequence[Sequence[str]]) -> list[str]:
    """The image of each row. ValueError for a row without exactly one."""
    if any(len(images) != 1 for images in batch):
        raise ValueError("a row has not exactly one image")
    return [images[0] for images in batch]


def image_file(path: str, images: Path, samples: Path) -> Path:
    """Where a row's image lies: `synthetic_images/…` beside the file `samples` that the row comes from, all
    else in the folder `images`."""
    return (samples.parent if path.startswith(f"{SYNTHETIC}/") else images) / path


def read_lines(path: Path | str) -> Iterator[tuple[int, str, Any, str | None]]:
    """Yield (line number from 1, line, parsed value or None, problem or None) of every line that is not
    blank."""
    for number, line in lines_of(path):
        text = line.decode("utf-8", errors="backslashreplace")
        try:
            yield number, text, json_value(line), None
        except Malformed as error:
            yield number, text, None, f"malformed line: {error}"


def text_problem(text: str) -> str | None:
    """Why nothing, or not what is meant, would be trained on with this text as a caption or question; None
    for a good text."""
    if len(text) > MOST_CHARACTERS:
        return f"a text of {len(text)} characters, at most {MOST_CHARACTERS} are trained on"
    if token := CONTROL_TOKENS.search(text):
        return (
            f"{token[0]} in the text, a control token of the model: nothing of the conversation would be "
            "trained on"
        )
    if character := CONTROL_CHARACTERS.search(text):
        return f"the control character U+{ord(character[0]):04X} in the text"
    return None


def question_problem(question: str, tokens: int = QUESTION_TOKENS) -> str | None:
    """Why nothing would be trained on with this question about an image, or nothing of the image.

    tokens: how many a question may have. They are counted without a tokenizer, each word as one: no token of
    a SentencePiece vocabulary spans two words, so what is refused is too long, and training counts what is
    too long all the same.
    """
    if LLAVA_TOKEN not in question:
        return f"no {LLAVA_TOKEN} in the question: it would be trained on without its image"
    if (words := len(question.replace(LLAVA_TOKEN, " ").split())) > tokens:
        return (
            f"a question of {words} words, at most {tokens} tokens of it leave room for an answer: nothing "
            "would be trained on"
        )
    return text_problem(question)


def conversation_problem(
    turns: Sequence[dict[str, str]], *, has_image: bool, tokens: int = QUESTION_TOKENS
) -> str | None:
    """Why nothing would be trained on with this conversation (LLaVA's `{"from", "value"}` turns), or nothing
    of its image."""
    if has_image and (problem := question_problem(turns[0]["value"], tokens)):
        return problem
    if turns[-1]["from"] == "human":
        return "the conversation ends with a question: nothing of it would be trained on"
    if not all(turn["value"] for turn in turns):
        return "an empty turn: nothing of the conversation would be trained on"
    return next(filter(None, (text_problem(turn["value"]) for turn in turns)), None)


def row_problem(row: Any) -> str | None:
    """What is wrong with a row's fields, tokens or path, as a phrase; None for a good row. The image itself
    is not opened."""
    if not isinstance(row, dict):
        return "not a JSON object"
    if not isinstance(row.get("id"), str) or not row["id"]:
        return "no id (a string is expected)"
    if not isinstance(row.get("text"), str):
        return "no text (a string is expected)"
    images = row.get("images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str) or not images[0]:
        return "images is not a list of one path"
    text, path = row["text"], images[0]
    if path.startswith("/"):
        return f"absolute image path {path}"
    if ".." in path.split("/"):
        return f"image path {path} leaves the folder of images"
    if "\0" in path:
        return f"image path {path!r} has a zero byte, which no file name has"
    if text.count(IMAGE_TOKEN) != 1:
        return f"{text.count(IMAGE_TOKEN)} {IMAGE_TOKEN} tokens for 1 image"
    if text.count(END_TOKEN) > 1:
        return f"{text.count(END_TOKEN)} {END_TOKEN} tokens in one row"
    if LLAVA_TOKEN in text:
        return f"{LLAVA_TOKEN} in the text: it would be trained on as a second image"
    caption = caption_of(text)
    return text_problem(caption) if caption else "empty caption"


class Inspected(NamedTuple):
    """An image file, read in full: what is wrong with it, the SHA-256 of its bytes ("" where there are
    none)."""

    problem: str | None
    sha256: str


def inspect_image(path: Path | str) -> Inspected:
    """Hash one image and find out whether it can be decoded to its end."""
    try:
        file = Path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device would never end
            return Inspected("unreadable image: not a file", "")
        if status.st_size <= WHOLE:
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            images.check(data)
        else:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                handle.seek(0)
                images.check(handle)
    except FileNotFoundError:
        return Inspected("missing image", "")
    except OSError as error:
        return Inspected(f"unreadable image: {error.strerror}", "")
    except images.Unreadable as error:
        return Inspected(f"unreadable image: {error}", digest)
    return Inspected(None, digest)


def _inspect(paths: list[Path | str]) -> list[Inspected]:
    return [inspect_image(path) for path in paths]


def inspected(paths: Iterable[Path | str], processes: int) -> Iterator[Inspected]:
    """`inspect_image` of every path, in order, on `processes` processes; paths are asked for as they are
    needed."""
    remaining = iter(paths)
    chunks = iter(lambda: list(islice(remaining, TOGETHER)), [])
    with pool(processes) as workers:
        for results in ordered(lambda chunk: workers.submit(_inspect, chunk), chunks, processes * AHEAD):
            yield from results


def inspect_images(paths: Sequence[Path | str], processes: int) -> Iterator[Inspected]:
    """`inspected` with its progress on stderr."""
    progress = Progress("reading images", len(paths))
    for result in inspected(paths, processes):
        progress.step()
        yield result
