"""How VLMEvalKit (e8e78f05) scores MMBench without a judge ("exact_matching"), the rule behind published
figures: the letter is inferred from an answer, and a question counts when it is right in every rotation.

LLaVA's converter hands the answers over in a workbook, which VLMEvalKit reads, writes anew and reads again.
What is lost on the way is part of the result: options and answers that pandas takes for missing (None, NA) or
for numbers, or that a workbook takes for a formula.
"""

from __future__ import annotations

import io
import re
import string
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # see mmbench
    import pandas

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
FAILED = "Failed to obtain answer via API"
NEITHER = "Z"
TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST = 4  # words among which a lone letter has to be
ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
LONGEST = 2  # times the length of all options; a longer answer is not searched for their texts
NOT_OPTIONS = ("hint", "category", "source", "image", "comment", "l2-category")


def inferred(text: str, options: Mapping[str, Any]) -> str | None:
    """The letter that an answer means; "Z" for none of them, None where only a judge could tell. options: the
    cells by letter."""
    return _by_letter(text, options) or _by_text(text.lower(), options)


def _by_letter(text: str, options: Mapping[str, Any]) -> str | None:
    if FAILED in text:
        return None
    if any(refusal in text for refusal in REFUSALS):
        return NEITHER
    words = text.translate(TO_SPACES).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST:
        return letters[0]
    if not letters and NEITHER in words:
        return NEITHER
    match = ANSWER_IS.search(text)
    letter = match[1].upper() if match else ""
    return letter if letter in options else None


def _by_text(lower: str, options: Mapping[str, Any]) -> str | None:
    if len(lower) > LONGEST * sum(len(str(option)) for option in options.values()):
        return None
    letters = [letter for letter, option in options.items() if str(option).lower() in lower]
    return letters[0] if len(letters) == 1 else None


def letters(table: pandas.DataFrame, texts: list[str]) -> list[str | None]:
    """The inferred letter of each row. table: as pandas reads the official one; texts: the answers."""
    import pandas

    sheet = table.drop(columns=[name for name in NOT_OPTIONS if name in table.columns])
    sheet = sheet.assign(prediction=texts)
    for _ in range(2):
        buffer = io.BytesIO()
        with warnings.catch_warnings(action="ignore"):  # a cell is cut after 32,767 characters, as there
            sheet.to_excel(buffer, index=False, engine="openpyxl")
        sheet = pandas.read_excel(buffer, engine="openpyxl")
    columns = [letter for letter in string.ascii_uppercase if letter in table.columns]
    result = []
    for row in sheet.to_dict("records"):
        options = {letter: row[letter] for letter in columns if not pandas.isna(row[letter])}
        result.append(inferred(str(row["prediction"]), options))
    return result
