"""What the reader of text finds, and how fast: in photographs to look at, and in the embedded world against
its signs. By hand, in an environment of `make setup EXTRAS=ocr`:

    python tests/bench/bench_ocr.py ROWS IMAGES [--count 200] [--truth LABELS] [--output READ]

ROWS: rows as of a seed, whose first `--count` are read on one thread; LABELS: truth/labels.jsonl of the
embedded world, whose full captions name the sign of each image; READ: what was read, a line an image. A line
is right if it is the sign's word in any case.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from toolkit import assets, images
from toolkit.assets.fetch import fetch
from toolkit.data.ocr import CONFIDENT, Line, Reader, confident, tag
from toolkit.files import read_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    models = Path(tempfile.mkdtemp()) / "models"
    fetch("pp-ocrv6-small", assets.entry("pp-ocrv6-small"), models)
    reader, read, seconds = Reader(models), {}, 0.0
    reader.read(images.load(arguments.images / next(iter(read_jsonl(arguments.rows)))["images"][0]))
    for row in islice(read_jsonl(arguments.rows), arguments.count):
        image = images.load(arguments.images / row["images"][0])
        start = time.process_time()
        lines = reader.read(image)
        seconds += time.process_time() - start
        read[row["id"]] = lines
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
