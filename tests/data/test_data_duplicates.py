"""Groups of duplicates: those of the stock operators, and each row knows which one it repeats."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.data import duplicates, recipe
from toolkit.data.engine import juicer
from toolkit.data.samples import text_of


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def texts() -> list[str]:
    """Sentences of eleven words, some with a word or two exchanged, some repeated."""
    rng = np.random.default_rng(1)
    words = [f"w{number}" for number in range(60)]
    actual: list[str] = []
    for number in range(300):
        if number % 3 and actual:
            sentence = str(rng.choice(actual)).split()
            for _ in range(int(rng.integers(0, 3))):
                sentence[int(rng.integers(len(sentence)))] = str(rng.choice(words))
        else:
            sentence = list(rng.choice(words, 11))
        actual.append(" ".join(sentence))
    return actual


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("document_deduplicator", {"lowercase": True}),
        (
            "document_minhash_deduplicator",
            {"window_size": 2, "num_permutations": 64, "jaccard_threshold": 0.5},
        ),
        (
            "document_minhash_deduplicator",
            {"window_size": 3, "num_permutations": 64, "jaccard_threshold": 0.7},
        ),
        (
            "document_minhash_deduplicator",
            {"window_size": 2, "num_permutations": 64, "num_bands": 7, "num_rows_per_band": 3},
        ),
    ],
)
def test_the_same_rows_stay_as_in_stock_data_juicer(operator: str, arguments: dict) -> None:
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops import deduplicator
    from data_juicer.utils.constant import HashKeys

    rows = [text_of(text) for text in texts()]
    step = recipe.Step(1, operator, arguments)
    made = juicer.operator(step)
    unmended = getattr(deduplicator, "".join(map(str.title, operator.split("_"))))(**arguments)
    stock = unmended.run(NestedDataset.from_dict({"id": list(range(len(rows))), "text": rows}))
    (actual,) = juicer.compute(
        juicer.job([step]), [(text, "none.jpg", None) for text in rows], [range(len(rows))]
    )
    hashes = [json.loads(value) for value in actual]
    assert all(band < 1 << 63 for row in hashes for band in row.get(HashKeys.minhash, []))  # a column's int64
    firsts = duplicates.firsts(made, hashes)
    assert [place for place, first in enumerate(firsts) if first == place] == list(stock["id"])
    assert 0 < len(stock) < len(rows)
    assert all(firsts[first] == first < place for place, first in enumerate(firsts) if first != place)


def test_simhash_groups_are_those_of_all_pairs() -> None:
    rows = texts()
    step = recipe.Step(1, "batched_simhash_deduplicator", {"window_size": 1, "hamming_distance": 8})
    (actual,) = juicer.compute(
        juicer.job([step]), [(text, "none.jpg", None) for text in rows], [range(len(rows))]
    )
    values = [json.loads(value) for value in actual]
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

    values = [
        {HashKeys.imagehash: ""},
        {HashKeys.imagehash: ""},
        {HashKeys.imagehash: "a"},
        {HashKeys.imagehash: "a"},
    ]
    assert duplicates.firsts(None, values) == [0, 1, 2, 2]
    assert duplicates.firsts(None, []) == []


def firsts(operator: str, arguments: dict, captions: list[str], images: list[str] | None = None) -> list[int]:
    """For each caption, in the seed's form, the place of the row that it repeats."""
    step = recipe.Step(1, operator, arguments)
    images = images or ["none.jpg"] * len(captions)
    rows = [(text_of(caption), image, None) for caption, image in zip(captions, images, strict=True)]
    (actual,) = juicer.compute(juicer.job([step]), rows, [range(len(rows))])
    return duplicates.firsts(juicer.operator(step), [json.loads(value) for value in actual])


SHORT = [
    "a red cup",
    "two dogs",
    "A red cup",
    "night market",
    "cat",
    "dog",
    "猫",
    "犬",
    "两只猫",
    "cat",
    "7",
    "9",
    "...",
]


@pytest.mark.parametrize("tokenization", ["space", "character", "punctuation"])
@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_short_captions_repeat_only_equal_ones(tokenization: str, window: int) -> None:
    if window == 1 and tokenization == "character":
        return  # single letters: "a red cup" and "a cured pa" are the same by wish
    arguments = {"tokenization": tokenization, "window_size": window, "jaccard_threshold": 0.8}
    actual = firsts("document_minhash_deduplicator", arguments, SHORT)
    assert actual == [0, 1, 0, 3, 4, 5, 6, 7, 8, 4, 10, 11, 12]


def test_what_a_pattern_leaves_nothing_of_repeats_only_its_equal() -> None:
    captions = ["2016", "2017", "a 2016", "A 2017", "2016"]
    for operator, arguments in [
        ("document_minhash_deduplicator", {"ignore_pattern": r"\d"}),
        ("document_minhash_deduplicator", {"ignore_pattern": r"\d", "window_size": 1}),
        ("document_deduplicator", {"ignore_non_character": True, "lowercase": True}),
    ]:
        assert firsts(operator, arguments, captions) == [0, 1, 2, 2, 0]


UNSPACED = [
    "这幅图描绘了一个繁忙城市中的生动街景画面中心是一条街道",
    "这幅图描绘了一个繁忙城市中的生动街景画面中心是一条大街",
    "这幅画展示了一间十九世纪风格的古老书房墙上挂着几张草图",
    "棚の上に赤いコーヒーカップがあります",
    "แมวสีดำนอนบนโซฟา",
]


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("document_minhash_deduplicator", {"window_size": 3, "jaccard_threshold": 0.6}),
        ("batched_simhash_deduplicator", {"window_size": 1, "hamming_distance": 12}),
    ],
)
def test_scripts_without_spaces_are_cut_into_characters(operator: str, arguments: dict) -> None:
    assert firsts(operator, arguments, UNSPACED) == [0, 0, 2, 3, 4]


def test_the_stock_simhash_of_short_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:  # simhash-pybind is not among the locked packages
        @staticmethod
        def compute(hashes) -> int:
            return sum(hashes) % 2**64

        @staticmethod
        def unsigned_hash(shingle: bytes) -> int:
            return int.from_bytes(shingle, "big") % 2**64

    monkeypatch.setattr("data_juicer.ops.deduplicator.document_simhash_deduplicator.simhash", Package)
    long = "a red cup on a table near the window of a house"
    assert firsts("document_simhash_deduplicator", {}, [*SHORT[:6], long, long]) == [0, 1, 0, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("method", ["phash", "dhash", "ahash", "whash"])
def test_pictures_of_one_colour_repeat_only_the_same_colour(tmp_path: Path, method: str) -> None:
    colours = ["white", "black", "red", "white", "gray", "white"]
    for number, colour in enumerate(colours):
        Image.new("RGB", (64 + 8 * (number == 5), 64), colour).save(tmp_path / f"{number}.png")
    images = [str(tmp_path / f"{number}.png") for number in range(len(colours))]
    assert firsts("image_deduplicator", {"method": method}, ["a wall"] * len(images), images) == [
        0,
        1,
        2,
        0,
        4,
        0,
    ]
