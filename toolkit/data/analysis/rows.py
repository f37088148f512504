"""The rows of a data set as columns, and the sizes of their images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from toolkit.data.samples import caption_of, image_file, read_lines, row_problem
from toolkit.errors import UserError
from toolkit.images import FORMATS


@dataclass
class Rows:
    """Valid rows in their order, one entry a row in every column; `problems`: (line number, reason) of the
    others."""

    lines: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before anything is decoded: pixels, bytes, Pillow's names of format
    and mode."""

    width: int
    height: int
    bytes: int
    format: str
    mode: str


def read_rows(samples: Path, images: Path) -> Rows:
    """Read a Data-Juicer jsonl; UserError where it has no valid row, or `images` is no folder or has no image
    of them."""
    if not images.is_dir():
        raise UserError(f"--images {images} is not a folder: name the one that the images' paths start from")
    rows = Rows()
    for number, _, row, problem in read_lines(samples):
        rows.lines += 1
        problem = problem or row_problem(row)
        if problem:
            rows.problems.append((number, problem))
            continue
        rows.ids.append(row["id"])
        rows.texts.append(row["text"])
        rows.captions.append(caption_of(row["text"]))
        rows.images.append(row["images"][0])
        rows.files.append(image_file(row["images"][0], images, samples))
    if not rows.ids:
        reason = f"line {rows.problems[0][0]}: {rows.problems[0][1]}" if rows.problems else "it is empty"
        raise UserError(f"{samples} has no valid row: {reason}")
    if not any(file.is_file() for file in rows.files):
        raise UserError(
            f"{images} has no image of {samples}, such as {rows.images[0]}: name the folder that the images' "
            "paths start from"
        )
    return rows


def read_headers(files: Iterable[Path]) -> dict[Path, Header]:
    """The header of every distinct file that has a readable one."""
    headers = {}
    for path in dict.fromkeys(files):
        try:
            if not path.is_file():  # opening a pipe would never end
                continue
            with Image.open(path, formats=FORMATS) as image:
                headers[path] = Header(*image.size, path.stat().st_size, image.format or "", image.mode)
        except Exception:  # decoders raise many kinds; `inspect_images` says what is wrong with the file
            continue
    return headers
