"""Rows in Data-Juicer's format (`id`, `text`, `images`), and everything that can be wrong with one.

A row is `{"id": "000270672", "text": "<__dj__image>\\na red mug <|__dj__eoc|>", "images": ["images/00027/000270672.jpg"]}`: exactly one
image, one image token, a caption, and a path relative to the folder of images. Used by `data synthesize` and `data check`.
"""

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from toolkit.errors import UserError
from toolkit.processes import pool
from toolkit.progress import Progress

IMAGE_TOKEN = "<__dj__image>"
END_TOKEN = "<|__dj__eoc|>"
SYNTHETIC = "synthetic_images"  # folder beside an experiment's rows: images that its recipe made (the contest's name)
HASH = 32  # hexadecimal digits of such an image's SHA-256 that are its name: who has the rows can tell its images
LLAVA_TOKEN = "<image>"  # the trainer's own token: inside a caption it would stand for a second image


def caption_of(text: str) -> str:
    """The caption of a row's text, without the two tokens."""
    return text.replace(IMAGE_TOKEN, "").replace(END_TOKEN, "").strip()


def text_of(caption: str) -> str:
    """A row's text with this caption, in the seed's form."""
    return f"{IMAGE_TOKEN}\n{caption} {END_TOKEN}"


def image_file(path: str, images: Path, samples: Path) -> Path:
    """Where a row's image lies: `synthetic_images/…` beside the file `samples` that the row comes from, all else in the folder `images`."""
    return (samples.parent if path.startswith(f"{SYNTHETIC}/") else images) / path


def read_lines(path: Path | str) -> Iterator[tuple[int, str, Any, str | None]]:
    """Yield (line number from 1, line, parsed value or None, problem or None) of every line that is not blank."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist")
    with Path(path).open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            text = line.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
            try:
                value = json.loads(line.decode("utf-8"), parse_constant=_not_json, parse_float=_finite)
                if b"\\u" in line:  # half a surrogate pair can be read but not written
                    json.dumps(value, ensure_ascii=False).encode("utf-8")
            except (ValueError, RecursionError) as error:
                yield number, text, None, f"malformed line: {error}"
            else:
                yield number, text, value, None


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large")
    return value


def row_problem(row: Any) -> str | None:
    """What is wrong with a row's fields, tokens or path, as a phrase; None for a good row. The image itself is not opened."""
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
    if not caption_of(text):
        return "empty caption"
    return None


def inspect_image(path: Path | str) -> tuple[str | None, str]:
    """Decode one image in full: (what is wrong with it or None, sha256 of its bytes, "" where there are none)."""
    # Importing Data-Juicer turns this on for the process; half an image must not pass for a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a pipe or a device would never end
            return "unreadable image: not a file", ""
        with Path(path).open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing image", ""
    except OSError as error:
        return f"unreadable image: {error.strerror}", ""
    try:
        with Image.open(path) as image:
            image.draft("L", (1, 1))  # a JPEG is read to its end but not computed at its full size: 1.5 times as fast
            image.load()
    except Exception as error:  # decoders raise many kinds; each means that the trainer could not read it either
        return f"unreadable image: {str(error).replace(str(path), Path(path).name)}", digest
    return None, digest


def inspect_images(paths: Sequence[Path], processes: int) -> list[tuple[str | None, str]]:
    """`inspect_image` of every path, in order, on `processes` processes."""
    progress = Progress("reading images", len(paths))
    inspected = []
    with pool(processes) as workers:
        for result in workers.map(inspect_image, paths, chunksize=64):
            inspected.append(result)
            progress.step()
    return inspected
