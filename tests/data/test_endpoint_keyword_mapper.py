"""Keywords from an endpoint that sees the image."""

from pathlib import Path

import pytest
from chat_server import Server
from endpoint_tools import run
from tiny_data import picture

NAME = "endpoint_keyword_mapper"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('["Mug", "blue box", "mug", "nova"]', "a mug; mug, blue box, nova"),
        ('["mug", 3]', "not a list of texts"),
        ("[]", "not a list of texts"),
        ("mug, box", "not JSON"),
        ('["a very long name of a thing"]', "longer than 4 words"),
    ],
)
def test_keywords_are_woven_into_the_caption(
    answer: str, expected: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.jpg", 1)
    server.answer = lambda body: answer
    captions, operator = run(NAME, ["a mug"], [tmp_path / "a.jpg"], keep_original_sample=False)
    assert (captions == [expected] and not operator.unusable) or (
        captions == ["a mug"] and operator.unusable == {expected: 1}
    )
    text, image = server.bodies[0]["messages"][0]["content"]
    assert "up to 5 things" in text["text"] and "a mug" in text["text"] and image["type"] == "image_url"
