"""Rows that are repeated stay whole and together."""

from collections.abc import Iterator

import pytest

from toolkit.data.engine import juicer


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def test_every_field_is_repeated_row_by_row() -> None:
    from toolkit.data.operators.repeat_mapper import RepeatMapper

    produced = RepeatMapper(times=3).process_batched(
        {"id": ["1", "2"], "text": ["a", "b"], "images": [["x"], ["y"]]}
    )
    assert produced == {
        "id": ["1"] * 3 + ["2"] * 3,
        "text": ["a"] * 3 + ["b"] * 3,
        "images": [["x"]] * 3 + [["y"]] * 3,
    }
    with pytest.raises(ValueError, match="at least 1"):
        RepeatMapper(times=0)
