"""MMBench: the questions put to the model and the score of its letters, as the contest's scorer counts them.

    python -m toolkit evaluate mmbench-score --table
    answers_upload/mmbench_dev_20230712/MGM-2B-Finetune-synth.xlsx python -m toolkit evaluate mmbench-score
    --table mmbench_dev_20230712.tsv --answers MGM-2B-Finetune-synth.jsonl

A question comes several times with its options rotated: index, index + 1,000,000, and so on. It counts
("circular") only when every one of its rows is answered with exactly the right letter; "A." or "a" is wrong.
pandas reads the tables, because what it takes for a missing value or a number is part of the official result.

The official script asks no option after the first that is absent to pandas or spelt none or nan, and none
after D. Rows with a right answer or an option of that kind are asked and scored like that, counted and named.
A row without an answer is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.benchmarks import vlmeval
from toolkit.benchmarks.base import Benchmark, Bounds, Files
from toolkit.benchmarks.questions import (
    LETTER,
    Load,
    Question,
    Reference,
    first_of,
    inline_bytes,
    inline_image,
    keyed,
)
from toolkit.benchmarks.tables import pictures, read_table
from toolkit.benchmarks.upload import ILLEGAL, table_cells, write_upload
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import read_jsonl

if TYPE_CHECKING:  # a second of importing, and every command knows the benchmarks' names
    import pandas

MAX_NEW_TOKENS = 1024  # fixed in the official answering script
ROTATION = 1_000_000
LETTERS = ("A", "B", "C", "D")
FURTHER = tuple("EFGHIJKL")  # columns of options that the official script does not know
COLUMNS = ("index", "question", "hint", *LETTERS, "answer", "image")


def indices(table: pandas.DataFrame, path: Path) -> list[int]:
    """The index column as integers; UserError names the first row (the header is row 1) that has none, or a
    negative one, which no rotation belongs to."""
    import pandas

    numbers = pandas.to_numeric(table["index"].astype(str), errors="coerce")  # as text True is no 1
    whole = (numbers >= 0) & (numbers % 1 == 0)  # of what is no number, neither
    rows_without_index = [row for row, fits in enumerate(whole, start=2) if not fits]
    if rows_without_index:
        raise UserError(
            first_of(
                [f"{path}, row {row} has no whole number in the column index" for row in rows_without_index]
            )
        )
    return [int(number) for number in numbers]


def without(table: pandas.DataFrame, column: str, path: Path, advice: str = "") -> list[str]:
    """A sentence for each row that lacks a cell."""
    return [
        f"{path}, row {row} has no {column}{advice}"
        for row, missing in enumerate(table[column].isna(), start=2)
        if missing
    ]


def without_answer(table: pandas.DataFrame, path: Path) -> list[str]:
    """A sentence for each row that cannot be scored."""
    return without(table, "answer", path, " (the test split has none: take the dev split)")


def scored_columns(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table with the names of the columns that the official scorer needs in lower case, as it makes
    them."""
    return table.rename(
        columns=lambda name: (
            str(name).lower() if str(name).lower() in ("index", "answer", "prediction") else name
        )
    )


def load_table(path: Path) -> pandas.DataFrame:
    """The benchmark's table with text cells (missing cells NaN) and an integer index, for asking and for the
    upload.

    UserError for a missing column, for a row without index, question, image or answer, and for an index that
    comes twice.
    """
    table = read_table(path, dtype=str)
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise UserError(f"{path} has no column {', '.join(absent)}: take the official MMBench table")
    if "prediction" in table.columns.str.lower():  # the upload table adds it
        raise UserError(f"{path} has a column prediction already: take the official MMBench table")
    table["index"] = indices(table, path)
    problems = [
        *without(table, "question", path),
        *without(table, "image", path),
        *without_answer(table, path),
    ]
    repeated = table["index"][table["index"].duplicated()]
    problems += [f"{path} has index {number} twice" for number in repeated]
    if problems or table.empty:
        raise UserError(first_of(problems) if problems else f"{path} has no rows")
    table["image"] = pictures(table["index"], table["image"])
    return table


def is_none(value: Any) -> bool:
    """Whether a cell counts as absent: missing, or spelt "nan" or "none"."""
    import pandas

    return pandas.isna(value) or str(value).lower() in ("nan", "none")


def asked_letters(row: dict[str, Any]) -> tuple[str, ...]:
    """The letters of the options that are asked: those up to the first absent one."""
    absent = [place for place, letter in enumerate(LETTERS) if is_none(row[letter])]
    return LETTERS[: absent[0]] if absent else LETTERS


def unanswerable(table: pandas.DataFrame) -> dict[str, dict[str, int]]:
    """`{"unanswerable": {rows, first: index}}` where the answer of some rows is none of the options asked,
    else empty.

    A table without the options is taken to have all four.
    """
    complete = set(LETTERS) <= set(table.columns)
    indices_without_option = [
        row["index"]
        for row in table.to_dict("records")
        if row["answer"] not in (asked_letters(row) if complete else LETTERS)
    ]
    return (
        {"unanswerable": {"rows": len(indices_without_option), "first": int(indices_without_option[0])}}
        if indices_without_option
        else {}
    )


def warnings(path: Path) -> Iterator[str]:
    """A sentence on the answers, and one on the options, that stand in a table and are not asked."""
    table = scored_columns(read_table(path, dtype=str))
    table["index"] = indices(table, path)
    if unmatched := unanswerable(table).get("unanswerable"):
        yield (
            f"{path}: the answer of {counted(unmatched['rows'], 'row')} is none of the options asked; "
            f"the first has index {unmatched['first']}"
        )
    if not set(LETTERS) <= set(table.columns):
        return
    text_table = read_table(path, dtype=str, keep_default_na=False)
    letters = [letter for letter in LETTERS + FURTHER if letter in text_table.columns]
    lost = []
    for row, cells in zip(table.to_dict("records"), text_table[letters].to_dict("records"), strict=True):
        option_letters = asked_letters(row)
        unasked = [
            letter
            for letter, cell in cells.items()
            if letter not in option_letters and str(cell).lower() not in ("", "nan")
        ]
        lost += [(row["index"], letter, cells[letter]) for letter in unasked[:1]]
    if lost:
        index, letter, cell = lost[0]
        yield (
            f"{path}: {counted(len(lost), 'row has', 'rows have')} options that are not asked, since the "
            "official list of options ends before the first that is empty, None, nan or #N/A and knows no "
            f"letter after D; the first has index {index}, option {letter} {cell!r}"
        )


def questions(table: pandas.DataFrame, instruction: str, all_rounds: bool = False) -> list[Question]:
    """One question a row: hint, question, one line an option up to the first absent one; `instruction` is
    asked but not recorded.

    all_rounds: also ask each row with its options rotated to the left, as the official script's flag of that
    name does (the contest does not: its table has the rotations as rows).
    """
    result = []
    for row in table.to_dict("records"):
        letters = asked_letters(row)
        for turn in range(len(letters) if all_rounds else 1):
            origin = letters[turn:] + letters[:turn]
            options = [row[letter] for letter in origin]
            lines = [] if is_none(row["hint"]) else [row["hint"]]
            lines += [
                row["question"],
                *(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)),
            ]
            head = {"question_id": row["index"], "round_id": turn, "prompt": "\n".join(lines)}
            tail = {"options": options, "option_char": list(origin)}
            result.append(Question(head, "\n".join([*lines, instruction]), row["image"], tail))
    return result


def predictions(answers: Path, index: list[int], table: Path, complete: bool = True) -> tuple[list[str], int]:
    """The answer text for each row of a table, and how many answers a later one replaced; UserError unless
    the file answers every row once and nothing else.

    Unless it must be `complete`, an unanswered row is empty and the last of several answers counts, as in the
    official conversion.
    """
    texts, problems, rows, replaced = {}, [], set(index), 0
    for number, row in enumerate(read_jsonl(answers), start=1):
        if not isinstance(row, dict) or "question_id" not in row or not isinstance(row.get("text"), str):
            problems.append(f"{answers}, answer {number} lacks question_id or text")
        elif type(row["question_id"]) is not int:
            wrong = f"question_id is {json.dumps(row['question_id']):.40}, an integer is expected"
            problems.append(f"{answers}, answer {number}: {wrong}")
        elif row["question_id"] not in rows:
            problems.append(
                f"{answers}, answer {number} is for index {row['question_id']}, which {table} does not have"
            )
        elif complete and row["question_id"] in texts:
            problems.append(f"{answers}, answer {number} answers index {row['question_id']} a second time")
        else:
            replaced += row["question_id"] in texts
            texts[row["question_id"]] = row["text"]
    if complete and not problems:
        problems = [
            f"{answers} has no answer for index {number} of {table}"
            for number in index
            if number not in texts
        ]
    if problems:
        raise UserError(first_of(problems))
    return [texts.get(number, "") for number in index], replaced


def score(path: Path, answers: Path | None = None, complete: bool = True) -> dict[str, Any]:
    """`{accuracy, circular, vanilla (percent), questions, rows, empty, orphans, scores: {index: 0 or 1}}` of
    a table, and `unanswerable`.

    The predictions are in its column `prediction`, or in an answer file, which must be `complete` unless told
    otherwise. As in the official scorer a missing prediction is wrong, a question is judged by the rotations
    that are there, a row whose index comes twice counts twice, and rotations without their question
    (`orphans`) do not count; they do count in `vanilla`, the share of right rows. UserError for a row without
    an answer.
    """
    return score_of(read_table(path), path, answers, complete)


def score_of(
    table: pandas.DataFrame, path: Path, answers: Path | None = None, complete: bool = True
) -> dict[str, Any]:
    """`score` of what was read from `path`."""
    required = ("index", "answer") if answers else ("index", "answer", "prediction")
    table = scored_columns(table)
    absent = [column for column in required if column not in table.columns]
    if absent:
        raise UserError(
            f"{path} has no column {', '.join(absent)}"
            + ("; give --answers" if "prediction" in absent else "")
        )
    table["index"] = index = indices(table, path)
    if problems := without_answer(table, path):
        raise UserError(first_of(problems))
    texts, repeated = (
        predictions(answers, index, path, complete)
        if answers
        else ([str(cell) for cell in table["prediction"]], 0)
    )
    empty = sum(not text for text in texts) if answers else int(table["prediction"].isna().sum())
    correct_rows = [text == answer for text, answer in zip(texts, table["answer"].tolist(), strict=True)]
    all_correct = circular(correct_rows, index)
    bases = [number for number in sorted(index) if number < ROTATION]
    if not bases:
        raise UserError(f"{path} has no row with an index below {ROTATION}")
    accuracy = 100.0 * sum(all_correct[base] for base in bases) / len(bases)
    return {
        "accuracy": accuracy,
        "circular": accuracy,
        "vanilla": 100.0 * sum(correct_rows) / len(correct_rows),
        "questions": len(bases),
        "rows": len(correct_rows),
        "empty": empty,
        **({"repeated": repeated} if repeated else {}),
        "orphans": sum(number % ROTATION not in all_correct for number in index),
        **unanswerable(table),
        "scores": keyed((str(base) for base in bases), [int(all_correct[base]) for base in bases]),
    }


def circular(correct: list[bool], index: list[int]) -> dict[int, bool]:
    """Whether a question is right in all rows, its rotations, by the index of its own row."""
    all_correct = dict.fromkeys((number for number in sorted(index) if number < ROTATION), True)
    for number, right in zip(index, correct, strict=True):
        if number % ROTATION in all_correct:
            all_correct[number % ROTATION] &= right
    return all_correct


def asked_in(table: Path, answers: list[Any]) -> int:
    """How many answers have a prompt with the question that their index has in a table."""
    rows = read_table(table, usecols=["index", "question"], dtype=str)
    questions = dict(zip(indices(rows, table), map(str, rows["question"]), strict=True))
    return sum(
        isinstance(row, dict)
        and type(row.get("question_id")) is int
        and questions.get(row["question_id"], "\0") in str(row.get("prompt"))
        for row in answers
    )


class MMBench(Benchmark):
    """A table with inline images, and a table for upload made of the answers."""

    def table(self, files: Files) -> Path:
        return files[next(iter(self.files))]

    def official_files(self, folder: Path, answers: Path) -> Files:
        """The table, in any language, split and version; of several the one whose questions are answered."""
        tables = sorted(folder.glob("*.tsv"))
        if not tables:
            raise UserError(f"{folder} has no table .tsv: put the official MMBench table there")
        fitting = tables
        if len(tables) > 1:
            rows = list(read_jsonl(answers))
            if not rows:
                raise UserError(f"{answers} holds no answers")
            counts = {table: asked_in(table, rows) for table in tables}
            fitting = [table for table in tables if counts[table] == max(counts.values()) > 0]
        if len(fitting) != 1:
            names = ", ".join(table.name for table in tables)
            raise UserError(
                f"{answers} is for {'several' if fitting else 'none'} of the tables in {folder} ({names}): "
                "leave the one there that was asked"
            )
        return {next(iter(self.files)): fitting[0]}

    def published(self, files: Files, answers: Path) -> dict[str, Any]:
        """The score is VLMEvalKit's circular accuracy without a judge; `exact` has that of the contest's kit.
        Percent. UserError as in `load_table` too: other tables end the official scripts, or a repeated index
        counts twice."""
        path = self.table(files)
        load_table(path)
        table = read_table(path)
        exact = score_of(table, path, answers)
        index = indices(table, path)
        texts, _ = predictions(answers, index, path)
        if unwritable := [number for number, text in zip(index, texts, strict=True) if ILLEGAL.search(text)]:
            raise UserError(
                f"{answers}: the answer to index {unwritable[0]} has a character that no workbook can hold: "
                "take it out"
            )
        letters = vlmeval.letters(table, texts)
        correct = [letter == right for letter, right in zip(letters, table["answer"].tolist(), strict=True)]
        questions = circular(correct, index)
        return {
            "score": 100.0 * (sum(questions.values()) / len(questions)),
            "vanilla": 100.0 * (sum(correct) / len(correct)),
            "questions": len(questions),
            "rows": len(correct),
            "empty": exact["empty"],
            "undecided": letters.count(None),
            "exact": {name: exact[name] for name in ("circular", "vanilla")},
            "table": path.name,
        }

    def split_of(self, files: Files) -> str:
        return self.table(files).stem

    def questions(self, files: Files, instruction: str | None = None) -> list[Question]:
        return questions(load_table(self.table(files)), instruction or self.instruction or "")

    def load(self, files: Files, questions: list[Question]) -> Load:
        return inline_image

    def score(self, files: Files, answers: Path | None, complete: bool = True) -> dict[str, Any]:
        return score(self.table(files), answers, complete)

    def references(self, files: Files, questions: list[Question]) -> dict[str, Reference]:
        """The text of the right option, or the answer where it is none of those asked; part: the category."""
        rows = load_table(self.table(files)).to_dict("records")
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row["index"] % ROTATION, []).append(place)
        return {
            str(row["index"]): Reference(
                places[row["index"]],
                [row[row["answer"]] if row["answer"] in asked_letters(row) else row["answer"]],
                "" if is_none(row.get("category")) else row["category"],
            )
            for row in rows
            if row["index"] < ROTATION
        }

    def right_answers(self, files: Files, questions: list[Question]) -> dict[int, str]:
        """The letters; rows whose right option is not asked are left out."""
        rows = load_table(self.table(files)).to_dict("records")
        return {place: row["answer"] for place, row in enumerate(rows) if row["answer"] in asked_letters(row)}

    def items(self, files: Files) -> tuple[dict[str, Path | bytes], dict[str, str]]:
        """Rotations left out; a question's text has its hint and the right option, if it is one of
        LETTERS."""
        images: dict[str, Path | bytes] = {}
        texts: dict[str, str] = {}
        for row in load_table(self.table(files)).to_dict("records"):
            if row["index"] >= ROTATION:
                continue
            try:
                images[str(row["index"])] = inline_bytes(row["image"])
            except ValueError:
                images[str(row["index"])] = b""
            parts = [row["hint"], row["question"], row[row["answer"]] if row["answer"] in LETTERS else None]
            texts[str(row["index"])] = " ".join(part for part in parts if not is_none(part))
        return images, texts

    def warnings(self, files: Files) -> Iterator[str]:
        return warnings(self.table(files))

    def write_further(self, files: Files, outputs: Files) -> None:
        """The table that goes to the benchmark's server."""
        table = load_table(self.table(files))
        texts, _ = predictions(outputs["answers"], table["index"].tolist(), self.table(files))
        write_upload(outputs["upload"], table, texts)

    def same_further(self, name: str, first: Path, second: Path) -> bool:
        """Whether two tables have the same cells; what else an .xlsx can hold, an archive may not (Z8)."""
        return table_cells(first) == table_cells(second)

    def restated(self, outputs: Files) -> Iterator[tuple[str, dict[str, Any]]]:
        """The upload table has the right letters, so it and the answers can be scored with it."""
        table = read_table(outputs["upload"])
        yield "upload", score_of(table, outputs["upload"])
        yield "answers", score_of(table, outputs["upload"], outputs["answers"])

    def unusable(self, rows: list[dict[str, Any]]) -> tuple[int, str] | None:
        count = sum(row.get("text") not in row.get("option_char", LETTERS) for row in rows)
        return count, "predictions are not one of the options"


MMBENCH = MMBench(
    name="mmbench",
    title="MMBench",
    measure="MMBench (circular)",
    contest=True,
    max_new_tokens=MAX_NEW_TOKENS,
    files={"table": "mmbench_dev_20230712.tsv"},
    images=None,
    answer_file="answers/{split}/{model}.jsonl",
    further_files={"upload": "answers_upload/{split}/{model}.xlsx"},
    split="mmbench_dev_20230712",
    instruction=LETTER,
    head=("question_id", "round_id", "prompt"),
    answers_in_files=True,
    bounds=Bounds(distinct=3, top_share=0.8, empty_share=0.02),
)
MMBENCH_CN = replace(
    MMBENCH,
    name="mmbench_cn",
    title="MMBench-CN",
    measure="MMBench-CN (circular)",
    contest=False,
    files={"table_cn": "mmbench_dev_cn_20231003.tsv"},
    split="mmbench_dev_cn_20231003",
    instruction="请直接回答选项字母。",
)
