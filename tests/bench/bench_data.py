"""Time and memory of the data pipeline without models: everything but captioners and scores.

    PYTHONPATH=. python tests/bench/bench_data.py --rows 10 10000 100000 400000

For each number of rows a seed set is drawn, then three commands are timed as a user would run them, on
`--processes` (2): `data score` with an empty store, `data synthesize` from the full store, and `data
synthesize` again with another threshold. Captions are random. Every row has an image file of its own, 26 KB
of 400 x 370 pixels: 500 pictures, with different bytes behind their ends. With `--images 500` the rows share
so many files, which are then read once. Memory is the largest process's; what a run needs above the smallest
one is the cost of the rows. Figures are those of this machine; ratios and rows a second of one run can be
compared.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from toolkit.data.samples import END_TOKEN, IMAGE_TOKEN
from toolkit.files import write_json

PICTURES = 500
STARTS = 3  # times that the start is measured: it is taken off all else
RECIPE = """
process:
  - fix_unicode_mapper:
  - whitespace_normalization_mapper:
  - punctuation_normalization_mapper:
  - text_length_filter: {min_len: 2, max_len: 472}
  - words_num_filter: {min_num: 2, max_num: 58}
  - alphanumeric_filter: {min_ratio: 0.4}
  - special_characters_filter: {max_ratio: 0.6}
  - character_repetition_filter: {rep_len: 10, max_ratio: 0.2}
  - word_repetition_filter: {rep_len: 3, max_ratio: 0.3}
  - image_shape_filter: {min_width: 64, min_height: 64}
  - image_aspect_ratio_filter: {min_ratio: 0.4, max_ratio: 2.5}
  - image_size_filter: {min_size: 1KB}
  - document_deduplicator:
  - document_minhash_deduplicator: {window_size: 2, jaccard_threshold: 0.8}
"""


def draw(folder: Path, rows: int, images: int | None = None) -> None:
    """`rows` rows and their images, or `images` for all of them; one in ten repeats an earlier caption."""
    rng = np.random.default_rng(rows)
    words = np.array(
        [
            f"{first}{second}"
            for first in ("mo", "ka", "li", "su", "ne", "to", "ra", "vi")
            for second in ("n", "ta", "ric", "sel", "ma", "lo")
        ]
    )
    (folder / "images").mkdir(parents=True)
    images = min(images or rows, rows)
    pictures = []
    for _ in range(min(PICTURES, images)):
        pixels = rng.integers(0, 255, (24, 25, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((400, 370)).save(saved := io.BytesIO(), "JPEG", quality=85)
        pictures.append(saved.getvalue())
    for number in range(images):
        picture = pictures[number % len(pictures)] + str(number).encode()  # a decoder stops at the JPEG's end
        (folder / f"images/{number:07d}.jpg").write_bytes(picture)
    previous = "a picture"
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            caption = previous if number % 10 == 9 else " ".join(rng.choice(words, 5 + number % 9))
            previous = caption
            text = f"{IMAGE_TOKEN}\n{caption} {END_TOKEN}"
            file.write(
                json.dumps(
                    {"id": f"{number:09d}", "text": text, "images": [f"images/{number % images:07d}.jpg"]}
                )
                + "\n"
            )


def run(verb: str, folder: Path, recipe: str, processes: int, *more: str) -> tuple[float, float]:
    """Seconds and MiB of the largest process of one command."""
    (folder / "recipe.yaml").write_text(recipe)
    places = [
        "--recipe",
        folder / "recipe.yaml",
        "--samples",
        folder / "rows.jsonl",
        "--images",
        folder,
        "--scores",
        folder / "scores",
    ]
    command = [
        sys.executable,
        "-m",
        "toolkit",
        "data",
        verb,
        *map(str, places),
        "--processes",
        str(processes),
        *more,
    ]
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


class Measured(NamedTuple):
    """Seconds of the three commands, MiB of the largest process and of the store."""

    score: float
    select: float
    again: float
    memory: float
    store: float


def measured(rows: int, images: int | None, processes: int) -> Measured:
    """The three commands with `rows` rows of their own."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        folder = Path(name)
        draw(folder, rows, images)
        outputs = [f"--output={folder}/out.jsonl", f"--removed={folder}/removed.jsonl"]
        outputs.append(f"--record={folder}/run.json")
        stricter = RECIPE.replace("min_num: 2", "min_num: 7")
        score, first = run("score", folder, RECIPE, processes, f"--output={folder}/scores.json")
        select, second = run("synthesize", folder, RECIPE, processes, *outputs)
        again, third = run("synthesize", folder, stricter, processes, *outputs)
        store = (folder / "scores/scores.sqlite").stat().st_size / 2**20
    return Measured(score, select, again, max(first, second, third), store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[10, 10_000],
        help="numbers of rows; the first one is the start, measured three times",
    )
    parser.add_argument("--images", type=int, help="image files that the rows share (one a row)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="figures of the last number of rows")
    arguments = parser.parse_args()
    print(
        f"{'rows':>8} {'score':>9} {'synthesize':>11} {'threshold':>10} {'rows/s':>8} {'MiB':>7} "
        f"{'above start':>12} {'store MiB':>10}"
    )
    start = None
    for rows in arguments.rows:
        runs = [measured(rows, arguments.images, arguments.processes) for _ in range(1 if start else STARTS)]
        m = Measured(*map(statistics.median, zip(*runs, strict=True)))
        start = start or m
        beyond = m.score + m.select - start.score - start.select
        rate = rows / beyond if beyond > 1 else None
        shown = round(rate) if rate else ""
        print(
            f"{rows:>8} {m.score:>7.1f} s {m.select:>9.1f} s {m.again:>8.1f} s {shown:>8} "
            f"{m.memory:>7.0f} {m.memory - start.memory:>12.0f} {m.store:>10.0f}",
            flush=True,
        )
    if arguments.json:
        seconds = (start.score + start.select) / 2
        figures = {"rows": rows, "start": seconds, "rows_per_second": rate, "threshold": m.again}
        write_json(arguments.json, figures | {"mib": m.memory})


if __name__ == "__main__":
    main()
