"""`data check` lists every problem at once and fails."""

import json
from pathlib import Path

import pytest
from tiny_data import seed_row, seed_set, write_rows

from toolkit.__main__ import main


def check(folder: Path, rows: list) -> tuple[int, dict]:
    """Exit status and content of check.json."""
    samples = write_rows(folder / "rows.jsonl", rows)
    arguments = ["--images", str(folder), "--original", str(folder / "stage_1.json"), "--output", str(folder / "check.json")]
    status = main(["data", "check", "--samples", str(samples), *arguments])
    return status, json.loads((folder / "check.json").read_text())


def test_good_rows_pass_and_may_repeat(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 3)
    assert check(tmp_path, [*rows, rows[0]]) == (0, {"rows": 4, "images": 3, "problems": [], "set_aside": [], "outside": []})


def test_every_problem_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = seed_set(tmp_path, 4)
    whole = (tmp_path / rows[1]["images"][0]).read_bytes()
    (tmp_path / rows[1]["images"][0]).write_bytes(whole[: len(whole) // 2])
    bad = [
        rows[0],
        rows[1],
        {"id": rows[2]["id"], "text": rows[2]["text"], "images": ["/etc/passwd"]},
        '{"id": "0000',
        seed_row(9, "not of the seed"),
        {**rows[2], "text": "<__dj__image>\n <|__dj__eoc|>"},
        {**rows[2], "text": "a mug <|__dj__eoc|>"},
        {**rows[2], "text": "<__dj__image>\n<image> a mug <|__dj__eoc|>"},
        {**rows[2], "images": ["images/../../x.jpg"]},
        rows[3],
    ]
    status, result = check(tmp_path, bad)
    assert (status, result["rows"]) == (1, 10)
    expected = {
        2: "unreadable image",
        3: "absolute image path",
        4: "malformed line",
        5: "id 000000009 is not in stage_1.json",
        6: "empty caption",
        7: "0 <__dj__image> tokens",
        8: "<image> in the text",
        9: "leaves the folder",
    }
    for line, text in expected.items():
        assert any(problem.startswith(f"line {line}: ") and text in problem for problem in result["problems"]), (line, result["problems"])
    assert "line 5: missing image (images/00000/000000009.jpg)" in result["problems"]
    assert len(result["problems"]) == len(expected) + 1
    error = capsys.readouterr().err
    assert "has 9 problems, all listed in" in error and "line 9" in error


def test_no_rows_is_a_problem(tmp_path: Path) -> None:
    seed_set(tmp_path, 1)
    assert check(tmp_path, [])[0] == 1
