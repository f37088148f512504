"""Captions taken apart: what the rules find, and what they leave alone."""

import pytest

from toolkit.data.phrases import Reading, answers, keywords, noun_phrases, readings


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red mug left of a blue box, sign reads nova", [Reading("nova", "sign")]),
        ("an orange ball with a sign that says luna", [Reading("luna", "sign")]),
        ("nova sign and three green fish", [Reading("nova", "sign")]),
        ("the word onyx near two red boxes", [Reading("onyx", "text")]),
        ('a poster with "keep calm" in white', [Reading("keep calm", "text")]),
        ("a mug with the words good morning on it", [Reading("good morning", "text")]),
        ("a street sign and a tree", []),
        ("street sign and a tree", []),
        ("a women's wallet next to the kids' shoes", []),
        ("a pink mug and a sign", []),
    ],
)
def test_what_can_be_read(caption: str, expected: list[Reading]) -> None:
    assert readings(caption) == expected


def test_noun_phrases_and_keywords() -> None:
    assert noun_phrases("a red mug left of a blue box") == [["a", "red", "mug"], ["a", "blue", "box"]]
    assert keywords("a stack of triple chocolate donuts on a wire rack") == ["donuts", "rack"]
    assert keywords("a photo of a cat, a dog and a cat, sign reads nova") == ["cat", "dog", "sign", "nova"]
    assert keywords("这幅图展示了一个艺术家的工作室。") == []


def found(caption: str) -> list[tuple[str, str, str]]:
    return [(answer.question, answer.answer, answer.statement) for answer in answers(caption)]


def test_answers_of_a_scene() -> None:
    assert found("a red mug left of two blue boxes, sign reads nova") == [
        ("what does the sign read?", "nova", "the sign reads nova"),
        ("what colour is the mug?", "red", "the mug is red"),
        ("what colour are the boxes?", "blue", "the boxes are blue"),
        ("how many boxes are there?", "two", "there are two boxes"),
        ("where is the red mug?", "left of the blue boxes", "the red mug is left of the blue boxes"),
        ("where are the blue boxes?", "right of the red mug", "the blue boxes are right of the red mug"),
    ]
    assert found("three green fish")[1] == ("how many fish are there?", "three", "there are three fish")


@pytest.mark.parametrize(
    "caption",
    [
        "red bull f12 car at the grand prix",  # a name, no determiner
        "a black and white photo",
        "the two amils tote bag",  # two, but not plural
        "a set of three yellow and black things",
        "a white dots on the glove",
        "the word red near a mug"[:12],
    ],
)
def test_no_answer_where_the_rules_would_guess(caption: str) -> None:
    assert [answer for answer in answers(caption) if not answer.question.startswith("what does")] == []
