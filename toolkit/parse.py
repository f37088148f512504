"""Strict readers of other people's JSON and YAML, and of what trainers log: what cannot be kept as it was
written is refused, not guessed.

Both refuse a key that is there twice, text that is no UTF-8, deep nesting and long numbers; a byte order mark
is skipped. JSON: RFC 8259 without NaN and Infinity. YAML: version 1.1 as PyYAML reads it, without anchors,
aliases, merge keys and tags, and without the values that YAML 1.1 takes for something else than they look
like (010 is 8, no is false, 1:30 is 90).
"""

import ast
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

DEPTH = 100  # lists and objects inside each other
DIGITS = 20  # of an integer: enough for 64 bits
LOGGED = 4096  # characters of a step's line
YAML_BYTES = 1 << 18  # recipes and configurations have a few kilobytes

DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
NOT_FINITE = re.compile(r"(?i)[-+]?\.(?:inf|nan)\Z")
BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class Malformed(ValueError):
    """What is wrong with a text, as a phrase; the caller knows where the text came from."""


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text; Malformed when it has none, or a value that is not kept as it was written."""
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_not_json,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_unique,
        )
        if b"\\u" in data:  # half a surrogate pair can be read but not written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise Malformed("half a surrogate pair (\\ud800 to \\udfff) stands for no character") from None
    except RecursionError:
        raise Malformed(f"nested more than {DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise Malformed(str(error)) from None
    if data.count(b"[") + data.count(b"{") > DEPTH:
        _assert_shallow(value)
    return value


def logged(line: str) -> dict[str, Any]:
    """The values of a step or of the end as a trainer logs them, Python's text of a dict; Malformed for
    anything else and for more than LOGGED characters."""
    try:
        parsed = ast.parse(line.strip(), mode="eval").body if len(line) <= LOGGED else None
        values = ast.literal_eval(parsed) if isinstance(parsed, ast.Dict) else {}
        unique = isinstance(parsed, ast.Dict) and len(values) == len(parsed.keys)
    # TypeError for a list as a key, the last two for what is nested deeply
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        values, unique = {}, False
    if not unique:
        raise Malformed("no values as a trainer logs them, each once")
    return values


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _assert_shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        children = (child for parent in level for child in _children(parent))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise Malformed(f"nested more than {DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"the key {twice} is there twice")
    return value


def _not_json(constant: str) -> None:
    raise Malformed(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Malformed(f"{_short(digits)} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Malformed(f"the number {_short(digits)} has {len(digits)} digits, at most {DIGITS} are read")
    return int(digits)


def _short(digits: str) -> str:
    return digits if len(digits) <= DIGITS else f"{digits[:DIGITS]}…"


class _Loader(yaml.CSafeLoader):
    """Scalars mean what they look like; keys are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if not isinstance(value, str | int | float | bool | None):
                raise Malformed(f"line {key.start_mark.line + 1}: a key must be a word or a number")
            if value in seen:
                raise Malformed(
                    f"line {key.start_mark.line + 1}: the key {_excerpt(str(value))} is there twice"
                )
            seen.add(value)
        return super().construct_mapping(node, deep)

    def construct_scalar_as_written(self, node: yaml.ScalarNode) -> Any:
        """A number, truth value or date of YAML 1.1, if it is one to everybody."""
        text, line = node.value, f"line {node.start_mark.line + 1}"
        if text in BOOLEAN:
            return BOOLEAN[text]
        if DECIMAL.match(text):
            if len(text) > DIGITS:
                raise Malformed(
                    f"{line}: the number {_short(text)} has {len(text)} digits, at most {DIGITS} are read"
                )
            return int(text)
        if FLOAT.match(text) or NOT_FINITE.match(text):
            return float(re.sub(r"\.(?=[a-zA-Z])", "", text))
        try:
            kind = node.tag.rpartition(":")[2]
            value = getattr(yaml.constructor.SafeConstructor, f"construct_yaml_{kind}")(self, node)
        except (ValueError, OverflowError):
            raise Malformed(
                f"{line}: {_excerpt(text)} cannot be read: put it in quotes if it is a text"
            ) from None
        if kind == "timestamp":
            raise Malformed(f"{line}: {_excerpt(text)} would be read as a date: put it in quotes")
        plain = str(value).lower() if isinstance(value, bool) else str(value)
        raise Malformed(
            f"{line}: {_excerpt(text)} would be read as {_excerpt(plain)}: write {_excerpt(plain)}, or put "
            "it in quotes if it is a text"
        )


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar_as_written)


def yaml_value(text: str | bytes) -> Any:
    """The value of a YAML text, None for an empty one; Malformed as `json_value`, and for all that the
    module's first lines name."""
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
        if len(data) > YAML_BYTES:
            raise Malformed(f"{len(data)} bytes, at most {YAML_BYTES} are read")
        text = data.decode("utf-8-sig")
        _assert_plain(text)
        return yaml.load(text, _Loader)
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise Malformed("half a surrogate pair (\\ud800 to \\udfff) stands for no character") from None
    except yaml.YAMLError as error:
        raise Malformed(" ".join(str(error).split())) from None


def _assert_plain(text: str) -> None:
    """Look at the events before anything is built of them: what would grow, run or nest is refused."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Malformed(f"{line}: anchors (&) and aliases (*) are not read, write the value out")
        if getattr(event, "tag", None):
            raise Malformed(f"{line}: the tag {_excerpt(event.tag)} is not read")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style:
            raise Malformed(f"{line}: merge keys (<<) are not read, write the keys out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                raise Malformed(f"{line}: nested more than {DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
