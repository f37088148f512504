"""Limits that follow from the rows."""

import numpy as np
import pytest

from toolkit.data.engine import thresholds

VALUES = [5.0, 1.0, 4.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("form", "lower", "limit", "kept"),
    [
        ({"quantile": 0.5}, True, 3.0, 4),
        ({"quantile": 0.0}, True, 1.0, 6),
        ({"quantile": 0.9}, False, 5.0, 6),
        ({"rows": 2}, True, 4.0, 2),
        ({"rows": 2}, False, 2.0, 2),
        ({"rows": 3}, True, 3.0, 4),  # equal values are kept together
        ({"rows": 100}, True, 1.0, 6),
        ({"mean_sd": 0}, True, 3.0, 4),
        ({"mean_sd": -1.0}, True, 3.0 - np.std(VALUES), 5),
    ],
)
def test_limits(form: dict, lower: bool, limit: float, kept: int) -> None:
    found = thresholds.resolve(form, lower, VALUES)
    assert found == pytest.approx(limit)
    assert sum(value >= found if lower else value <= found for value in VALUES) == kept


def test_agreement_finds_the_planted_boundary() -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(1000) / 1000
    other = np.where(values >= 0.5, 1.0, 0.0) + rng.normal(0, 0.01, 1000)
    assert thresholds.resolve({"agree": "other"}, True, values, other) == pytest.approx(0.5, abs=0.002)
    assert thresholds.resolve({"agree": "other"}, False, -values, other) == pytest.approx(-0.5, abs=0.002)
    noise = rng.normal(0, 1, 1000)
    assert thresholds.resolve({"agree": "other"}, True, values, noise) in values


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"quantil": 0.5}, "exactly one of"),
        ({"quantile": 0.5, "rows": 3}, "exactly one of"),
        ({"quantile": 1.5}, "quantile is a number from 0.0 to 1.0"),
        ({"rows": 0}, "rows is a number"),
        ({"rows": 2.5}, "rows is a number"),
        ({"quantile": True}, "quantile is a number"),
        ({"agree": 3}, "the name of a statistic"),
        ({"quantile": 0.5, "of": 3}, "the name of a statistic"),
    ],
)
def test_bad_forms(form: dict, text: str) -> None:
    assert text in thresholds.problem(form)


def test_equal_values_all_stay_at_their_mean() -> None:
    values = [0.1] * 3
    assert sum(values) / 3 != 0.1
    assert (
        thresholds.resolve({"mean_sd": 0}, True, values)
        == thresholds.resolve({"mean_sd": 2}, False, values)
        == 0.1
    )


def test_a_constant_is_nothing_to_agree_with() -> None:
    with pytest.raises(ValueError, match="x is 7 in every row"):
        thresholds.resolve({"agree": "x"}, True, [1, 2, 3], [7, 7, 7])


def test_good_forms() -> None:
    for form in (
        {"quantile": 1},
        {"rows": 5},
        {"mean_sd": -2},
        {"agree": "x"},
        {"quantile": 0.1, "of": "image_width"},
    ):
        assert thresholds.problem(form) is None
