"""The space of recipes: what a file may hold, and which recipes follow from decisions."""

from pathlib import Path

import pytest

from toolkit.data.recipe import allowed
from toolkit.errors import UserError
from toolkit.search import space
from toolkit.search.space import Numbers, Pick, Switch

ROOT = Path(__file__).parents[2]
TEXT = """
process:
  - optional:
      - repeat_mapper: {times: {range: [2, 3]}}
  - choose:
      - []
      - - words_num_filter: {min_num: {choice: [1, 4]}}
        - image_deduplicator: {method: phash}
  - shuffle:
      - text_length_filter: {min_len: {quantile: {range: [0, 0.5, 0.25]}}}
      - image_shape_filter: {min_width: 64}
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "space.yaml").write_text(TEXT)
    return space.read(tmp_path / "space.yaml")


def test_decisions_make_a_recipe(small):
    values = {
        "1.optional": True,
        "1.1.times": 3,
        "2.choose": 1,
        "2.2.1.min_num": 1,
        "3.shuffle": 1,
        "3.1.1.min_len.quantile": 0.25,
    }
    assert small.recipe(lambda name, decision: values[name]) == [
        {"repeat_mapper": {"times": 3}},
        {"words_num_filter": {"min_num": 4}},
        {"image_deduplicator": {"method": "phash"}},
        {"image_shape_filter": {"min_width": 64}},
        {"text_length_filter": {"min_len": {"quantile": 0.25}}},
    ]
    assert small.decisions(values) == {
        "1.optional": Switch(changes=True),
        "1.1.times": Numbers(2, 3, 1),
        "2.choose": Pick(2),
        "2.2.1.min_num": Pick(2),
        "3.shuffle": Pick(2),
        "3.1.1.min_len.quantile": Numbers(0, 0.5, 0.25),
    }


def test_covering_recipes_have_all_alternatives_but_no_optional_mapper(small):
    first, second = small.covering()
    assert [next(iter(step)) for step in first] == ["text_length_filter", "image_shape_filter"]
    assert [next(iter(step)) for step in second][:2] == ["words_num_filter", "image_deduplicator"]
    assert {"repeat_mapper": {"times": 2}} in small.all_steps()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("process: 3", "has no list of steps under the key process"),
        ("process: []\nname: x", "name: only process is a key of a space"),
        ("process: [{choice: [1]}]", "step 1: not an operator with its arguments, nor optional, choose"),
        ("process: [{optional: {}}]", "step 1, optional: a list is expected"),
        ("process: [{choose: [3]}]", "step 1, choose: alternative 1 is not a list of steps"),
        ("process: [{optional: [{python_mapper: {}}]}]", "python_mapper: not an operator that a recipe may"),
        (
            "process: [{repeat_mapper: {times: {range: [2, 3.5]}}}]",
            "step 1, repeat_mapper: times: range is [2, 3.5], expected are two integers",
        ),
        (
            "process: [{text_length_filter: {min_len: {quantile: {range: [0, 0.5, 0.2]}}}}]",
            "step 1, text_length_filter: min_len: quantile: range is [0, 0.5, 0.2]",
        ),
        ("process: [{repeat_mapper: {times: {choice: []}}}]", "times: choice needs a list of values"),
        ("process: [{repeat_mapper: {times: {choice: [1], range: [1, 2]}}}]", "cannot stand together"),
        (f"process: [{{shuffle: [{'repeat_mapper: , ' * 4}repeat_mapper: ]}}]", "it has 5 steps, at most 4"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, problem):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        space.read(file)
    assert problem in str(caught.value) and "space.yaml" in str(caught.value)


def test_the_shipped_space_holds_what_a_recipe_may():
    shipped = space.read(ROOT / "solution/search/space.yaml")
    assert not allowed.problems(shipped.all_steps())
    kinds = {next(iter(step)).rpartition("_")[2] for step in shipped.all_steps()}
    assert kinds == {"filter", "mapper", "deduplicator", "selector"}
