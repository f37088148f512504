"""Groups of duplicates: those of the stock operators, and each row knows which one it repeats."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from toolkit.data import duplicates, juicer, recipe


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def texts() -> list[str]:
    """Sentences of eleven words, some with a word or two exchanged, some repeated."""
    rng = np.random.default_rng(1)
    words = [f"w{number}" for number in range(60)]
    found: list[str] = []
    for number in range(300):
        if number % 3 and found:
            sentence = str(rng.choice(found)).split()
            for _ in range(int(rng.integers(0, 3))):
                sentence[int(rng.integers(len(sentence)))] = str(rng.choice(words))
        else:
            sentence = list(rng.choice(words, 11))
        found.append(" ".join(sentence))
    return found


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("document_deduplicator", {"lowercase": True}),
        ("document_minhash_deduplicator", {"window_size": 2, "num_permutations": 64, "jaccard_threshold": 0.5}),
    ],
)
def test_the_same_rows_stay_as_in_stock_data_juicer(operator: str, arguments: dict) -> None:
    from data_juicer.core.data import NestedDataset

    rows = texts()
    step = recipe.Step(1, operator, arguments)
    made = juicer.operator(step)
    stock = made.run(NestedDataset.from_dict({"id": list(range(len(rows))), "text": rows}))
    (found,) = juicer.compute(juicer.job([step]), [(text, "none.jpg", None) for text in rows], [range(len(rows))])
    firsts = duplicates.firsts(made, [json.loads(value) for value in found])
    assert [place for place, first in enumerate(firsts) if first == place] == list(stock["id"])
    assert 0 < len(stock) < len(rows)
    assert all(firsts[first] == first < place for place, first in enumerate(firsts) if first != place)


def test_simhash_groups_are_those_of_all_pairs() -> None:
    rows = texts()
    step = recipe.Step(1, "batched_simhash_deduplicator", {"window_size": 1, "hamming_distance": 8})
    (found,) = juicer.compute(juicer.job([step]), [(text, "none.jpg", None) for text in rows], [range(len(rows))])
    values = [json.loads(value) for value in found]
    hashes = [int(next(iter(value.values()))) for value in values]
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for one in range(len(rows)):
        for other in range(one):
            if (hashes[one] ^ hashes[other]).bit_count() <= 8:
                low, high = sorted((root(one), root(other)))
                parent[high] = low
    firsts = duplicates.firsts(juicer.operator(step), values)
    assert firsts == [root(place) for place in range(len(rows))]
    assert 100 < sum(first != place for place, first in enumerate(firsts)) < 250
    same = [place for place, text in enumerate(rows) if rows.index(text) < place]
    assert same and all(firsts[place] != place for place in same)


def test_an_image_without_a_hash_repeats_nothing() -> None:
    from data_juicer.utils.constant import HashKeys

    values = [{HashKeys.imagehash: ""}, {HashKeys.imagehash: ""}, {HashKeys.imagehash: "a"}, {HashKeys.imagehash: "a"}]
    assert duplicates.firsts(None, values) == [0, 1, 2, 2]
    assert duplicates.firsts(None, []) == []
