"""Every reader of the evaluation, given damaged files: an error in one sentence or what the file says, never
a traceback or a guess."""

import gzip
import json
import warnings
import zipfile
from pathlib import Path

import pandas
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.benchmarks import mmbench, textvqa
from toolkit.benchmarks.tables import read_table
from toolkit.errors import UserError
from toolkit.files import write_json, write_jsonl

PROMPT = "q?\nReference OCR token: a\nAnswer the question using a single word or phrase."
checked = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

ODD = st.sampled_from(["\ud800", "/a", "../a"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(max_size=5) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\t",
    b'"',
    b"\n",
    b"[" * 500,
    b"9" * 5000,
    b"null",
    b"\\ud800",
    b"{",
    b"nan",
]
# where bytes are changed, how many of them go, and what comes instead
DAMAGE = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(BYTES)), min_size=1, max_size=3
)


def damaged(content: bytes, damage) -> bytes:
    for share, count, other in damage:
        place = int(share * len(content))
        content = content[:place] + other + content[place + count :]
    return content


def text(value) -> bool:
    return isinstance(value, str)


def key(value) -> bool:
    return text(value) or type(value) is int


def outcome(read):
    """What `read` gives, None for an error in one sentence."""
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return None


def write(path: Path, value) -> Path:
    path.write_text(json.dumps(value))
    return path


@checked
@given(field=st.sampled_from(["question_id", "image", "text"]), value=VALUES)
def test_a_question_of_any_kind(tmp_path, field, value):
    row = {"question_id": "q", "image": "q.jpg", "text": PROMPT} | {field: value}
    found = outcome(lambda: textvqa.load_questions(write(tmp_path / "Q.jsonl", row)))
    if found is not None:
        assert key(row["question_id"]) and text(row["image"]) and text(row["text"])
        assert (found[0].head, found[0].image) == (
            {"question_id": row["question_id"], "prompt": row["text"]},
            row["image"],
        )


@checked
@given(field=st.sampled_from(["image_id", "question", "answers", "an answer"]), value=VALUES)
def test_an_annotation_of_any_kind(tmp_path, field, value):
    row = {"image_id": "q", "question": "q?", "answers": ["x"] * 10}
    row = row | {"answers": ["x"] * 9 + [value]} if field == "an answer" else row | {field: value}
    write_jsonl(tmp_path / "B.jsonl", [{"question_id": "q", "prompt": PROMPT, "text": "x"}])
    found = outcome(lambda: textvqa.score(write(tmp_path / "A.json", {"data": [row]}), tmp_path / "B.jsonl"))
    if found is not None:
        assert all(map(key, row["answers"])) and len(row["answers"]) == 10
        others = sum(textvqa.normalise(str(answer)) != "x" for answer in row["answers"])
        assert found["scores"] == {"q: q?": 1.0} if others < 2 else True


@checked
@given(field=st.sampled_from(["question_id", "prompt", "text"]), value=VALUES)
def test_an_answer_of_any_kind(tmp_path, field, value):
    write_json(tmp_path / "A.json", {"data": [{"image_id": "q", "question": "q?", "answers": ["x"] * 10}]})
    row = {"question_id": "q", "prompt": PROMPT, "text": "x"} | {field: value}
    found = outcome(lambda: textvqa.score(tmp_path / "A.json", write(tmp_path / "B.jsonl", row)))
    assert found is None or found["scores"] == {
        "q: q?": float(text(row["text"]) and textvqa.normalise(row["text"]) == "x")
    }
    row = {"question_id": 1, "text": "x"} | ({} if field == "prompt" else {field: value})
    predicted = outcome(lambda: mmbench.predictions(write(tmp_path / "B.jsonl", row), [1], Path("T.tsv")))
    assert predicted is None or (type(row["question_id"]) is int and predicted == ([row["text"]], 0))


@checked
@given(damage=DAMAGE)
def test_damaged_json(tmp_path, damage):
    """Both readers of JSON lines and the one of JSON."""
    questions = [{"question_id": f"q{n}", "image": "q.jpg", "text": PROMPT} for n in range(3)]
    answers = [{"question_id": f"q{n}", "prompt": PROMPT, "text": "x"} for n in range(3)]
    annotations = {"data": [{"image_id": f"q{n}", "question": "q?", "answers": ["x"] * 10} for n in range(3)]}
    lines = ["".join(f"{json.dumps(row)}\n" for row in rows).encode() for rows in (questions, answers)]
    (tmp_path / "Q.jsonl").write_bytes(damaged(lines[0], damage))
    found = outcome(lambda: textvqa.load_questions(tmp_path / "Q.jsonl"))
    if found is not None:
        written = (tmp_path / "Q.jsonl").read_text(encoding="utf-8-sig")
        assert [question.message for question in found] == [
            json.loads(line)["text"] for line in written.split("\n") if line.strip()
        ]
    for name, content, whole in (
        ("A.json", json.dumps(annotations).encode(), lines[1]),
        ("B.jsonl", lines[1], None),
    ):
        (tmp_path / name).write_bytes(damaged(content, damage))
        (tmp_path / "B.jsonl" if whole else tmp_path / "A.json").write_bytes(
            whole or json.dumps(annotations).encode()
        )
        found = outcome(lambda: textvqa.score(tmp_path / "A.json", tmp_path / "B.jsonl"))
        assert found is None or set(found["scores"]) == {"q0: q?", "q1: q?", "q2: q?"}


HEADER = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
CELLS = [[str(n), f"q{n}?", "", "x", "None", "y", "z", "A", "c", "aGk="] for n in range(3)]


def as_pandas_reads(read, *arguments):
    """The table, None where pandas has an error or a warning; two columns of one name are its guess."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return read(*arguments)
    except Exception:
        return None


@checked
@given(damage=DAMAGE)
def test_a_damaged_text_table(tmp_path, damage):
    path = tmp_path / "T.tsv"
    path.write_bytes(damaged("".join("\t".join(row) + "\n" for row in [HEADER, *CELLS]).encode(), damage))
    found = outcome(lambda: read_table(path))
    if found is not None:
        pandas.testing.assert_frame_equal(found, as_pandas_reads(pandas.read_table, path))
    outcome(lambda: list(mmbench.warnings(path)) if mmbench.load_table(path) is not None else None)
    outcome(lambda: mmbench.score(path))


@pytest.fixture(scope="module")
def workbook(tmp_path_factory):
    """The parts of a small upload table."""
    path = tmp_path_factory.mktemp("workbook") / "U.xlsx"
    pandas.DataFrame(
        [[1, "A", "A"], [1_000_001, "B", "C"]], columns=["index", "answer", "prediction"]
    ).to_excel(path, index=False)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


SHEET = "xl/worksheets/sheet1.xml"
PARTS = [
    SHEET,
    "xl/workbook.xml",
    "xl/sharedStrings.xml",
    "xl/styles.xml",
    "[Content_Types].xml",
    "xl/_rels/workbook.xml.rels",
]


def pack(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


XML = st.sampled_from(
    [b"", b"<v>", b"1", b"e", b"<c>", b"</row>", b'r="ZZ1"', b't="b"', b't="n"', b"&#0;", b"nan", b"9" * 5000]
)


@checked
@given(
    part=st.sampled_from(
        [SHEET, SHEET, "xl/workbook.xml", "xl/sharedStrings.xml", "[Content_Types].xml", "xl/styles.xml"]
    ),
    data=st.data(),
)
def test_a_damaged_workbook(tmp_path, workbook, part, data):
    parts = dict(workbook)
    damage = data.draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), XML), min_size=1, max_size=3))
    parts[part] = damaged(parts.get(part, b"<sst/>"), damage)
    path = pack(tmp_path / "U.xlsx", parts)
    found = outcome(lambda: read_table(path))
    if found is not None:
        pandas.testing.assert_frame_equal(found, pandas.read_excel(path))
    outcome(lambda: mmbench.score(path))


@checked
@given(damage=DAMAGE)
def test_a_damaged_archive(tmp_path, workbook, damage):
    path = pack(tmp_path / "U.xlsx", workbook)
    path.write_bytes(damaged(path.read_bytes(), damage))
    outcome(lambda: mmbench.score(path))


ROWS = b"index\tanswer\tprediction\n1\tA\tA\n1000001\tB\tC\n"


def xlsx(path: Path, sheet: bytes, workbook: dict[str, bytes], **others: bytes) -> Path:
    names = {"strings": "xl/sharedStrings.xml"}
    head = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    parts = (
        workbook
        | {SHEET: head + sheet + b"</sheetData></worksheet>"}
        | {names[name]: content for name, content in others.items()}
    )
    return pack(path, parts)


@pytest.mark.parametrize(
    "encode", [bytes, lambda text: b"\xef\xbb\xbf" + text, gzip.compress, zstandard.compress]
)
@pytest.mark.parametrize("name", ["T.tsv", "T.tsv.gz", "T.xlsx"])
def test_a_table_is_what_it_holds_not_what_it_is_called(tmp_path, workbook, encode, name):
    (tmp_path / name).write_bytes(encode(ROWS))
    assert mmbench.score(tmp_path / name)["vanilla"] == 50.0
    assert mmbench.score(pack(tmp_path / name, workbook))["vanilla"] == 50.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"index\tanswer\tanswer\tprediction\n1\tA\tB\tA\n", "two columns 'answer'"),
        (b"index\tanswer\tAnswer\tprediction\n1\tA\tB\tA\n", "two columns 'answer'"),
        (b"index\tanswer\tprediction\n7\t1\tA\tA\n", "its rows have more cells than its header"),
        (b"index\tanswer\tprediction\n1\tA\tA\n2\tA\tA\tA\n", "Expected 3 fields in line 3, saw 4"),
        (b"index\tanswer\tprediction" + b"\tx" * 200 + b"\n", "203 columns, at most 100 are read"),
        (b"index\tanswer\tprediction\n" + b"1\tA\tA\n" * 50_001, "more than 50000 rows"),
        (b"index\tanswer\tprediction\nTrue\tA\tA\n", "row 2 has no whole number"),
        (b"index\tanswer\tprediction\n1.5\tA\tA\n", "row 2 has no whole number"),
        (b"index\tanswer\tprediction\n\xed\xa0\x80\tA\tA\n", "cannot be read as a table: 'utf-8'"),
        (ROWS.decode().encode("utf-16"), "cannot be read as a table: 'utf-8'"),
        (gzip.compress(ROWS, mtime=0)[:-9], "is compressed and damaged"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "cannot be read as a table"),
        (b"", "cannot be read as a table: No columns"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, words):
    (tmp_path / "T.tsv").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        mmbench.score(tmp_path / "T.tsv")
    assert "T.tsv" in str(error.value)


CELL = b'<c r="%s" t="inlineStr"><is><t>A</t></is></c>'


@pytest.mark.parametrize(
    ("sheet", "others", "words"),
    [
        (b'<row r="1">' + CELL % b"XFD1" + b"</row>", {}, "cell XFD1, at most 100 columns"),
        (b'<row r="1">' + CELL % b"A1" + b'</row><row r="1048576"/>', {}, "a row 1048576, at most 50000"),
        (b"<row><c/></row>" * 300_000, {}, "a row 50002, at most 50000"),
        (b"<row>" + b"<c/>" * 1_000_000 + b"</row>", {}, "more than 1000000 elements"),
        (
            b"<row/>",
            {"strings": b"<sst>" + b"<si><t>a</t></si>" * 600_000 + b"</sst>"},
            "more than 1000000 elements",
        ),
        (
            b"<row/>",
            {"strings": b"<sst><si><t>" + b"a" * (100 << 20) + b"</t></si></sst>"},
            "bytes, at most 1000 of 67108864",
        ),
        (b'<row r="1">' + CELL % b"A1" + CELL % b"B1" + b"</row>", {}, "two columns 'a'"),
    ],
)
def test_a_workbook_that_would_become_too_large_is_not_read(
    tmp_path, workbook, monkeypatch, sheet, others, words
):
    if "two columns" not in words:
        monkeypatch.setattr(pandas.ExcelFile, "__init__", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match=words):
        mmbench.score(xlsx(tmp_path / "U.xlsx", sheet, workbook, **others))
