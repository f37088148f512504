"""Damaged recipes: each is a recipe, or one sentence a problem."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as some
from tiny_data import ROOT

from toolkit.data import recipe
from toolkit.data.engine import juicer
from toolkit.data.recipe import allowed, plan
from toolkit.errors import UserError
from toolkit.studies import runs

SHIPPED = [path.read_text() for path in sorted((ROOT / "solution" / "recipes").glob("*.yaml"))]
QUICK = settings(max_examples=150)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def judged(folder: Path, text: str | bytes) -> None:
    """A recipe, or UserError; what reads recipes before they are checked has no exceptions of its own
    either."""
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text)
    planned = plan.plan(path)
    assert json.loads(planned).keys() == {"process"} and isinstance(plan.files(path), list)
    for read in (lambda: recipe.load(path, {"clip": folder}), lambda: runs.lacking(path, {})):
        try:
            found = read()
        except UserError as error:
            assert str(error) and len(str(error)) < 100_000
        else:
            assert isinstance(found, recipe.Recipe | list)
    try:
        found = recipe.load(path, {"clip": folder})
    except UserError:
        return
    json.dumps(found.raw_steps, allow_nan=False)  # the record holds it


scalars = (
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8) | some.dates()
)
scalars |= some.sampled_from(
    ["{clip}", "{clip", "/", "../x", "~", "solution/recipes/words", "a\0b", "4 B", "en", "\u202e"]
)
values = some.recursive(
    scalars,
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(some.text(max_size=5) | some.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
names = some.sampled_from(sorted(allowed.WORDS | allowed.PATHS | allowed.RESERVED)) | some.sampled_from(
    [
        "min_len",
        "max_ratio",
        "min_score",
        "where",
        "weights",
        "hf_clip",
        "trust_remote_code",
        "top_num",
        "rep_len",
        "any_or_all",
        "batch_size",
    ]
)
operators = some.sampled_from(sorted(allowed.OPERATORS)) | some.text(max_size=10) | scalars
steps = (
    some.dictionaries(operators, some.dictionaries(names | scalars, values, max_size=4) | values, max_size=2)
    | values
    | operators
)
documents = (
    some.fixed_dictionaries(
        {"process": some.lists(steps, max_size=4)}, optional={"project_name": values, "np": values}
    )
    | values
)


@QUICK
@given(document=documents)
def test_wrong_values(tmp_path: Path, document: Any) -> None:
    try:
        text = yaml.dump(document, allow_unicode=True)
    except (yaml.YAMLError, TypeError):  # keys that are not texts sort with nothing
        text = yaml.dump(document, allow_unicode=True, sort_keys=False)
    judged(tmp_path, text)


@QUICK
@given(
    text=some.text(
        alphabet=some.characters(codec="utf-8") | some.sampled_from("{}[]:-&*!<>|'\"#\n \t"), max_size=80
    )
)
@example(text="process: [*a]")
@example(text="process: &a [*a]")
@example(text="a: &a [x, x]\nb: &b [*a, *a]\nprocess: [{text_length_filter: {min_len: *b}}]")
@example(text="process: [{text_length_filter: {<<: {min_len: 1}}}]")
@example(text="process: [!!python/object/apply:os.system [ls]]")
@example(text="process: " + "[" * 50_000)
@example(text="process: [" + "{a: " * 5_000 + "1" + "}" * 5_000 + "]")
@example(text="process: [{text_length_filter: {min_len: " + "9" * 5_000 + "}}]")
@example(text="process: [{? [a, b] : c}]")
@example(text="process: [{text_length_filter: {min_len: 1, min_len: 2}}]")
@example(text="process:\n" + "- a\n" * 60_000)
@example(text="process: [{" + "a" * 100_000 + ": {}}]")
@example(text="\ufeffprocess: []")
@example(text="process: []\n---\nprocess: []")
@example(text='process: [{replace_content_mapper: {pattern: "\\ud800"}}]')
@example(text="process: [{replace_content_mapper: {pattern: '('}}]")
def test_any_text(tmp_path: Path, text: str) -> None:
    judged(tmp_path, text)


@QUICK
@given(content=some.binary(max_size=60))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    judged(tmp_path, content)


@QUICK
@given(data=some.data())
def test_shipped_recipes_with_something_cut_out_or_put_in(tmp_path: Path, data: some.DataObject) -> None:
    text = data.draw(some.sampled_from(SHIPPED))
    start = data.draw(some.integers(0, len(text)))
    end = data.draw(some.integers(start, min(len(text), start + 40)))
    judged(
        tmp_path,
        text[:start]
        + data.draw(some.text(max_size=4) | some.sampled_from(["&a ", "*a", "- ", ": ", "{", "'"]))
        + text[end:],
    )


@QUICK
@given(data=some.data())
def test_arguments_of_the_wrong_kind(tmp_path: Path, data: some.DataObject) -> None:
    from toolkit.data.operators import registered

    operator = data.draw(some.sampled_from(sorted(allowed.OPERATORS)))
    parameters = some.sampled_from(sorted(recipe.signature(registered(operator))))
    arguments = data.draw(
        some.dictionaries(parameters, scalars | some.integers(-1, 3) | some.floats(0, 1), max_size=3)
    )
    judged(tmp_path, yaml.dump({"process": [{operator: arguments}]}, allow_unicode=True))
