"""Questions and answers from an endpoint: only those that the caption supports."""

import json
from pathlib import Path

import pytest
from chat_server import Server
from endpoint_tools import COST, run

from toolkit.data.operators.endpoint_question_answer_mapper import EndpointQuestionAnswerMapper

NAME = "endpoint_question_answer_mapper"
CAPTION = "a red mug left of a box, sign reads nova"
COLOUR = {"question": "What colour is the mug?", "answer": "red", "statement": "the mug is red"}
MADE_UP = {"question": "What is in the mug?", "answer": "hot tea", "statement": "hot tea is in the mug"}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(server: Server, answer: object, **arguments: object) -> tuple[list[str], dict]:
    server.answer = lambda body: answer if isinstance(answer, str) else json.dumps(answer)
    captions, operator = run(NAME, [CAPTION], [Path("none.jpg")], keep_original_sample=False, **arguments)
    return captions, dict(operator.unusable)


def test_supported_answers_join_the_caption(server: Server) -> None:
    assert ask(server, [MADE_UP, COLOUR]) == ([f"{CAPTION}; the mug is red"], {})
    prompt = server.bodies[0]["messages"][0]["content"]
    assert (
        prompt.endswith(CAPTION) and "these words can be read: nova" in prompt and "up to 2 short" in prompt
    )


def test_questions_may_be_said_and_markdown_is_read(server: Server) -> None:
    fenced = f"Here you are:\n```json\n{json.dumps([COLOUR])}\n```"
    assert ask(server, fenced, form="question")[0] == [f"{CAPTION}; What colour is the mug? red"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([MADE_UP], "not supported by the caption"),
        ([], "not supported by the caption"),
        ("What colour? red", "not JSON"),
        ({"question": "?"}, "not a list of questions and answers"),
        ([{**COLOUR, "answer": 3}], "not a list of questions and answers"),
        ([{**COLOUR, "statement": "<image> is red"}], "with a token of the format"),
        ([{**COLOUR, "statement": "red " * 25}], "longer than 30 words"),
    ],
)
def test_an_unusable_answer_keeps_the_row(answer: object, reason: str, server: Server) -> None:
    assert ask(server, answer) == ([CAPTION], {reason: 1})


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="form is poem"):
        EndpointQuestionAnswerMapper(model="m", responses="x.jsonl", form="poem", **COST)
