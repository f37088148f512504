"""Data-Juicer's own operators on rows with nothing to compute from: docs/operators.md has the whole table."""

import inspect
import itertools
import json
import math
import re
from pathlib import Path

import ftfy
import pytest
from PIL import Image
from tiny_data import run_python

from toolkit.data.engine import juicer, pipeline, thresholds
from toolkit.data.engine.statistics import WalkRow
from toolkit.data.recipe import Step, allowed
from toolkit.data.recipe.statistic_names import COMPUTED
from toolkit.data.samples import text_of
from toolkit.errors import UserError
from toolkit.images import size_of

pytestmark = pytest.mark.usefixtures("offline")

TEXTS = {
    "alphanumeric_filter": {},
    "average_line_length_filter": {},
    "character_repetition_filter": {"rep_len": 5},
    "flagged_words_filter": {"flagged_words_dir": "solution/recipes/words"},
    "maximum_line_length_filter": {},
    "special_characters_filter": {},
    "text_length_filter": {},
    "word_repetition_filter": {"rep_len": 3},
    "words_num_filter": {},
}
IMAGES = ["aspect_ratio", "shape", "size", "face_count", "face_ratio", "subplot"]


def computed(operator: str, arguments: dict, rows: list[tuple[str, str, None]]) -> list[dict]:
    (found,) = juicer.compute(juicer.job([Step(1, operator, arguments)]), rows, [range(len(rows))])
    return [json.loads(value) for value in found]


@pytest.mark.parametrize("operator", TEXTS)
def test_texts_with_nothing_in_them_have_finite_statistics(operator: str) -> None:
    captions = [
        "",
        "a",
        "\u732b",
        "\u8fd9\u5e45\u56fe\u63cf\u7ed8\u4e86\u8857\u666f",
        "...",
        " ",
        "a a a a a a",
    ]
    rows = [(text, "none.jpg", None) for text in ["", *map(text_of, captions)]]
    for statistics in computed(operator, TEXTS[operator], rows):
        assert set(statistics) == set(COMPUTED[operator])
        assert all(math.isfinite(value) for value in statistics.values())


@pytest.mark.parametrize("operator", TEXTS)
def test_filters_of_texts_measure_the_caption(operator: str) -> None:
    captions = ["a red mug", "mug, mug, mug, mug, mug!", "\u732b", "a mug_ and a mug_\nand another line"]
    texts = [(text_of(caption), "none.jpg", None) for caption in captions]
    bare = [(caption, "none.jpg", None) for caption in captions]
    assert computed(operator, TEXTS[operator], texts) == computed(operator, TEXTS[operator], bare)
    counted = computed(operator, TEXTS[operator] | {"count_markers": True}, texts)
    stock = type(juicer.operator(Step(1, operator, TEXTS[operator]))).__base__
    assert stock.__module__.startswith("data_juicer.")
    assert counted == juicer._filter(stock(**TEXTS[operator]), texts, [{} for _ in texts], None)


def test_every_stock_filter_of_texts_measures_the_caption() -> None:
    from data_juicer.ops import Filter

    from toolkit.data.operators import registered
    from toolkit.data.operators.stock_operators import TEXT_FILTERS

    reading = set()
    for name in allowed.OPERATORS:
        kind = registered(name)
        source = inspect.getsource(kind.__base__ if name in TEXT_FILTERS else kind)
        if issubclass(kind, Filter) and "text_key" in source:
            reading |= set() if re.search("image|remove_special_tokens", source) else {name}
    assert reading == set(TEXT_FILTERS)


def test_the_names_of_all_statistics_are_known() -> None:
    from data_juicer.ops import Filter
    from data_juicer.utils.constant import StatsKeys

    from toolkit.data.operators import registered
    from toolkit.data.operators.stock_operators import TEXT_FILTERS

    filters = {name for name in allowed.OPERATORS if issubclass(registered(name), Filter)}
    assert COMPUTED.keys() == filters - {"specified_field_filter", "specified_numeric_field_filter"}
    for operator, names in COMPUTED.items():  # their own tests run those whose models are here
        kind = registered(operator)
        source = inspect.getsource(inspect.getmodule(kind.__base__ if operator in TEXT_FILTERS else kind))
        written = {getattr(StatsKeys, key) for key in re.findall(r"StatsKeys\.(\w+)", source)}
        assert all(name in written or f'"{name}"' in source for name in names), operator


def test_words_of_captions_and_of_whole_texts_are_not_mixed_up() -> None:
    steps = [
        Step(number, "words_num_filter", {"count_markers": counted})
        for number, counted in enumerate((True, False, True))
    ]
    rows = [(text_of("a red mug"), "none.jpg", None)]
    results = juicer.compute(juicer.job(steps), rows, [[0]] * len(steps))
    assert [json.loads(value)["num_words"] for (value,) in results] == [5, 3, 5]


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_with_nothing_on_them_have_finite_statistics(tmp_path: Path, name: str) -> None:
    for picture, size in {"plain": (64, 64), "dot": (1, 1), "strip": (100, 2)}.items():
        Image.new("RGB", size, "white").save(tmp_path / f"{picture}.png")
    rows = [(text_of("a"), str(path), None) for path in sorted(tmp_path.iterdir())]
    for statistics in computed(f"image_{name}_filter", {}, rows):
        assert set(statistics) == set(COMPUTED[f"image_{name}_filter"])
        assert all(
            math.isfinite(value) for (value,) in (one for one in statistics.values() if isinstance(one, list))
        )


@pytest.mark.parametrize("name", ["shape", "aspect_ratio"])
def test_filters_of_sizes_read_the_header_alone(tmp_path: Path, name: str) -> None:
    noise = Image.effect_noise((90, 60), 50)
    for path in (tmp_path / "whole.jpg", tmp_path / "cut.jpg"):
        noise.save(path)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:1000])  # no pixel can be decoded
    rows = [(text_of("a"), str(path), None) for path in sorted(tmp_path.iterdir())]
    shape = {"image_width": [90], "image_height": [60]}
    wanted = {"shape": shape, "aspect_ratio": {"aspect_ratios": [1.5]}}[name]
    assert computed(f"image_{name}_filter", {}, rows) == [wanted] * 2


def test_the_header_is_read_once_for_both_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def size(path: str) -> tuple[int, int]:
        read.append(Path(path).name)
        return size_of(path)

    monkeypatch.setattr("toolkit.data.operators.stock_operators.size_of", size)
    for name, width in (("a", 90), ("b", 45)):
        Image.effect_noise((width, 60), 50).save(tmp_path / f"{name}.png")
    rows = [(text_of("x"), str(path), None) for path in sorted(tmp_path.iterdir())]
    steps = [Step(1, "image_shape_filter", {}), Step(2, "image_aspect_ratio_filter", {})]
    shapes, ratios = juicer.compute(juicer.job(steps), rows, [range(2), range(2)])
    assert [json.loads(value)["image_width"] for value in shapes] == [[90], [45]]
    assert [json.loads(value)["aspect_ratios"] for value in ratios] == [[1.5], [0.75]]
    assert read == ["a.png", "b.png"]


def test_an_operator_does_not_import_ray() -> None:
    code = """
import sys
from toolkit.data.engine import juicer
from toolkit.data.recipe import Step
with juicer.offline():
    juicer.operator(Step(1, "text_length_filter", {}))
    assert "ray" not in sys.modules
    import data_juicer.core
    from data_juicer.core.data import NestedDataset
    assert data_juicer.core.data.NestedDataset is data_juicer.core.NestedDataset is NestedDataset
    assert not hasattr(data_juicer.core, "nothing")
    from transformers.utils import logging
    assert not logging.is_progress_bar_enabled()  # a bar for the weights of each model, in every log
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def selected(operator: str, arguments: dict, count: int) -> list[int]:
    from data_juicer.core.data import NestedDataset

    columns = {
        "id": list(range(count)),
        "text": ["x"] * count,
        "images": [["a"]] * count,
        "__dj__stats__": [{"s": 1.0}] * count,
    }
    return list(juicer.operator(Step(1, operator, arguments)).process(NestedDataset.from_dict(columns))["id"])


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"select_num": 30}, 6),
        ({"select_num": 3}, 3),
        ({"select_ratio": 0.01}, 1),
        ({"select_ratio": 1.0, "select_num": 30}, 6),
        ({}, 6),
    ],
)
def test_the_random_selector_keeps_a_row_once(arguments: dict, kept: int) -> None:
    found = selected("random_selector", arguments, 6)
    assert len(found) == len(set(found)) == kept


def test_the_random_selector_draws_as_the_stock_one() -> None:
    from data_juicer.core.data import NestedDataset
    from data_juicer.ops.selector.random_selector import RandomSelector

    stock = RandomSelector(select_ratio=0.5).process(NestedDataset.from_dict({"id": list(range(99))}))
    assert selected("random_selector", {"select_ratio": 0.5}, 99) == list(stock["id"])


def test_equal_statistics_keep_the_first_rows() -> None:
    arguments = {"field_key": "__dj__stats__.s", "topk": 2}
    assert selected("topk_specified_field_selector", arguments, 6) == [0, 1]
    assert selected("weighted_score_selector", {"weights": {"s": 1.0}, "top_num": 2}, 6) == [0, 1]


@pytest.mark.parametrize("value", [[0.5, 0.5], [], "low", None])
def test_a_rank_by_what_is_no_number_is_refused(value: object) -> None:
    rows = [WalkRow(0, "x", "x.jpg", b"", statistics={"s": value})]
    with pytest.raises(UserError, match=r"topk_specified_field_selector: s is [^:]+, not a number"):
        pipeline._assert_numbers(
            rows, Step(1, "topk_specified_field_selector", {"field_key": "__dj__stats__.s"})
        )


@pytest.mark.parametrize(
    "form", [{"quantile": 0.3}, {"mean_sd": 0.5}, {"mean_sd": -1.0}, {"rows": 3}, {"rows": 99}]
)
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("values", [[0.1] * 7, [0.1]])
def test_a_limit_over_equal_values_keeps_all_rows(form: dict, lower: bool, values: list[float]) -> None:
    assert thresholds.resolve(form, lower, values) == values[0]


def test_a_statistic_that_is_not_finite_names_its_row() -> None:
    with pytest.raises(ValueError, match=r"\(the row of a\.jpg\)"):
        juicer._json({"s": float("nan")}, "images/a.jpg")


def test_what_is_passed_over_ftfy_would_not_change() -> None:
    """Every printable ASCII sign beside every other; texts with others go through it."""
    from toolkit.data.operators import stock_operators

    signs = [chr(number) for number in range(128) if number >= 32 and number != 127] + ["\n", "\t"]
    plain = ["".join(pair) * 2 for pair in itertools.product(signs, repeat=2)]
    passed = [text for text in plain if stock_operators.PLAIN.fullmatch(text)]
    assert len(passed) == (len(signs) - 1) ** 2  # all without &
    assert [ftfy.fix_text(text, normalization="NFKC") for text in passed] == passed
    others = ["schÃ¶n", "a &amp; b", "bell\a", "\r\n", "cut\ud800", "\x0c", "a\x7f", "ﬁ"]
    rows = [(text, "", None) for text in ["plain", *others]]
    (results,) = juicer.compute(juicer.job([Step(1, "fix_unicode_mapper", {})]), rows, [range(len(rows))])
    texts = [json.loads(result)[0][0] for result in results]
    assert texts == ["plain", *(ftfy.fix_text(text, normalization="NFC") for text in others)]
    assert texts[1:4] == ["schön", "a & b", "bell"]
