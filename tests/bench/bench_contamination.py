"""What the limits of `evaluate contamination` rest on: how alike copies of an image are, and how alike strangers. By hand:

    python tests/bench/bench_contamination.py IMAGES                  # copies of these, and these among each other
    python tests/bench/bench_contamination.py IMAGES EVALUATION       # and those of one folder against those of the other

Folders are searched for .jpg, .jpeg and .png; copies are made of the first 500. Bits: distance of the hashes. Of strangers within the limit
of bits the pair is shown that correlates most.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from toolkit.evaluate.contamination import CORRELATION, HAMMING, correlation, fingerprint


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
    for part in (2, 4):
        yield f"1/{part} of the size", encoded(image.resize((width // part, height // part)))
    yield "1.3 times as wide", encoded(image.resize((int(1.3 * width), height)))
    yield "grey", encoded(image.convert("L"))
    yield "15 % brighter", encoded(image.point(lambda value: min(255, int(1.15 * value + 5))))
    yield "2 % cut off", encoded(image.crop((int(edge * width), int(edge * height), int((1 - edge) * width), int((1 - edge) * height))))
    yield "mirrored", encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def strangers(name: str, one: list, two: list) -> None:
    """The pair most alike, equal files left out."""
    distances = numpy.bitwise_count(
        numpy.array([a[1] for a in one], numpy.uint64)[:, None] ^ numpy.array([b[1] for b in two], numpy.uint64)
    )
    pairs = [(i, j) for i, j in numpy.argwhere(distances <= HAMMING) if one[i][0] != two[j][0] and (one is not two or i < j)]
    most = max(((correlation(one[i][2], two[j][2]), distances[i, j]) for i, j in pairs), default=None)
    print(f"{name}: {distances.size:,} pairs, {len(pairs)} within {HAMMING} bits, most alike (correlation, bits): {most}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("evaluation", type=Path, nargs="?")
    arguments = parser.parse_args()
    folders = [folder for folder in (arguments.images, arguments.evaluation) if folder]
    files = [sorted(path for path in name.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png")) for name in folders]
    prints = [[fingerprint(path.read_bytes()) for path in group] for group in files]
    likeness: dict[str, list[tuple[int, float]]] = {}
    for path, own in zip(files[0][:500], prints[0], strict=False):
        with Image.open(path) as image:
            for kind, content in copies(image.convert("RGB")):
                _, bits, grey = fingerprint(content)
                likeness.setdefault(kind, []).append(((bits ^ own[1]).bit_count(), correlation(grey, own[2])))
    for kind, pairs in likeness.items():
        bits, alike = numpy.array(pairs).T
        found = 100 * numpy.mean((bits <= HAMMING) & (alike >= CORRELATION))
        most, least = numpy.percentile(bits, 99), numpy.percentile(alike, 1)
        print(f"{kind:20} {found:5.1f} % found; bits: 99 % within {most:.0f}; correlation: 99 % from {least:.4f}")
    strangers("among each other", prints[0], prints[0])
    if len(folders) > 1:
        strangers("against the others", prints[0], prints[1])


if __name__ == "__main__":
    main()
