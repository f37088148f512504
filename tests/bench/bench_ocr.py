"""What the reader of text finds, and how fast: in photographs to look at, and in the embedded world against
its signs. By hand, in an environment of `make setup EXTRAS=ocr`:

    python tests/bench/bench_ocr.py ROWS IMAGES [--count 200] [--truth LABELS] [--output READ] \\
        [--pictures FOLDER]

ROWS: rows as of a seed, whose first `--count` are read on one thread; LABELS: truth/labels.jsonl of the
embedded world, whose full captions name the sign of each image; READ: what was read, a line an image;
FOLDER: the first ten images with a confident line, what was read framed and beside them. A line is right
if it is the sign's word in any case.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[2]))
from toolkit import assets, images
from toolkit.assets.fetch import fetch
from toolkit.data.ocr import CONFIDENT, Line, Reader, confident, tag
from toolkit.files import read_jsonl

PICTURES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    models = Path(tempfile.mkdtemp()) / "models"
    fetch("pp-ocrv6-small", assets.entry("pp-ocrv6-small"), models)
    reader, read, seconds, pictures = Reader(models), {}, 0.0, 0
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    reader.read(images.load(arguments.images / next(iter(read_jsonl(arguments.rows)))["images"][0]))
    for row in islice(read_jsonl(arguments.rows), arguments.count):
        image = images.load(arguments.images / row["images"][0])
        start = time.process_time()
        lines = reader.read(image)
        seconds += time.process_time() - start
        read[row["id"]] = lines
        if arguments.pictures and confident(lines, CONFIDENT) and pictures < PICTURES:
            pictures += 1
            framed(image, lines).save(arguments.pictures / f"{pictures:02}.jpg", quality=85)
        if arguments.output:
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | tag(lines), ensure_ascii=False) + "\n")
    count = len(read)
    print(f"{count} images, {seconds / count:.2f} s each on one thread: {count / seconds:.2f} images/s")
    for confidence in (0.0, 0.5, 0.9, CONFIDENT):
        by_image = [confident(lines, confidence) for lines in read.values()]
        number = sum(map(len, by_image))
        print(f"confidence {confidence}: {number} lines in {sum(map(bool, by_image))} images")
    if arguments.truth:
        against_signs(read, arguments.truth)


def framed(image: Image.Image, lines: list[Line]) -> Image.Image:
    """The image with a numbered frame around each line, green where it is confident and otherwise orange, and
    on its right what was read."""
    width, height = image.size
    picture = Image.new("RGB", (width + 480, max(height, 20 * len(lines) + 10)), "white")
    picture.paste(image)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for number, line in enumerate(lines, start=1):
        left, top, right, bottom = (
            round(share * side) for share, side in zip(line.box, 2 * [width, height], strict=True)
        )
        color = "green" if line.confidence >= CONFIDENT else "darkorange"
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
        draw.text((left, max(top - 16, 0)), str(number), fill=color, font=font)
        text = f"{number}  {line.text}  {line.confidence:.2f}"
        draw.text((width + 8, 20 * number - 15), text, fill=color, font=font)
    return picture


def against_signs(read: dict[str, list[Line]], truth: Path) -> None:
    """Print precision and recall at several confidences: of all images, and of those that were neither
    blurred nor made tiny."""
    labels = {label["id"]: label for label in read_jsonl(truth)}
    signs = {name: labels[name]["full_caption"].rpartition("sign reads ")[2] for name in read}
    sound = [name for name in read if labels[name]["defect"] not in ("blurred", "tiny")]
    for title, names in (("all", list(read)), ("neither blurred nor tiny", sound)):
        for confidence in (0.5, 0.9, CONFIDENT):
            texts = {
                name: [line.text.lower() for line in confident(read[name], confidence)] for name in names
            }
            lines = sum(map(len, texts.values()))
            right = sum(texts[name].count(signs[name]) for name in names)
            recalled = sum(signs[name] in texts[name] for name in names)
            print(
                f"{title}, confidence {confidence}: {right} of {lines} lines are the sign's word "
                f"({100 * right / max(lines, 1):.1f} %), {recalled} of {len(names)} signs are among them "
                f"({100 * recalled / len(names):.1f} %)"
            )


if __name__ == "__main__":
    main()
