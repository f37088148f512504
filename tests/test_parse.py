"""Strict readers: a text gives the value that stands there or is refused with a phrase, whatever is thrown at
them."""

import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from toolkit import parse
from toolkit.parse import DEPTH, Malformed, json_value, yaml_value

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES)
def test_json_that_python_writes_is_read_as_it_was(value):
    for ascii_only in (True, False):
        try:
            text = json.dumps(value, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:  # half a surrogate pair
            continue
        assert json_value(b"\xef\xbb\xbf" + text) == value


@given(VALUES)
def test_yaml_that_pyyaml_writes_is_read_as_it_was_or_refused(value):
    text = yaml.safe_dump(value, allow_unicode=True)
    with suppress(Malformed):  # an alias for an empty list that is there twice, for example
        assert yaml_value(text) == yaml.safe_load(text)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(data):
    for read in (json_value, yaml_value):
        try:
            value = read(data)
        except Malformed as problem:
            assert str(problem) and "\n" not in str(problem)
        else:
            json.dumps(value)


@given(VALUES, st.data())
def test_damaged_json_is_read_or_refused(value, data):
    text = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        json.dumps(json_value(bytes(text)))
    except Malformed as problem:
        assert str(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"accuracy": 99.9, "accuracy": 85.0}', "the key accuracy is there twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "the key b is there twice"),
        ("[" * 100_000, f"nested more than {DEPTH} deep"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), f"nested more than {DEPTH} deep"),
        ('{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1), f"nested more than {DEPTH} deep"),
        ("9" * 5000, "the number 99999999999999999999… has 5000 digits, at most 20 are read"),
        ("1e999", "1e999 is too large"),
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ('"\\ud800"', "half a surrogate pair (\\ud800 to \\udfff) stands for no character"),
        (b'"\xff"', "byte 1 is not UTF-8"),
    ],
)
def test_json_that_would_be_kept_otherwise_is_refused(text, problem):
    with pytest.raises(Malformed) as caught:
        json_value(text)
    assert str(caught.value) == problem


def test_json_as_deep_as_allowed_and_brackets_in_texts():
    assert json_value("[" * DEPTH + "]" * DEPTH)
    assert json_value(json.dumps(["[" * 500] * 3)) == ["[" * 500] * 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("finetune: {a: 1}\nfinetune: {b: 2}", "line 2: the key finetune is there twice"),
        ("experiments:\n  a: 1\n  b: 2\n  'a': 3", "line 4: the key a is there twice"),
        ("1: a\n1: b", "line 2: the key 1 is there twice"),
        ("seed: 010", "line 1: 010 would be read as 8: write 8, or put it in quotes if it is a text"),
        (
            "seed: 1_024",
            "line 1: 1_024 would be read as 1024: write 1024, or put it in quotes if it is a text",
        ),
        ("seed: 0x10", "line 1: 0x10 would be read as 16: write 16, or put it in quotes if it is a text"),
        ("seed: 1:30", "line 1: 1:30 would be read as 90: write 90, or put it in quotes if it is a text"),
        ("flip: no", "line 1: no would be read as false: write false, or put it in quotes if it is a text"),
        ("flip: On", "line 1: On would be read as true: write true, or put it in quotes if it is a text"),
        ("title: 2024-07-24", "line 1: 2024-07-24 would be read as a date: put it in quotes"),
        ("title: 2024-99-99", "line 1: 2024-99-99 cannot be read: put it in quotes if it is a text"),
        ("a: &x 1\nb: *x", "line 1: anchors (&) and aliases (*) are not read, write the value out"),
        ("b: *x", "line 1: anchors (&) and aliases (*) are not read, write the value out"),
        ("a:\n  <<: {b: 1}", "line 2: merge keys (<<) are not read, write the keys out"),
        (
            "a: !!python/object/apply:os.system [x]",
            "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system is not read",
        ),
        ("[" * 50_000, f"line 1: nested more than {DEPTH} deep"),
        ("a: " + "9" * 5000, "line 1: the number 99999999999999999999… has 5000 digits, at most 20 are read"),
        ("? [a]\n: 1", "line 1: a key must be a word or a number"),
        (b"\xff", "byte 0 is not UTF-8"),
        ("a" * (parse.YAML_BYTES + 1), f"{parse.YAML_BYTES + 1} bytes, at most {parse.YAML_BYTES} are read"),
    ],
)
def test_yaml_that_would_be_kept_otherwise_is_refused(text, problem):
    with pytest.raises(Malformed) as caught:
        yaml_value(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: -5", -5),
        ("a: 1.5e+3", 1500.0),
        ("a: .5", 0.5),
        ("a: true", True),
        ("a: '010'", "010"),
        ("a: 'no'", "no"),
        ("a: ~", None),
    ],
)
def test_plain_yaml_values(text, value):
    assert yaml_value("\ufeff" + text) == {"a": value}


@pytest.mark.parametrize(
    "line",
    ["{'loss'}", "{[1]: 2}", "['loss']", "{'loss': nan}", "{'loss': ", "[" * 2000, f"{{{' ' * 5000}}}"],
)
def test_what_no_trainer_logs_is_refused(line):
    with pytest.raises(parse.Malformed):
        parse.logged(line)
    assert parse.logged("{'loss': 1.5, 'epoch': '0.1'}") == {"loss": 1.5, "epoch": "0.1"}
