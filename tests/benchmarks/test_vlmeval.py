"""The letter that VLMEvalKit (e8e78f05) infers from an answer, and what a workbook makes of it."""

import pandas
import pytest

from toolkit.benchmarks.vlmeval import inferred, letters

OPTIONS = {"A": "a red cup", "B": "spoon", "C": "10"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("a", None),
        ("(B)", "B"),
        ("**C**", "C"),
        ("B. spoon", "B"),
        ("A cat sits on the mat", None),
        ("The answer is A", "A"),
        ("correct answer is **b** since it is so", "B"),
        ("A or B", None),
        ("It is the SPOON!", "B"),
        ("10 or a red cup", None),
        ("Z", "Z"),
        ("nan", None),
        ("Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API: spoon", None),
        ("D", None),
        ("spoon" + " and on" * 9, None),
    ],
)
def test_inferred_letters(text, letter):
    """What the official function gave for these, False as None."""
    assert inferred(text, OPTIONS) == letter


def test_what_a_workbook_loses():
    """A formula and NA become nan, and an option called None is lost."""
    table = pandas.DataFrame(
        {"index": [1, 2, 3, 4], "A": ["an", "x", "x", "x"], "B": ["y", "y", "None", "y"]}
    )
    assert letters(table, ["=A", "NA", "B", "B"]) == ["A", None, None, "B"]


def test_numbers_alone_lose_their_decimals_in_the_second_workbook():
    """evaluate_heuristic of VLMEvalKit's image_mcq.py (e8e78f05) gave these hits, after LLaVA's converter
    (c121f043): 1.0 is read as a number, written as 1, and no longer contains 0."""
    table = pandas.DataFrame({"index": [1, 2], "A": ["0", "30"], "B": ["x", "20"], "answer": ["A", "B"]})
    assert letters(table, ["1.0", "20"]) == [None, "B"]
