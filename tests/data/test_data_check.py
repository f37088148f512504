"""`data check` lists every problem at once and fails."""

import json
from pathlib import Path

import pytest
from tiny_data import record, seed_row, seed_set, write_rows

from toolkit.__main__ import main


def check(folder: Path, rows: list) -> tuple[int, dict]:
    """Exit status and content of check.json."""
    samples = write_rows(folder / "rows.jsonl", rows)
    arguments = [
        "--images",
        str(folder),
        "--original",
        str(folder / "stage_1.json"),
        "--output",
        str(folder / "check.json"),
    ]
    status = main(["data", "check", "--samples", str(samples), *arguments])
    return status, json.loads((folder / "check.json").read_text())


def test_good_rows_pass_and_may_repeat(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 3)
    assert check(tmp_path, [*rows, rows[0]]) == (
        0,
        {"rows": 4, "images": 3, "problems": [], "set_aside": [], "outside": []},
    )


@pytest.mark.parametrize("command", ["check", "convert"])
def test_rows_that_are_not_the_records_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, command: str
) -> None:
    rows = seed_set(tmp_path, 3)
    samples = write_rows(tmp_path / "processed_data.jsonl", rows)
    record(tmp_path / "run.json", {"processed_data": samples}, {})
    original, output = ["--original", str(tmp_path / "stage_1.json")], str(tmp_path / "o.json")
    arguments = {
        "check": ["--samples", str(samples), "--images", str(tmp_path), *original, "--output", output],
        "convert": ["--to", "llava", *original, str(samples), output],
    }[command]
    assert main(["data", command, *arguments]) == 0
    write_rows(samples, rows[:2])  # a copy that broke off
    assert main(["data", command, *arguments]) == 1
    assert "processed_data.jsonl is not the file that" in capsys.readouterr().err


def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    samples, original = write_rows(tmp_path / "rows.json", seed_set(tmp_path, 3)), tmp_path / "stage_1.json"
    before = samples.read_bytes(), original.read_bytes()
    questions, images = ["--original", str(original)], ["--images", str(tmp_path)]
    for output in (samples, tmp_path / "images/../stage_1.json"):
        rows, out = str(samples), str(output)
        for command in (
            ["check", "--samples", rows, *images, *questions, "--output", out],
            ["convert", "--to", "llava", *questions, rows, out],
            ["compare", rows, str(original), *images, "--output", str(tmp_path / "o"), "--markdown", out],
        ):
            assert main(["data", *command]) == 1
            assert f"{output} is to be written and is another file" in capsys.readouterr().err
    assert (samples.read_bytes(), original.read_bytes()) == before


def test_a_folder_of_images_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", seed_set(tmp_path, 3)))
    command = [
        "data",
        "analyze",
        rows,
        "--images",
        str(tmp_path / "nowhere"),
        "--output",
        str(tmp_path / "a"),
    ]
    assert main(command) == 1 and "nowhere is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


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
        assert any(
            problem.startswith(f"line {line}: ") and text in problem for problem in result["problems"]
        ), (line, result["problems"])
    assert "line 5: missing image (images/00000/000000009.jpg)" in result["problems"]
    assert len(result["problems"]) == len(expected) + 1
    error = capsys.readouterr().err
    assert "has 9 problems, all listed in" in error and "line 9" in error


def test_no_rows_is_a_problem(tmp_path: Path) -> None:
    seed_set(tmp_path, 1)
    assert check(tmp_path, [])[0] == 1


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        (
            "a red <eos> cup",
            "<eos> in the text, a control token of the model: nothing of the conversation would be trained "
            "on",
        ),
        ("a <pad>cup", "<pad> in the text"),
        ("cup<start_of_turn>model\n", "<start_of_turn> in the text"),
        ("a cup<end_of_turn>", "<end_of_turn> in the text"),
        ("<bos> cup", "<bos> in the text"),
        ("a \0 cup", "the control character U+0000 in the text"),
        ("a \x1b[2K cup", "the control character U+001B in the text"),
        ("a \u202e cup", "the control character U+202E in the text"),
        ("a cup " * 170_000, "a text of 1019999 characters, at most 16384 are trained on"),
    ],
)
def test_captions_that_train_nothing_or_hide_something_are_named(
    tmp_path: Path, caption: str, problem: str
) -> None:
    rows = seed_set(tmp_path, 2)
    status, result = check(
        tmp_path, [rows[0], {**rows[1], "text": f"<__dj__image>\n{caption} <|__dj__eoc|>"}]
    )
    assert (
        status == 1
        and len(result["problems"]) == 1
        and result["problems"][0].startswith(f"line 2: {problem}")
    ), result


def test_ordinary_tabs_brackets_and_scripts_are_no_problem(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 3)
    for row, caption in zip(
        rows, ("a\tred <cup>\n2", "<EOS> כוס אדומה\u200f", "红色的杯子 👩‍🚀"), strict=True
    ):
        row["text"] = f"<__dj__image>\n{caption} <|__dj__eoc|>"
    assert check(tmp_path, rows)[0] == 0


def test_questions_on_which_nothing_is_trained_are_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = seed_set(tmp_path, 4)
    original = json.loads((tmp_path / "stage_1.json").read_text())
    original[0]["conversations"][0]["value"] = "Describe the picture."
    original[1]["conversations"][0]["value"] = "<image>\nDescribe <eos>"
    original[2]["conversations"][0]["value"] = "<image>\n" + "word " * 1472
    original[3]["conversations"][0]["value"] = "word " * 1471 + "<image>"
    (tmp_path / "stage_1.json").write_text(json.dumps(original))
    aside = [
        "line 1: no <image> in the question: it would be trained on without its image",
        "line 2: <eos> in the text, a control token of the model: nothing of the conversation would be "
        "trained on",
        "line 3: a question of 1472 words, at most 1471 tokens of it leave room for an answer: nothing "
        "would be trained on",
    ]
    status, result = check(tmp_path, rows)
    assert (status, result["problems"], result["set_aside"]) == (0, [], aside)
    convert = ["data", "convert", "--to", "llava", "--original", str(tmp_path / "stage_1.json")]
    assert main([*convert, str(tmp_path / "rows.jsonl"), str(tmp_path / "llava.json")]) == 0
    assert [row["id"] for row in json.loads((tmp_path / "llava.json").read_text())] == [rows[3]["id"]]
    assert "3 rows are left out of training:" in capsys.readouterr().err
    assert (
        main(
            [*convert, "--question-tokens", "1470", str(tmp_path / "rows.jsonl"), str(tmp_path / "none.json")]
        )
        == 1
    )
    status, result = check(tmp_path, rows[:3])
    assert (status, result["problems"]) == (1, [f"no row remains: {aside[0]}"])
    assert main([*convert, str(tmp_path / "rows.jsonl"), str(tmp_path / "none.json")]) == 1
    assert (
        "has no row that can be trained on" in capsys.readouterr().err
        and not (tmp_path / "none.json").exists()
    )


def test_a_byte_order_mark_costs_no_row_and_a_repeated_key_is_no_row(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 2)
    samples = write_rows(tmp_path / "rows.jsonl", rows)
    samples.write_bytes(b"\xef\xbb\xbf" + samples.read_bytes())
    arguments = [
        "--images",
        str(tmp_path),
        "--original",
        str(tmp_path / "stage_1.json"),
        "--output",
        str(tmp_path / "check.json"),
    ]
    assert main(["data", "check", "--samples", str(samples), *arguments]) == 0
    twice = json.dumps(rows[1])[:-1] + ', "text": "another"}'
    status, result = check(tmp_path, [rows[0], twice])
    assert (status, result["problems"]) == (1, ["line 2: malformed line: the key text is there twice"])


def test_links_that_lead_out_of_the_folder_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "seed"
    folder.mkdir()
    rows = seed_set(folder, 2)
    inside, outside = (folder / row["images"][0] for row in rows)
    outside.rename(tmp_path / "elsewhere.jpg")
    outside.symlink_to(tmp_path / "elsewhere.jpg")
    inside.rename(inside.with_name("other.jpg"))
    inside.symlink_to("other.jpg")
    (tmp_path / "link").symlink_to(folder)
    for images in (folder, tmp_path / "link"):
        status, result = check(images, rows)
        assert (status, result["outside"]) == (0, [f"line 2: {rows[1]['images'][0]}"])
    assert "1 image is a link out of" in capsys.readouterr().err
