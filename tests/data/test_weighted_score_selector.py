"""Several statistics in one score: ranks, weights, ties, and statistics that are not there."""

from pathlib import Path

import pytest
from test_data_synthesize import account, synthesize
from tiny_data import seed_set

from toolkit.data.engine import juicer
from toolkit.errors import UserError


def data(**columns: list):
    """A data set with these statistics."""
    from data_juicer.core.data import NestedDataset

    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return NestedDataset.from_dict(
        {"id": list(range(len(rows))), "text": ["x"] * len(rows), "__dj__stats__": rows}
    )


def selector(**arguments):
    with juicer.offline():
        from toolkit.data.operators.weighted_score_selector import WeightedScoreSelector

    return WeightedScoreSelector(**arguments)


def scores(made, dataset) -> list[float]:
    return [row["weighted_score"] for row in made.statistics(dataset)]


def test_the_score_is_the_weighted_mean_of_ranks() -> None:
    rows = data(similarity=[[0.1], [0.9], [0.5]], words=[3, 100, 4])
    made = selector(weights={"similarity": 3, "words": -1}, top_num=2)
    # ranks of similarity 0, 1, 1/2; of words, low is good, 1, 0, 1/2
    assert scores(made, rows) == pytest.approx([(0 + 1) / 4, (3 + 0) / 4, (1.5 + 0.5) / 4])
    assert made.process(rows)["id"][:] == [1, 2]


def test_neither_unit_nor_one_extreme_value_decides() -> None:
    made = selector(weights={"a": 1, "b": 1}, top_num=1)
    assert scores(made, data(a=[1, 2, 3], b=[3, 2, 1])) == scores(
        made, data(a=[1, 2, 1e9], b=[0.003, 0.002, 0.001])
    )


def test_equal_rows_keep_their_order_and_share_a_rank() -> None:
    rows = data(a=[1, 2, 2, 2])
    assert scores(selector(weights={"a": 1}, top_num=1), rows) == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])
    assert selector(weights={"a": 1}, top_num=2).process(rows)["id"][:] == [1, 2]


def test_the_fewer_of_number_and_ratio() -> None:
    rows = data(a=list(range(10)))
    assert selector(weights={"a": 1}, top_ratio=0.35).process(rows)["id"][:] == [7, 8, 9]
    assert selector(weights={"a": 1}, top_ratio=0.35, top_num=2).process(rows)["id"][:] == [8, 9]
    assert selector(weights={"a": 1}, top_ratio=0.01).process(rows)["id"][:] == [9]
    assert selector(weights={"a": 1}, top_num=50).process(rows)["id"][:] == list(range(10))


def test_a_statistic_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no number beauty: .* its statistics: a"):
        selector(weights={"beauty": 1}, top_num=1).process(data(a=[1, 2]))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weights": {"a": 0}, "top_num": 1},
        {"weights": {"a": 1}},
        {"weights": {"a": float("inf")}, "top_num": 1},
    ],
)
def test_arguments_that_make_no_sense(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"give top_num or top_ratio|weights is not"):
        selector(**arguments)


def test_the_score_of_a_row_that_is_not_selected_is_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = seed_set(tmp_path, 10)
    text = (
        "process: [{text_length_filter: {}}, {words_num_filter: {min_num: 0}}, {weighted_score_selector: "
        "{weights: {%s: 2}, top_num: 4}}]"
    )
    assert synthesize(tmp_path, text % "text_len", rows) == 0
    kept, removed, _ = account(tmp_path, 10)
    lengths = {row["id"]: len(row["text"]) for row in rows}
    assert {row["id"] for row in kept} == set(sorted(lengths, key=lambda row_id: -lengths[row_id])[:4])
    for entry in removed.values():
        assert entry["reason"] == f"not selected: weighted_score {entry['statistics']['weighted_score']}"
    assert synthesize(tmp_path, text % "beauty", rows) == 1
    assert (
        "step 3, weighted_score_selector: weights names beauty, which no filter before it in its segment "
        "computes; known: text_len, num_words" in capsys.readouterr().err
    )
