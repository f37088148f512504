"""The study of influence: groups, what is left out, signs, rank correlations."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest

from toolkit.benchmarks import CONTEST
from toolkit.studies import retraining
from toolkit.studies.retraining import ALL, LeaveOut, compared, group_of, markdown, ranked


@pytest.mark.parametrize(
    ("defect", "caption", "group"),
    [
        ("clean", "a red mug left of a blue box, sign reads nova", "clean, pair, with sign"),
        ("swapped", "three green fish and a sign", "swapped, several, without sign"),
        ("clean", "a picture of an orange ball", "clean, single, without sign"),
        ("tiny", "a red mug", "blurred or tiny"),
        ("generic", "a photo", "generic"),
    ],
)
def test_groups(defect, caption, group):
    assert group_of(defect, caption) == group


def test_rows_that_are_left_out_keep_the_others_weights():
    items = [SimpleNamespace(sample=SimpleNamespace(index=place), weight=0.25) for place in range(4)]
    assert LeaveOut(1, [1, 3]).draw(items, 0, lambda _: []) == [items[0], items[2]]


def test_a_group_that_helped_has_an_effect_above_zero():
    losses = {ALL: 1.0, "a": 1.5, "b": 0.9, "c": 1.1, "d": 1.0}
    runs = {
        (seed, name): {"textvqa": {"loss": loss + seed, "right": 50 - 10 * loss}}
        for seed in (1, 2)
        for name, loss in losses.items()
    }
    predicted = {1: [5.0, -2.0, 1.0, 0.5], 2: [3.0, -1.0, 0.5, 0.1]}
    result = compared(runs, "textvqa", ["a", "b", "c", "d"], predicted)
    assert result["effects"][1] == pytest.approx([0.5, -0.1, 0.1, 0.0])
    assert result["right_lost"][2] == pytest.approx([5.0, -1.0, 1.0, 0.0])
    assert result["of_seed"][1]["rho"] == result["of_means"]["rho"] == pytest.approx(1.0)
    page = markdown({"seeds": [1, 2], "groups": dict.fromkeys("abcd", 9), "benchmarks": {"textvqa": result}})
    assert "| TextVQA | seed 2 | +1.00 (" in page and "| a | 9 | +0.5000 | -5.00 | +4 |" in page


def test_the_interval_is_fishers_with_the_variance_of_ranks():
    a = list(range(19))
    b = [*range(9, 19), *range(9)]
    value = ranked(a, b)
    assert value["low"] < value["rho"] < value["high"]
    assert ranked(a, a[::-1])["rho"] == -1.0
    # by hand: rho 0.5, 19 pairs: tanh(atanh(0.5) -+ 1.96 sqrt(1.125 / 16))
    with patch("toolkit.studies.retraining.spearmanr", return_value=SimpleNamespace(statistic=0.5)):
        assert ranked(a, b) == pytest.approx({"rho": 0.5, "low": 0.0296, "high": 0.7891}, abs=1e-3)


def test_a_study_continues_with_trainings_of_its_own_code_alone(tmp_path, monkeypatch):
    groups, trained = {name: [place] for place, name in enumerate("abcde")}, []

    def retrain(world, seed, left_out, projector):
        trained.append(seed)
        return {name: {"loss": len(trained) ** 0.5, "right": 50.0 - len(trained)} for name in CONTEST}

    def summed(*_):
        return {name: [3.0, 1.0, 2.0, 5.0, 4.0] for name in CONTEST}

    monkeypatch.setattr(retraining, "World", lambda folder: SimpleNamespace(groups=lambda: groups))
    monkeypatch.setattr(retraining, "retrained", retrain)
    monkeypatch.setattr(retraining, "summed", summed)
    first = retraining.study(tmp_path, [1, 2])
    assert len(trained) == 2 * (1 + len(groups))
    assert retraining.study(tmp_path, [1, 2]) == first and len(trained) == 12
    monkeypatch.setattr(retraining.code, "digest", lambda *_: "0" * 64)
    retraining.study(tmp_path, [1, 2])
    assert len(trained) == 24
