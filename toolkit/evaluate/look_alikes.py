"""Images that may show the same photograph though no whole-image comparison says so: cropped, mirrored,
turned, framed. For somebody to look at; nothing is refused for it.

    python -m toolkit evaluate contamination … --look-alikes look.json

Second stage of `contamination`, by local features: up to POINTS corners of each image with ORB's 256-bit
descriptors (Rublee et al., ICCV 2011), of evaluation images those of the mirror image too. Descriptors that
agree in one of TABLES samples of BITS bits vote for the image that they come from (locality-sensitive
hashing; Indyk and Motwani, STOC 1998), so that not every pair is compared. What gets VOTES is compared point
by point: one similarity transform has to explain INLIERS pairs of points, and where it lays the two images
over each other, their greys have to correlate by CORRELATION. The limits were measured by
tests/bench/bench_look_alikes.py.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy
from PIL import Image

from toolkit.benchmarks import BENCHMARKS
from toolkit.benchmarks.base import Files
from toolkit.images import Unreadable, opened, rgb
from toolkit.progress import Progress

SIDE, POINTS = 320, 300  # pixels of the longer side, corners
TABLES, BITS, VOTES = 8, 22, 4
CROWD = 64  # descriptors that agree in one sample: more are a pattern that many images have, and do not vote
CANDIDATES = 5  # images with the most votes that are compared
NEAR, REPROJECTED = 64, 4.0  # bits in which two descriptors may differ; pixels that a point may be off
INLIERS, OVERLAP, CORRELATION = 12, 0.3, 0.8


class Features(NamedTuple):
    """points: float32 [n, 2], pixels of the image; grey: uint8 [height, width], the image at half its size;
    descriptors: uint8 [n, 32]."""

    grey: numpy.ndarray
    points: numpy.ndarray
    descriptors: numpy.ndarray


class Pair(NamedTuple):
    """Two images that may be of one photograph. correlation: of their greys, laid over each other."""

    training: str
    evaluation: str
    mirrored: bool
    points: int
    correlation: float


def grey_of(content: bytes) -> numpy.ndarray | None:
    """uint8 [height, width] with SIDE pixels on the longer side; None where the bytes cannot be decoded."""
    try:
        image = rgb(opened(content, ("L", (SIDE, SIDE)))).convert("L")
    except Unreadable:
        return None
    width, height = (max(1, round(length * SIDE / max(image.size))) for length in image.size)
    return numpy.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def features(grey: numpy.ndarray) -> Features:
    """Its corners; few or none in an image without texture."""
    # on small pictures the default border of 31 pixels would leave out a fifth of each side
    orb = cv2.ORB.create(POINTS, edgeThreshold=16, fastThreshold=10)
    corners, descriptors = orb.detectAndCompute(grey, None)
    small = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    if descriptors is None:
        return Features(small, numpy.zeros((0, 2), numpy.float32), numpy.zeros((0, 32), numpy.uint8))
    return Features(small, numpy.array([corner.pt for corner in corners], numpy.float32), descriptors)


class Index:
    """Evaluation images by name, and their mirror images, to be asked for those like another."""

    def __init__(self, images: Mapping[str, numpy.ndarray]) -> None:
        self.names = [(name, mirrored) for name in images for mirrored in (False, True)]
        self.features = [
            features(grey)
            for original in images.values()
            for grey in (original, numpy.ascontiguousarray(original[:, ::-1]))
        ]
        draw = numpy.random.default_rng(0)
        self.samples = [draw.choice(256, BITS, replace=False) for _ in range(TABLES)]
        counts = [len(own.descriptors) for own in self.features]
        owners = numpy.repeat(numpy.arange(len(counts), dtype=numpy.int32), counts)
        self.tables = []
        for sample in self.samples:
            keys = numpy.concatenate([sampled(own.descriptors, sample) for own in self.features])
            order = numpy.argsort(keys, kind="stable")
            self.tables.append((keys[order], owners[order]))

    def voted(self, descriptors: numpy.ndarray) -> list[int]:
        """The images with the most votes, at most CANDIDATES."""
        cast = []  # numbers of the voting descriptor and of the image, as one
        for sample, (keys, owners) in zip(self.samples, self.tables, strict=True):
            asked = sampled(descriptors, sample)
            begin = numpy.searchsorted(keys, asked, "left")
            counts = numpy.searchsorted(keys, asked, "right") - begin
            counts[counts > CROWD] = 0
            voters = numpy.repeat(numpy.arange(len(asked)), counts)
            places = numpy.repeat(begin - numpy.cumsum(counts) + counts, counts) + numpy.arange(len(voters))
            cast.append(voters * len(self.features) + owners[places])
        voting = numpy.unique(numpy.concatenate(cast)) % len(self.features)  # each once an image
        votes = numpy.bincount(voting, minlength=len(self.features))
        best = numpy.argsort(-votes, kind="stable")[:CANDIDATES]
        return [int(place) for place in best if votes[place] >= VOTES]

    def like(self, name: str, own: Features) -> Iterator[Pair]:
        """The evaluation images that may show what this training image shows, each once."""
        told: set[str] = set()
        for place in self.voted(own.descriptors) if len(own.descriptors) else []:
            other, mirrored = self.names[place]
            if other not in told and (same := agreement(own, self.features[place])):
                told.add(other)
                yield Pair(name, other, mirrored, *same)


def sampled(descriptors: numpy.ndarray, sample: numpy.ndarray) -> numpy.ndarray:
    """int32 [n]: the bits at the places `sample` of each descriptor, as a number."""
    bits = (descriptors[:, sample // 8] >> (7 - sample % 8).astype(numpy.uint8)) & 1
    return bits.astype(numpy.int32) @ (1 << numpy.arange(len(sample), dtype=numpy.int32))


def agreement(first: Features, second: Features) -> tuple[int, float] | None:
    """(points that one similarity transform explains, correlation of the greys where the images overlap);
    None where they do not agree."""
    matches = [
        match
        for match in cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(
            first.descriptors, second.descriptors
        )
        if match.distance <= NEAR
    ]
    if len(matches) < INLIERS:
        return None
    source = first.points[[match.queryIdx for match in matches]]
    target = second.points[[match.trainIdx for match in matches]]
    transform, explained = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=REPROJECTED)
    if transform is None or (points := int(explained.sum())) < INLIERS:
        return None
    halved = transform * [1, 1, 0.5]  # the greys have half the size
    height, width = second.grey.shape
    laid = cv2.warpAffine(first.grey, halved, (width, height))
    covered = cv2.warpAffine(numpy.ones_like(first.grey), halved, (width, height)) > 0
    if covered.mean() < OVERLAP:
        return None
    with numpy.errstate(divide="ignore", invalid="ignore"):  # with a plain grey there is none
        correlation = float(numpy.corrcoef(laid[covered], second.grey[covered])[0, 1])
    return (points, round(correlation, 3)) if correlation >= CORRELATION else None


def look_alikes(
    training: Mapping[str, Path],
    evaluation: Mapping[str, Files],
    copies: Iterable[Mapping[str, Any]],
    threads: int = 1,
) -> list[Pair]:
    """All pairs but the `copies` that `contamination` lists, in the order of `training`; files that are
    absent or cannot be decoded have none.

    training: files by name; evaluation: the files of each benchmark, by its name. Memory: some 80 kB for each
    evaluation image, and 80 kB more while they are read.
    """
    known = {(pair["training"], pair["evaluation"]) for pair in copies}
    tested = pictures(evaluation)
    with ThreadPoolExecutor(threads) as pool:
        greys = zip(tested, pool.map(_grey, tested.values()), strict=True)
        if not (readable := {name: grey for name, grey in greys if grey is not None}):
            return []
        index = Index(readable)

        def compare(name: str) -> list[Pair]:
            grey = _grey(training[name])
            return [] if grey is None else list(index.like(name, features(grey)))

        progress, pairs = Progress("looking for the same photographs", len(training)), []
        for alike in pool.map(compare, training):
            pairs += [pair for pair in alike if (pair.training, pair.evaluation) not in known]
            progress.step()
    return pairs


def pictures(evaluation: Mapping[str, Files]) -> dict[str, Path | bytes]:
    """The images of the benchmarks by their names in contamination.json: files, or their bytes."""
    return {
        f"{name} {key}": picture
        for name, files in evaluation.items()
        for key, picture in BENCHMARKS[name].items(files)[0].items()
    }


def _grey(source: Path | bytes) -> numpy.ndarray | None:
    try:
        return grey_of(source if isinstance(source, bytes) else source.read_bytes())
    except OSError:
        return None
