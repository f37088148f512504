"""The figures of an analysis: lengths of captions, sizes of images, and why a type/token ratio does not
measure diversity."""

from collections.abc import Mapping
from pathlib import Path

import numpy
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.data.analysis.diversity import Corpus, rarefied
from toolkit.data.analysis.rows import Header, Rows
from toolkit.data.analysis.shape import Sample, Statistics
from toolkit.svg import STYLE, save

LOOK = STYLE | {
    "savefig.transparent": True,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
POINTS = 60  # of a curve
SERIES = {  # field of Sample: label and colour; the first misleads
    "type_token_ratio": ("type/token ratio", "C3"),
    "entropy_miller_madow": ("entropy, Miller-Madow", "C1"),
    "mtld": ("MTLD", "C4"),
    "hdd": ("HD-D", "C2"),
    "distinct_words_of_1000": ("distinct words of 1,000", "C0"),
}
CAPTIONS = {  # file: what it shows
    "text.svg": "Captions without the two special tokens: words and characters.",
    "images.svg": "Sizes of the image files, and their bytes.",
    "diversity.svg": "Left: the same rows, only fewer. A type/token ratio rises when rows are left out, so "
    "ratios of data sets of different sizes say nothing; measures at a fixed number of "
    "drawn words stay. Right: distinct words expected among drawn words.",
}


def draw(rows: Rows, headers: Mapping[Path, Header], statistics: Statistics, folder: Path) -> None:
    """Write every figure of CAPTIONS to `folder`."""
    with style.context(["default", LOOK]):
        figure, axes = _pair()
        histogram(
            axes[0],
            [len(caption.split()) for caption in rows.captions],
            "words a caption",
            whole_numbers=True,
        )
        histogram(
            axes[1], [len(caption) for caption in rows.captions], "characters a caption", whole_numbers=True
        )
        save(figure, folder / "text.svg")

        figure, axes = _pair()
        sides(axes[0], list(headers.values()))
        histogram(axes[1], [header.bytes / 1024 for header in headers.values()], "KiB a file")
        save(figure, folder / "images.svg")

        figure, axes = _pair()
        drift(axes[0], statistics.diversity.by_sample_size if statistics.diversity else [])
        growth(axes[1], Corpus(rows.captions))
        save(figure, folder / "diversity.svg")


def _pair() -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6, 2.5), layout="constrained")
    return figure, list(figure.subplots(1, 2))


def histogram(axes: Axes, values: list[float], label: str, whole_numbers: bool = False) -> None:
    """Counts, the last bin with everything above the 99.5th percentile."""
    axes.set(title=label, ylabel="rows" if whole_numbers else "files")
    if not values:
        return
    high = float(numpy.quantile(values, 0.995))
    step = max(1, round((high - min(values)) / 40)) if whole_numbers else (high - min(values)) / 40 or 1
    edges = numpy.arange(min(values), high + 2 * step, step) - (0.5 if whole_numbers else 0)
    axes.hist(numpy.minimum(values, edges[-1] - step / 2), bins=edges.tolist(), color="C0", alpha=0.85)


def sides(axes: Axes, headers: list[Header]) -> None:
    """Width against height, as an area for each pair of sizes that occurs."""
    axes.set(title="width and height, px", xlabel="width", ylabel="height")
    if headers:
        pairs, times = numpy.unique(
            [(header.width, header.height) for header in headers], axis=0, return_counts=True
        )
        axes.scatter(pairs[:, 0], pairs[:, 1], s=4 + 200 * times / times.max(), alpha=0.35, linewidth=0)
    axes.set(xlim=(0, None), ylim=(0, None))


def drift(axes: Axes, samples: list[Sample]) -> None:
    """Measures of smaller samples, each divided by its value for all rows."""
    axes.set(title="measure of a sample, by that of all rows", xlabel="words in the sample", xscale="log")
    for key, (label, color) in SERIES.items():
        points = [
            (sample.words, getattr(sample, key)) for sample in samples if getattr(sample, key) is not None
        ]
        if points and points[-1][1]:
            axes.plot(
                *zip(*[(words, value / points[-1][1]) for words, value in points], strict=True),
                "o-",
                ms=3,
                color=color,
                label=label,
            )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.set_ylim(0, None)
    if samples:
        axes.set_xticks([samples[0].words, samples[-1].words])
        axes.legend(frameon=False, fontsize=7)


def growth(axes: Axes, corpus: Corpus) -> None:
    """Distinct words expected among drawn words."""
    axes.set(title="distinct words among drawn words", xlabel="words drawn", ylabel="distinct")
    counts = corpus.counts("words", corpus.everything)
    if len(counts):
        sizes = numpy.unique(numpy.linspace(1, counts.sum(), POINTS).astype(int))
        axes.plot(sizes, [rarefied(counts, int(size)) for size in sizes])
