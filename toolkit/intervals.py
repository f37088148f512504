"""The one bootstrap, and the interval over training seeds."""

from collections.abc import Sequence

import numpy
from scipy.stats import t

Interval = list[float | None]  # [low, high]; an unbounded end is None
PERCENTILES = (2.5, 97.5)


def middle(values: numpy.ndarray) -> Interval:
    """The middle 95 % of resampled values."""
    return [
        float(bound) if numpy.isfinite(bound) else None
        for bound in numpy.percentile(values, PERCENTILES, method="nearest")
    ]


def resampled_means(
    scores: numpy.ndarray, resamples: int, generator: numpy.random.Generator
) -> numpy.ndarray:
    """Means [rows, resamples] of scores [rows, columns], every row on the same columns, drawn with
    replacement."""
    columns = scores.shape[1]
    means = [scores[:, generator.integers(columns, size=columns)].mean(axis=1) for _ in range(resamples)]
    return numpy.array(means).T


def of_few(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean of a few values that vary like a normal distribution; unbounded for
    a single value."""
    if len(values) < 2:
        return [None, None]
    reach = float(t.ppf(0.975, len(values) - 1)) * float(numpy.std(values, ddof=1)) / len(values) ** 0.5
    mean = float(numpy.mean(values))
    return [mean - reach, mean + reach]
