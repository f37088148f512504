"""Captions in other words from an endpoint."""

from pathlib import Path

import pytest
from chat_server import Server
from endpoint_tools import run

NAME = "endpoint_rewriting_mapper"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_caption_is_sent_and_the_words_that_can_be_read_stay(server: Server) -> None:
    answers = {
        "a red mug, sign reads nova": "a mug in red; Nova is on the sign",
        "a blue box, sign reads luna": "a box in blue with a sign",
    }
    server.answer = lambda body: answers[body["messages"][0]["content"].splitlines()[-1]]
    captions, operator = run(NAME, list(answers), [Path("none.jpg")] * 2)  # no image is read
    assert captions == [*next(iter(answers.items())), "a blue box, sign reads luna"]
    assert operator.unusable == {"without the words that can be read": 1}
    assert all(isinstance(body["messages"][0]["content"], str) for body in server.bodies)


def test_equal_captions_are_asked_about_once_and_the_prompt_may_be_given(server: Server) -> None:
    captions, _ = run(
        NAME,
        ["a {b}"] * 3,
        [Path("x.jpg")] * 3,
        prompt='Say "{caption}" in {language}',
        keep_original_sample=False,
    )
    assert captions == ["a caption from the server"] * 3
    assert [body["messages"][0]["content"] for body in server.bodies] == ['Say "a {b}" in {language}']
