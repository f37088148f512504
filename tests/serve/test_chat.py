"""A chat request as what it asks for: fields that are null, parts of a message, limits."""

import json
from types import SimpleNamespace

import pytest

from toolkit.serve.chat import CHARACTERS, Reader, Refused, parsed


def message(content, role="user", **fields) -> dict:
    return {"role": role, "content": content} | fields


def chat(*messages, **fields):
    return parsed(json.dumps({"messages": list(messages)} | fields).encode())


def refused(call) -> dict:
    with pytest.raises(Refused) as error:
        call()
    return error.value.json()["error"]


def test_null_says_nothing_at_any_depth():
    dumped = message(
        "a dog", "assistant", refusal=None, audio=None, tool_calls=None
    )  # of the official client
    picture = {"type": "image_url", "image_url": {"url": "data:", "detail": None}}
    sent = chat(
        message([picture], name=None),
        dumped,
        message("red?"),
        stop=None,
        stream_options={"include_usage": None},
    )
    assert sent == chat(
        message([picture | {"image_url": {"url": "data:"}}]),
        message("a dog", "assistant"),
        message("red?"),
        stream_options={},
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([{"type": "input_audio"}], "messages.0.content.0"),
        ([{"type": "text", "text": "what?"}, {"type": "text", "text": 3}], "messages.0.content.1.text.text"),
        (["what?"], "messages.0.content.0"),
        (3, "messages.0.content"),
        (None, "messages.0.content"),
    ],
)
def test_the_wrong_part_of_a_message_is_named(content, place):
    error = refused(lambda: chat(message(content)))
    assert error["param"] == place and error["message"].startswith(f"{place}: ")


def test_what_is_too_long_is_refused_before_its_tokens_are_counted():
    model = SimpleNamespace(mgm=SimpleNamespace(model_max_length=2))  # it can make no prompt
    reader, text = Reader({"m": model}, 1, 10), "a" * (2 * CHARACTERS + 1)
    error = refused(lambda: reader.read(json.dumps({"messages": [message(text)]}).encode()))
    assert error["code"] == "context_length_exceeded" and f"have {len(text)} characters" in error["message"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_that_was_sent_is_named(field):
    model = SimpleNamespace(mgm=SimpleNamespace(model_max_length=256))
    body = json.dumps({"messages": [message("what?")], field: 11}).encode()
    error = refused(lambda: Reader({"m": model}, 1, 10).read(body))
    assert error["param"] == field and error["message"] == f"{field} is 11: at most 10 are made"
