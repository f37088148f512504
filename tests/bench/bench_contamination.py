"""What the limits of `evaluate contamination` rest on: how alike copies of an image are, and how alike
strangers. By hand:

    python tests/bench/bench_contamination.py IMAGES                  # copies of these, and these among each
    other python tests/bench/bench_contamination.py IMAGES EVALUATION       # and those of one folder against
    those of the other

Where the second folder is an evaluation asset, the number of its questions that are too short for the
comparison of texts is printed too. Folders are searched for .jpg, .jpeg and .png; copies are made of the
first 500. Bits: distance of the hashes. Of strangers the pair that correlates most is shown for each
distance.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from toolkit.benchmarks import BENCHMARKS, CONTEST
from toolkit.evaluate.contamination import WORDS, Print, alike, centred, correlation, fingerprint, words


def encoded(image: Image.Image, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, **({"format": "PNG"} | options))
    return content.getvalue()


def copies(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """(kind, file) of altered copies."""
    (width, height), edge = image.size, 0.02
    yield "PNG", encoded(image)
    for quality in (75, 40):
        yield f"JPEG {quality}", encoded(image, format="JPEG", quality=quality)
    for ratio in (0.3, 0.5, 0.7, 1.5):
        resized = image.resize((round(ratio * width), round(ratio * height)))
        for quality in (30, 60, 80, 95):
            yield f"{ratio} of the size, JPEG {quality}", encoded(resized, format="JPEG", quality=quality)
    yield "1.3 times as wide", encoded(image.resize((int(1.3 * width), height)))
    yield "grey", encoded(image.convert("L"))
    yield "15 % brighter", encoded(image.point(lambda value: min(255, int(1.15 * value + 5))))
    yield (
        "2 % cut off",
        encoded(
            image.crop(
                (int(edge * width), int(edge * height), int((1 - edge) * width), int((1 - edge) * height))
            )
        ),
    )
    yield "mirrored", encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def strangers(name: str, one: list[Print], two: list[Print]) -> None:
    """The pairs most alike by distance of their hashes, equal files left out."""
    hashes = [numpy.array([own[1] for own in group], numpy.uint64) for group in (one, two)]
    distances = numpy.bitwise_count(hashes[0][:, None] ^ hashes[1])
    likeness = centred([own[2] for own in one]) @ centred([own[2] for own in two]).T
    same = numpy.array([[a[0] == b[0] for b in two] for a in one])
    apart = ~same & (numpy.triu(numpy.ones_like(same), 1) if one is two else True)
    for low, high in ((0, 6), (7, 12), (13, 20), (21, 64)):
        values = likeness[apart & (low <= distances) & (distances <= high)]
        most = (
            f"most alike {values.max():.4f}; 99 % below {numpy.percentile(values, 99):.4f}"
            if len(values)
            else ""
        )
        print(f"{name}, {low:2} to {high:2} bits: {len(values):,} pairs {most}")


def short_texts(folder: Path) -> None:
    """How many questions with their answers have fewer than WORDS words."""
    for name in CONTEST:
        files = BENCHMARKS[name].official_files(folder / name, folder)
        if all(path.exists() for path in files.values()):
            texts = BENCHMARKS[name].items(files)[1].values()
            short = sum(len(words(text)) < WORDS for text in texts)
            print(f"{name}: {short} of {len(texts)} texts have fewer than {WORDS} words and are not compared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("evaluation", type=Path, nargs="?")
    arguments = parser.parse_args()
    folders = [folder for folder in (arguments.images, arguments.evaluation) if folder]
    files = [
        sorted(path for path in name.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
        for name in folders
    ]
    prints = [[fingerprint(path.read_bytes()) for path in group] for group in files]
    likeness: dict[str, list[tuple[bool, int, float]]] = {}
    for path, own in zip(files[0][:500], prints[0], strict=False):
        with Image.open(path) as image:
            for kind, content in copies(image.convert("RGB")):
                copy = fingerprint(content)
                bits = (copy[1] ^ own[1]).bit_count()
                likeness.setdefault(kind, []).append(
                    (alike(copy, own) is not None, bits, correlation(copy[2], own[2]))
                )
    for kind, pairs in likeness.items():
        found, bits, values = numpy.array(pairs).T
        most, least = numpy.percentile(bits, 99), numpy.percentile(values, 1)
        print(
            f"{kind:28} {100 * found.mean():5.1f} % found; bits: 99 % within {most:.0f}; correlation: 99 % "
            f"from {least:.4f}"
        )
    strangers("among each other", prints[0], prints[0])
    if len(folders) > 1:
        strangers("against the others", prints[0], prints[1])
        short_texts(arguments.evaluation)


if __name__ == "__main__":
    main()
