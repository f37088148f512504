"""Answers in a caption: a sensible caption, no repetition, deterministic choice."""

import pytest

from toolkit.data.operators.question_answer_mapper import QuestionAnswerMapper
from toolkit.data.phrases import answers
from toolkit.data.samples import caption_of, row_problem, text_of

SCENE = "a red mug left of a blue box, sign reads nova"


def run(captions: list[str], **arguments) -> list[str]:
    batch = {"text": [text_of(caption) for caption in captions], "images": [["x.jpg"] for _ in captions]}
    made = QuestionAnswerMapper(**arguments).process_batched(batch)
    for text, images in zip(made["text"], made["images"], strict=True):
        assert row_problem({"id": "1", "text": text, "images": images}) is None
    return [caption_of(text) for text in made["text"]]


def test_statements_follow_the_caption() -> None:
    assert run(["a red mug"]) == ["a red mug", "a red mug; the mug is red"]
    assert run(["the word onyx near two red boxes."], most=3, keep_original_sample=False) == [
        "the word onyx near two red boxes; the text reads onyx; the boxes are red; there are two boxes"
    ]
    assert run(["ukraine war & oil"]) == ["ukraine war & oil"]


def test_what_the_caption_says_is_not_repeated() -> None:
    made = run([SCENE], most=9, keep_original_sample=False)[0]
    assert made.startswith(SCENE + "; the mug is red; ") and made.count("sign reads nova") == 1


def test_questions_are_said_on_request_and_what_can_be_read_comes_first() -> None:
    assert run(["nova sign and three green fish"], form="question", most=1)[1] == (
        "nova sign and three green fish; what does the sign read? nova"
    )
    assert run([SCENE], form="question", most=1)[1] == f"{SCENE}; what does the sign read? nova"


def test_the_choice_follows_from_caption_and_seed() -> None:
    captions = [f"a red mug left of a blue box on table {number}" for number in range(12)]
    chosen = run(captions, most=1)
    assert chosen == [caption for one in captions for caption in run([one], most=1)]
    assert len({caption.split("; ")[1] for caption in chosen[1::2]}) > 1
    assert run(captions, most=1, seed=3) != chosen
    assert len(answers(captions[0])) >= 4


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="form is poem"):
        QuestionAnswerMapper(form="poem")
    with pytest.raises(ValueError, match="most is 0"):
        QuestionAnswerMapper(most=0)
