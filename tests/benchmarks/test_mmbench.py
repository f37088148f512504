"""MMBench prompts, scores and upload table, as the official scripts have them
(tests/golden/mgm/eval.json)."""

import io
import json
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas
import pytest

from toolkit.__main__ import main
from toolkit.benchmarks import mmbench
from toolkit.benchmarks.upload import write_upload
from toolkit.errors import UserError
from toolkit.evaluate.answer_file import answer_line
from toolkit.files import write_jsonl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/mgm/eval.json").read_text(encoding="utf-8"))
INSTRUCTION = "Answer with the option's letter from the given choices directly."


@pytest.fixture
def tsv(tmp_path):
    """The golden rows as a table."""
    path = tmp_path / "mmbench_dev.tsv"
    pandas.DataFrame(GOLDEN["mmbench_rows"]).to_csv(path, sep="\t", index=False)
    return path


def table_of(tmp_path, rows, name="T.xlsx"):
    """A small table from (index, answer, prediction); the columns that do not matter are left out."""
    frame = pandas.DataFrame(rows, columns=["index", "answer", "prediction"])
    path = tmp_path / name
    frame.to_excel(path, index=False) if name.endswith("xlsx") else frame.to_csv(path, sep="\t", index=False)
    return path


@pytest.mark.parametrize("all_rounds", [False, True])
def test_prompts_and_answer_lines_are_official(tsv, all_rounds):
    golden = GOLDEN[f"mmbench_all_rounds_{all_rounds}"]
    questions = mmbench.questions(mmbench.load_table(tsv), INSTRUCTION, all_rounds)
    assert len(questions) == len(golden["answers"]) == len(golden["prompts"])
    for question, answer, prompt in zip(questions, golden["answers"], golden["prompts"], strict=True):
        line = json.loads(answer_line(question, answer["text"], answer["answer_id"], answer["model_id"]))
        assert line == answer
        assert list(line) == list(answer)
        assert (
            prompt == f"<start_of_turn>user\n<image>\n{question.message}<end_of_turn>\n<start_of_turn>model\n"
        )


@pytest.mark.parametrize(
    ("column", "value", "letters"),
    [("C", "NaN", "AB"), ("B", "none", "A"), ("C", "None", "AB"), ("D", "NONE", "ABC")],
)
def test_options_end_at_the_first_absent_one(tsv, column, value, letters):
    table = pandas.read_table(tsv, dtype=str)
    table.loc[0, column] = value
    table.loc[0, "hint"] = "nan"
    table.to_csv(tsv, sep="\t", index=False)
    question = mmbench.questions(mmbench.load_table(tsv), "?")[0]
    assert "".join(question.tail["option_char"]) == letters
    assert question.head["prompt"].startswith("what is red?\nA. red")


def test_options_that_look_like_numbers_stay_text(tsv):
    table = pandas.read_table(tsv, dtype=str)
    table["A"] = "1.50"
    table.to_csv(tsv, sep="\t", index=False)
    assert "\nA. 1.50\n" in mmbench.questions(mmbench.load_table(tsv), "?")[0].message


def test_upload_table_is_official_and_its_bytes_are_stable(tsv, tmp_path, monkeypatch):
    table, golden = mmbench.load_table(tsv), GOLDEN["mmbench_submission"]
    texts = [row["prediction"] for row in golden["rows"]]
    write_upload(tmp_path / "first.xlsx", table, texts)
    import openpyxl.writer.excel

    class Later(openpyxl.writer.excel.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3, tzinfo=tz)

    monkeypatch.setattr(openpyxl.writer.excel.datetime, "datetime", Later)
    write_upload(tmp_path / "second.xlsx", table, texts)
    first = (tmp_path / "first.xlsx").read_bytes()
    assert first == (tmp_path / "second.xlsx").read_bytes()
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"1980-01-01T00:00:00Z</dcterms:modified>" in archive.read("docProps/core.xml")
    read = pandas.read_excel(tmp_path / "first.xlsx")
    assert list(read.columns) == golden["columns"]
    rows = [
        {key: None if value != value else value for key, value in row.items()}
        for row in read.to_dict("records")
    ]
    assert rows == golden["rows"]


def test_upload_table_keeps_any_text(tsv, tmp_path):
    texts = ["=1+1", "A\x01\x0b\uffff", "_x0041_"]
    write_upload(tmp_path / "T.xlsx", mmbench.load_table(tsv), texts)
    assert pandas.read_excel(tmp_path / "T.xlsx")["prediction"].tolist() == [
        "=1+1",
        "A\ufffd\ufffd\ufffd",
        "_x0041_",
    ]


def test_circular_needs_every_rotation_and_the_exact_letter(tmp_path):
    rows = [(1, "A", "A"), (1_000_001, "B", "B"), (2_000_001, "C", "C"), (3_000_001, "D", "D")]  # all right
    rows += [(2, "A", "A"), (1_000_002, "B", "A")]  # one rotation wrong
    rows += [(3, "A", "a")]  # lower case
    rows += [(4, "A", "A."), (1_000_004, "B", "B")]  # more than the letter
    rows += [(5, "C", "C"), (2_000_005, "D", "D")]  # a rotation missing
    rows += [(6, "A", None), (7, "AB", None), (8, 1, 1)]  # no prediction, two letters, numbers
    rows += [(1_000_009, "A", "A")]  # a rotation without its question
    result = mmbench.score(table_of(tmp_path, rows))
    assert result["circular"] == result["accuracy"] == 100.0 * 2 / 8
    assert result["vanilla"] == 100.0 * 9 / 15
    assert (result["questions"], result["rows"], result["empty"], result["orphans"]) == (8, 15, 2, 1)
    assert result["scores"] == {"1": 1, "2": 0, "3": 0, "4": 0, "5": 1, "6": 0, "7": 0, "8": 0}


def edited(tsv, cells, **columns):
    """The golden table with other cells, {(row from 0, column): text}, and further columns."""
    table = pandas.read_table(tsv, dtype=str, keep_default_na=False).assign(**columns)
    for (row, column), text in cells.items():
        table.loc[row, column] = text
    table.to_csv(tsv, sep="\t", index=False)
    return tsv


@pytest.mark.parametrize("rows", ["one", "all"])
def test_a_table_without_answers_is_neither_asked_nor_scored(tsv, tmp_path, rows):
    count = len(GOLDEN["mmbench_rows"])
    edited(tsv, {(row, "answer"): "" for row in range(count if rows == "all" else 1)})
    write_jsonl(
        tmp_path / "B.jsonl", ({"question_id": row["index"], "text": "A"} for row in GOLDEN["mmbench_rows"])
    )
    for refused in (lambda: mmbench.load_table(tsv), lambda: mmbench.score(tsv, tmp_path / "B.jsonl")):
        with pytest.raises(
            UserError,
            match=r"mmbench_dev\.tsv, row 2 has no answer \(the test split has none: take the dev split\)",
        ):
            refused()
    with pytest.raises(UserError, match="row 3 has no answer"):
        mmbench.score(table_of(tmp_path, [(1, "A", "A"), (2, None, "B")]))


@pytest.mark.parametrize(
    ("cells", "columns", "unanswerable", "dropped"),
    [
        ({}, {}, None, None),
        ({(0, "answer"): "E"}, {"E": "more"}, True, "option E 'more'"),
        ({}, {"E": "more"}, None, "3 rows .* option E 'more'"),
        ({(0, "answer"): "AB"}, {}, True, None),
        ({(0, "answer"): "1"}, {}, True, None),
        ({(0, "A"): "#N/A", (0, "B"): "None"}, {}, True, "1 row .* option A '#N/A'"),
        ({(0, "answer"): "A", (0, "D"): "None"}, {}, None, "1 row .* option D 'None'"),
        ({(0, "answer"): "D", (0, "D"): ""}, {}, True, None),
        ({(0, "answer"): "A", (0, "C"): "nan", (0, "D"): ""}, {}, None, None),
    ],
)
def test_what_the_official_rule_drops_is_said(tsv, tmp_path, capsys, cells, columns, unanswerable, dropped):
    edited(tsv, cells, **columns)
    table = mmbench.load_table(tsv)
    first = table["index"][0]
    assert mmbench.unanswerable(table) == (
        {"unanswerable": {"rows": 1, "first": first}} if unanswerable else {}
    )
    said = list(mmbench.warnings(tsv))
    assert len(said) == bool(unanswerable) + bool(dropped)
    assert not dropped or re.search(dropped, said[-1])
    write_jsonl(
        tmp_path / "B.jsonl", ({"question_id": int(number), "text": "A"} for number in table["index"])
    )
    write_upload(tmp_path / "U.xlsx", table, ["A"] * len(table))
    for arguments in (
        ["--table", str(tsv), "--answers", str(tmp_path / "B.jsonl")],
        ["--table", str(tmp_path / "U.xlsx")],
    ):
        assert main(["evaluate", "mmbench-score", *arguments]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out).get("unanswerable") == (
            {"rows": 1, "first": first} if unanswerable else None
        )
        assert ("the answer of 1 row is none of the options asked" in printed.err) == bool(unanswerable)


def test_an_index_that_comes_twice_counts_twice(tmp_path):
    result = mmbench.score(
        table_of(tmp_path, [(1, "A", "A"), (1, "A", "A"), (2, "B", "A"), (1_000_002, "C", "C")])
    )
    assert (result["circular"], result["questions"], result["vanilla"]) == (100.0 * 2 / 3, 3, 75.0)
    assert result["scores"] == {"1": 1, "1 #2": 1, "2": 0}


def test_score_command_takes_three_forms(tmp_path, capsys):
    rows = [(1, "A", "A"), (1_000_001, "B", "B"), (2, "C", "B")]
    write_jsonl(
        tmp_path / "B.jsonl", ({"question_id": index, "text": text} for index, _, text in reversed(rows))
    )
    printed = []
    for arguments in (
        ["--table", str(table_of(tmp_path, rows))],
        ["--table", str(table_of(tmp_path, rows, "T.tsv"))],
        [
            "--table",
            str(table_of(tmp_path, [(*row[:2], "D") for row in rows], "U.tsv")),
            "--answers",
            str(tmp_path / "B.jsonl"),
        ],
    ):
        assert main(["evaluate", "mmbench-score", *arguments]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    expected = {
        "accuracy": 50.0,
        "circular": 50.0,
        "vanilla": 100.0 * 2 / 3,
        "questions": 2,
        "rows": 3,
        "empty": 0,
        "orphans": 0,
    }
    assert printed == [expected] * 3


def test_score_command_counts_a_missing_answer_as_wrong_and_the_last_of_several(tmp_path, capsys):
    table = table_of(tmp_path, [(1, "A", None), (1_000_001, "B", None), (2, "C", None)], "T.tsv")
    write_jsonl(
        tmp_path / "B.jsonl",
        [{"question_id": 1, "text": "A"}, {"question_id": 2, "text": "B"}, {"question_id": 2, "text": "C"}],
    )
    assert (
        main(["evaluate", "mmbench-score", "--table", str(table), "--answers", str(tmp_path / "B.jsonl")])
        == 0
    )
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert (printed["circular"], printed["vanilla"], printed["empty"]) == (50.0, 100.0 * 2 / 3, 1)
    assert printed["repeated"] == 1 and "1 answer is to a question that another line answers too" in err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1, "A")], "no answer for index 1000001"),
        ([(1, "A"), (1_000_001, "B"), (1, "A")], "answer 3 answers index 1 a second time"),
        ([(1, "A"), (1_000_001, "B"), (7, "A")], "answer 3 is for index 7"),
        ([(1, "A"), (1_000_001, None)], "answer 2 lacks"),
        ([], "no answer for index 1 .*1 more"),
    ],
)
def test_answers_that_do_not_fit_are_named(tmp_path, rows, words):
    table = table_of(tmp_path, [(1, "A", None), (1_000_001, "B", None)])
    write_jsonl(tmp_path / "B.jsonl", ({"question_id": index, "text": text} for index, text in rows))
    with pytest.raises(UserError, match=words) as error:
        mmbench.score(table, tmp_path / "B.jsonl")
    assert "B.jsonl" in str(error.value)


def test_bad_tables_are_named(tmp_path, tsv):
    with pytest.raises(UserError, match="no column prediction; give --answers"):
        mmbench.score(tsv)
    with pytest.raises(UserError, match="does not exist"):
        mmbench.score(tmp_path / "none.xlsx")
    (tmp_path / "cut.xlsx").write_bytes(table_of(tmp_path, [(1, "A", "A")]).read_bytes()[:-300])
    with pytest.raises(UserError, match=r"cut\.xlsx cannot be read"):
        mmbench.score(tmp_path / "cut.xlsx")
    with pytest.raises(UserError, match="row 3 has no whole number"):
        mmbench.score(table_of(tmp_path, [(1, "A", "A"), (math.nan, "A", "A")]))
    with pytest.raises(UserError, match="below 1000000"):
        mmbench.score(table_of(tmp_path, [(1_000_001, "A", "A")]))
    lines = tsv.read_text().splitlines(keepends=True)
    tsv.write_text("".join([*lines, lines[1]]))
    with pytest.raises(UserError, match="index 241 twice"):
        mmbench.load_table(tsv)
    with pytest.raises(UserError, match="has a column prediction already"):
        mmbench.load_table(edited(tsv, {}, Prediction="A"))


def test_scoring_imports_no_torch(tmp_path):
    path = table_of(tmp_path, [(1, "A", "A")])
    code = (
        "import sys; from toolkit.__main__ import main; status = main(['evaluate', 'mmbench-score', "
        f"'--table', {str(path)!r}]); assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
