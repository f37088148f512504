"""Limits that follow from the rows they are applied to.

    min_score: {quantile: 0.3}          the value below which 30 % of the rows lie
    min_score: {mean_sd: -1.0}          the mean minus one standard deviation
    min_score: {rows: 200000}           so that this many rows are kept (more where values are equal)
    min_score: {agree: aesthetics}      the value that agrees best with another statistic's upper half
    (Cohen's kappa)

Each is computed over the rows that reach the filter, and the number that comes out stands in the record and
in `removed.jsonl`. An operator with more than one statistic needs to be told which: `{quantile: 0.3, of:
image_width}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FORMS = {"quantile": (0.0, 1.0), "mean_sd": (-100.0, 100.0), "rows": (1, 10**12), "agree": None}
CANDIDATES = 1000  # values tried for the best agreement


def problem(form: Mapping[str, Any]) -> str | None:
    """What is wrong with the form of a limit, None for a good form."""
    forms = [name for name in form if name in FORMS]
    if len(forms) != 1 or form.keys() - {*FORMS, "of"}:
        return f"exactly one of {', '.join(FORMS)} is expected, and of where it is needed"
    (name,) = forms
    value, limits = form[name], FORMS[name]
    if limits is None or "of" in form:
        names = [form[key] for key in ("agree", "of") if key in form]
        if not all(isinstance(text, str) and text for text in names):
            return "the name of a statistic is expected"
    if limits is not None:
        kind = int if name == "rows" else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not limits[0] <= value <= limits[1]:
            return f"{name} is a number from {limits[0]} to {limits[1]}"
    return None


def resolve(
    form: Mapping[str, Any], lower: bool, values: Sequence[float], other: Sequence[float] | None = None
) -> float:
    """The limit that `form` stands for: `lower` for a minimum, over `values` (not empty) and, for `agree`,
    the same rows' `other`.

    ValueError where `other` is the same in every row.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if "quantile" in form:
        return float(np.quantile(ordered, form["quantile"], method="lower" if lower else "higher"))
    if "mean_sd" in form:
        # its mean may lie beside it in the last digit, and nothing would be left
        if ordered[0] == ordered[-1]:
            return float(ordered[0])
        return float(ordered.mean() + form["mean_sd"] * ordered.std())
    if "rows" in form:
        rows = min(form["rows"], len(ordered))
        return float(ordered[-rows] if lower else ordered[rows - 1])
    assert other is not None
    if min(other) == max(other):
        raise ValueError(f"{form['agree']} is {other[0]:g} in every row, so there is nothing to agree with")
    return _agreement(np.asarray(values, dtype=np.float64), np.asarray(other, dtype=np.float64), lower)


def _agreement(values: np.ndarray, other: np.ndarray, lower: bool) -> float:
    """The value of `values` whose split has the largest kappa with `other`'s split at its median; the first
    of equally good ones."""
    is_good = other >= np.median(other)
    order = np.argsort(values if not lower else -values, kind="stable")
    rows_kept = np.arange(
        1, len(values) + 1
    )  # rows kept when the limit is the value at this place of the order
    good_kept = np.cumsum(is_good[order])
    share = rows_kept / len(values)
    agreed = (good_kept + (len(values) - rows_kept) - (is_good.sum() - good_kept)) / len(values)
    chance = share * is_good.mean() + (1 - share) * (1 - is_good.mean())
    kappa = np.divide(agreed - chance, 1 - chance, out=np.zeros(len(values)), where=chance < 1)
    ends = np.append(np.diff(values[order]) != 0, True)  # equal values are kept together
    places = np.flatnonzero(ends)
    places = places[np.unique(np.linspace(0, len(places) - 1, min(CANDIDATES, len(places))).astype(int))]
    return float(values[order][places[np.argmax(kappa[places])]])
