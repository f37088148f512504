"""AI2D: multiple choice about diagrams of school books (Kembhavi et al. 2016), from VLMEvalKit's table.

The rule is that of lmms-eval 0.7.3: a letter and a period at the beginning are that letter, else the whole
text counts, without its reasoning; then white space around it, case and ASCII punctuation go, and the letter
must remain.
"""

import re
import string

from toolkit.benchmarks.base import Bounds, Files
from toolkit.benchmarks.labelled import Label, Labelled
from toolkit.benchmarks.questions import LETTER, Load, Question, choices, inline_bytes, inline_image
from toolkit.benchmarks.tables import pictures, read_table
from toolkit.errors import UserError

FIRST = re.compile(r"\s*([A-Z])\.")
REASONING = (("<think>", "</think>"), ("<analysis>", "</analysis>"))  # default of its command
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_reasoning(text: str) -> str:
    """An answer without what stands between these tags, or before the last closing tag without an opening
    one."""
    for begin, end in REASONING:
        while (start := text.find(begin)) >= 0 and (stop := text.find(end, start)) >= 0:
            text = text[:start] + text[stop + len(end) :]
        if begin not in text:
            text = text.rpartition(end)[2]
    return text


def plain(text: str) -> str:
    """An answer as lmms-eval compares it."""
    match = FIRST.match(text)
    text = (match[1] if match else without_reasoning(text)).strip().lower().translate(WITHOUT_PUNCTUATION)
    return text.rstrip("\0")  # numpy's arrays of texts lose these


class Ai2d(Labelled):
    """AI2D_TEST.tsv holds questions, options, answers and images."""

    def entries(self, files: Files) -> list[tuple[int, dict[str, str], list[str]]]:
        """(index, row, options) of each question."""
        path = files["ai2d_table"]
        table = read_table(path, dtype=str, keep_default_na=False)
        if absent := {"index", "image", "question", "answer", "A", "B"} - set(table.columns):
            raise UserError(f"{path} has no column {' and '.join(sorted(absent))}: take VLMEvalKit's table")
        table["image"] = pictures(table["index"], table["image"])
        letters = [letter for letter in string.ascii_uppercase if letter in table.columns]
        entries = []
        for number, row in enumerate(table.to_dict("records"), start=2):
            options = [row[letter] for letter in letters if row[letter]]
            if not row["index"].isdecimal() or row["answer"] not in letters[: len(options)]:
                raise UserError(f"{path}, row {number} has no index, or its answer is none of its options")
            entries.append((int(row["index"]), row, options))
        return entries

    def labels(self, files: Files) -> list[Label]:
        return [Label(index, row["answer"]) for index, row, _ in self.entries(files)]

    def asked(self, files: Files) -> list[Question]:
        return [
            Question({"question_id": index, "prompt": message}, message, row["image"])
            for index, row, options in self.entries(files)
            for message in [f"{choices(row['question'], options)}\n{LETTER}"]
        ]

    def load(self, files: Files, questions: list[Question]) -> Load:
        return inline_image

    def items(self, files: Files) -> tuple[dict, dict[str, str]]:
        return {str(index): inline_bytes(row["image"]) for index, row, _ in self.entries(files)}, {}

    def judge(self, text: str, label: Label) -> float:
        return float(plain(text) == label.right.lower())


AI2D = Ai2d(
    name="ai2d",
    title="AI2D",
    measure="AI2D (accuracy)",
    max_new_tokens=16,  # as in lmms-eval
    files={"ai2d_table": "AI2D_TEST.tsv"},
    images=None,
    bounds=Bounds(distinct=3, top_share=0.8),
)
