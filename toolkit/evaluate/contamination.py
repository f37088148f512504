"""Is a training row the near-duplicate of an evaluation item? Images by bytes and by perceptual hash,
captions by words.

    python -m toolkit evaluate contamination --samples output/processed_data/synth/processed_data.jsonl
    --images input/world-seed ... \\
        --output output/processed_data/synth/contamination.json

An image is found when it holds the same bytes, when the grey 32 x 32 images correlate by CERTAIN or more, or
when they correlate by CORRELATION and the 64-bit DCT hashes (Zauner 2010) differ in at most HAMMING bits.
Neither would do alone: the hash cannot tell plain drawn scenes apart, and in an image of few shapes a resize
turns many of its bits. The limits were measured (tests/bench/bench_contamination.py): copies in other
formats, sizes, proportions and in grey are found, strangers are not; nor are mirror images and those of which
an edge of 2 % is cut off.

A caption is found when it holds SHARE of the word 4-grams of a question with its answer. Shorter items than
WORDS words say too little: "What word is on the sign? maple" is in everyone's captions.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from scipy.fft import dctn

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Files
from toolkit.contest.records import describe
from toolkit.data.samples import caption_of, image_file, read_lines, row_problem
from toolkit.images import Unreadable, opened, rgb
from toolkit.progress import Progress

VERSION = 1
SIDE, LOW = 32, 8  # pixels of the grey image, frequencies a side that make the hash
HAMMING, CORRELATION, CERTAIN = 6, 0.985, 0.998
ROUNDING = 1e-4  # more than float32 loses in a correlation
WORDS, GRAM, SHARE = 12, 4, 0.8
BLOCK = 1 << 11  # training images compared at once: 2,048 x 5,000 correlations are 41 MB

LIMITS = {
    "hamming": HAMMING,
    "correlation": CORRELATION,
    "certain": CERTAIN,
    "words": WORDS,
    "gram": GRAM,
    "share": SHARE,
}
Print = tuple[str, int, numpy.ndarray | None]  # of an image file: see `fingerprint`


def fingerprint(content: bytes) -> Print:
    """(SHA-256 of the bytes, perceptual hash, grey image uint8 [SIDE * SIDE]); no grey image where the file
    cannot be decoded."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        # a JPEG is decoded no larger than needed
        image = opened(content, ("L", (4 * SIDE, 4 * SIDE)))
    except Unreadable:  # `data check` names these images
        return digest, 0, None
    grey = numpy.asarray(rgb(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    low = dctn(grey.astype(numpy.float64), norm="ortho")[:LOW, :LOW].ravel()
    return digest, int.from_bytes(numpy.packbits(low > numpy.median(low)).tobytes()), grey.ravel()


def correlation(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Of two grey images, -1 to 1; 0 where one has a single shade."""
    first, second = first - first.mean(), second - second.mean()
    length = float(numpy.linalg.norm(first) * numpy.linalg.norm(second))
    return float(first @ second) / length if length else 0.0


def centred(greys: list[numpy.ndarray]) -> numpy.ndarray:
    """float32 [images, SIDE * SIDE] whose products are correlations, but for rounding; zeros for an image of
    a single shade."""
    shades = numpy.array(greys, dtype=numpy.float32).reshape(-1, SIDE * SIDE)
    shades -= shades.mean(axis=1, keepdims=True)
    return shades / numpy.maximum(numpy.linalg.norm(shades, axis=1, keepdims=True), 1e-6)


def alike(first: Print, second: Print) -> float | None:
    """The correlation of two images that are near-duplicates, None for others."""
    # those without a grey image are compared by their bytes alone
    assert first[2] is not None and second[2] is not None
    likeness = correlation(first[2], second[2])
    near = likeness >= CERTAIN or (likeness >= CORRELATION and (first[1] ^ second[1]).bit_count() <= HAMMING)
    return likeness if near else None


def file_print(path: Path) -> Print:
    """The fingerprint of a file; an absent file has none."""
    try:
        return fingerprint(path.read_bytes())
    except OSError:
        return "", 0, None


def prints(paths: list[Path], threads: int) -> list[Print]:
    """Fingerprints of files, in order. Decoding, resizing and hashing let other threads run."""
    progress = Progress("reading images", len(paths))
    fingerprints = []
    with ThreadPoolExecutor(threads) as pool:
        for image_print in pool.map(file_print, paths):
            fingerprints.append(image_print)
            progress.step()
    return fingerprints


def near_images(train: list[Print], evaluation: list[Print]) -> Iterator[tuple[int, int, float]]:
    """(place in `train`, place in `evaluation`, correlation) of near-duplicates; equal bytes correlate by
    1."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for place, (digest, _, _) in enumerate(evaluation):
        if digest:
            by_digest[digest].append(place)
    equal = {(row, place) for row, (digest, _, _) in enumerate(train) for place in by_digest.get(digest, ())}
    yield from ((row, place, 1.0) for row, place in sorted(equal))
    shades, other_shades = (
        {place: grey for place, (_, _, grey) in enumerate(side) if grey is not None}
        for side in (train, evaluation)
    )
    rows, places = list(shades), list(other_shades)
    distinct_others = centred(list(other_shades.values()))
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        for i, j in numpy.argwhere(
            centred([shades[row] for row in block]) @ distinct_others.T >= CORRELATION - ROUNDING
        ):
            row, place = block[i], places[j]
            likeness = alike(train[row], evaluation[place])
            if likeness is not None and (row, place) not in equal:
                yield row, place, round(likeness, 4)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grams(text: list[str]) -> set[tuple[str, ...]]:
    return {tuple(text[place : place + GRAM]) for place in range(len(text) - GRAM + 1)}


def near_texts(captions: list[str], items: list[str]) -> Iterator[tuple[int, int, float]]:
    """(place in `captions`, place in `items`, share of the item's 4-grams) of captions that hold an item of
    WORDS words and more."""
    sets = [grams(item_words) if len(item_words := words(item)) >= WORDS else set() for item in items]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, item_grams in enumerate(sets):
        for gram in sorted(item_grams):
            holders[gram].append(place)
    for row, caption in enumerate(captions):
        shared = Counter(place for gram in grams(words(caption)) for place in holders.get(gram, ()))
        for place, count in sorted(shared.items()):
            if count >= SHARE * len(sets[place]):
                yield row, place, round(count / len(sets[place]), 4)


def contamination(
    samples: Path, images: Path, evaluation: Mapping[str, Files], threads: int = 1
) -> dict[str, Any]:
    """contamination.json: what was compared, by which limits, and every pair found.

    samples: training rows; images: the folder of the seed's, those that a recipe made lie beside `samples`.
    Rows that `data check` refuses are left out. evaluation: the files of each benchmark, by its name.
    """
    rows = [row for _, _, row, malformed in read_lines(samples) if not malformed and not row_problem(row)]
    paths = list(dict.fromkeys(row["images"][0] for row in rows))
    pictures: dict[str, Path | bytes] = {}
    texts: dict[str, str] = {}
    for name, files in evaluation.items():
        item_pictures, item_texts = BENCHMARKS[name].items(files)
        pictures |= {f"{name} {key}": picture for key, picture in item_pictures.items()}
        texts |= {f"{name} {key}": text for key, text in item_texts.items()}
    train = prints([image_file(path, images, samples) for path in paths], threads)
    tested = [
        fingerprint(picture) if isinstance(picture, bytes) else file_print(picture)
        for picture in pictures.values()
    ]
    names, keys = list(pictures), list(texts)
    pairs = [("image", paths[row], names[place], value) for row, place, value in near_images(train, tested)]
    captions = [caption_of(row["text"]) for row in rows]
    pairs += [
        ("text", rows[row]["id"], keys[place], value)
        for row, place, value in near_texts(captions, list(texts.values()))
    ]
    listing = "".join(f"{digest} {path}\n" for path, (digest, _, _) in zip(paths, train, strict=True))
    inputs = {file: files[file] for name, files in evaluation.items() for file in BENCHMARKS[name].files}
    return {
        "version": VERSION,
        "inputs": describe({"samples": samples, **inputs}),
        "images": hashlib.sha256(listing.encode()).hexdigest(),
        "limits": LIMITS,
        "compared": {
            "rows": len(rows),
            "images": len(paths),
            "evaluation_images": len(tested),
            "evaluation_texts": sum(len(words(text)) >= WORDS for text in texts.values()),
            "unreadable": sum(picture[2] is None for picture in [*train, *tested]),
        },
        "found": [
            dict(zip(("kind", "training", "evaluation", "likeness"), pair, strict=True)) for pair in pairs
        ],
    }
