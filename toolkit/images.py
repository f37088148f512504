"""Image files of others as pixels, by one rule for training, answering, recipes, hashes and galleries.

- Formats: those of FORMATS. Others, EPS for one, would start other programs.
- Size: at most MOST_PIXELS, and at most PROPORTION times as long as wide, else it is not a photograph but a
  strip or a bomb.
- Pixels: as stored. The orientation in EXIF is not applied, as in the official training code; of several
  frames the first; transparency is dropped.
- 16-bit greys are scaled to 8 bits. 32-bit and float pixels have no defined white and are refused: Pillow
  would cut them off at 255.
"""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - Pillow registers formats on import

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MOST_PIXELS = 178_956_970  # from where on Pillow itself refuses
PROPORTION = 50  # the longest of the contest's 10,000 seed images has 8.6
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Markers of JPEG (ITU-T T.81, table B.1): start and end of the image, a scan, frames, and any but a scan's
# restarts.
START, END, SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # whose segments say the size
HEAD = 1 << 16  # bytes of a file in which most JPEGs say it
SHORT = 1 << 12  # most bytes of a file, or of a JPEG's headers, whose check is remembered
SMALLEST = ("L", (1, 1))  # to which a JPEG is decoded at an eighth of its size
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")

# its own limit lies at half of ours
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Unreadable(ValueError):
    """What is wrong with an image, as a phrase; the caller knows where it came from."""


def opened(
    source: Path | str | bytes | BinaryIO,
    draft: tuple[str, tuple[int, int]] | None = None,
    *,
    most_pixels: int | None = None,
) -> Image.Image:
    """The decoded image; `draft`: mode and least size, to which a JPEG is decoded at a fraction of its cost;
    `most_pixels`: a limit in the place of MOST_PIXELS.

    Unreadable when it is none of FORMATS, damaged, too large or long, or has pixels without a defined white;
    OSError only when the file itself cannot be opened.
    """
    if isinstance(source, Path | str):
        with Path(source).open("rb") as handle:
            return opened(handle, draft, most_pixels=most_pixels)
    # Importing Data-Juicer turns this on for the process; half an image must not pass for a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        _assert_size(*image.size, most_pixels or MOST_PIXELS)
        if draft:
            image.draft(*draft)
        image.load()
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        size = len(source) if isinstance(source, bytes) else source.seek(0, io.SEEK_END)
        raise Unreadable(f"it is none of {', '.join(FORMATS)}" if size else "it is empty") from None
    except Exception as error:  # each decoder has exceptions of its own
        raise Unreadable(f"{error or type(error).__name__}") from None
    if image.mode in ("I", "F"):
        raise Unreadable(
            f"its {'float' if image.mode == 'F' else '32-bit'} pixels have no defined white: save it with 8 "
            "or 16 bits"
        )
    return image


def check(source: bytes | BinaryIO) -> None:
    """Unreadable where `opened` raises it, for the bytes of an ordinary JPEG in a fifth of its time or less.

    A decoder fails at a JPEG's headers, at its markers, or because it ends too soon; within a scan any bytes
    are pixels. So the headers are decoded without the pixels, and these are only searched for markers. Where
    the first of them is not the end of the image, as in a progressive JPEG, all is decoded. Most JPEGs of one
    source and size have the same headers.
    """
    if isinstance(source, bytes) and (pixels := _first_scan(source)):
        marker = MARKER.search(source, pixels)
        if marker and marker[0] == END:
            source = source[:pixels] + END
    if isinstance(source, bytes) and len(source) <= SHORT:
        _check_short(source)
    else:
        opened(source, draft=SMALLEST)


@lru_cache(maxsize=4096)
def _check_short(source: bytes) -> None:
    opened(source, draft=SMALLEST)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(second byte of the marker, begin and end of what it is followed by) of each segment of a JPEG, up to
    something else."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        begin, length = position + 4, int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + length
        yield data[begin - 3], begin, position


def _first_scan(data: bytes) -> int | None:
    """Where the first scan's data begin in a JPEG; None where there is none."""
    if not data.startswith(START):
        return None
    return next((end for kind, _, end in _segments(data) if kind == SCAN), None)


def size_of(source: Path | str | bytes) -> tuple[int, int]:
    """Width and height of an image file, pixels, from its header. OSError for what is none of FORMATS."""
    if isinstance(source, bytes):
        head = source
    else:
        with Path(source).open("rb", buffering=0) as handle:
            head = handle.read(HEAD)
    if size := _jpeg_size(head):
        return size
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        return image.size


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Width and height by the first bytes of a JPEG; None where these do not say it."""
    if not head.startswith(START):
        return None
    for kind, begin, end in _segments(head):
        if kind in FRAMES and begin + 5 <= min(end, len(head)):
            height, width = struct.unpack(">HH", head[begin + 1 : begin + 5])
            return (width, height) if width and height else None
    return None


def rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB."""
    if image.mode in SIXTEEN_BITS:
        # to 0...255 as 65535 / 257; Pillow's own conversion would make everything above 255 white
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    return image.convert("RGB")


def load(source: Path | str | bytes) -> Image.Image:
    """The decoded image in 8-bit RGB; Unreadable and OSError as `opened` raises them."""
    return rgb(opened(source))


def _assert_size(width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise Unreadable(f"{width} x {height} pixels, at most {most_pixels} are read")
    if max(width, height) > PROPORTION * min(width, height):
        raise Unreadable(f"{width} x {height} pixels: more than {PROPORTION} times as long as wide")
