"""TextVQA scoring against what the official scorer gave (tests/golden/mgm/eval.json) and in its odd
corners."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.__main__ import main
from toolkit.benchmarks import textvqa
from toolkit.errors import UserError
from toolkit.files import write_json, write_jsonl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/mgm/eval.json").read_text(encoding="utf-8"))
M4C = GOLDEN["m4c"]


def prompt_for(question: str) -> str:
    return f"{question}\nReference OCR token: a, b\nAnswer the question using a single word or phrase."


@pytest.fixture
def files(tmp_path):
    """A function that writes annotations and answers: rows of (image_id, question, ten human answers, model's
    answer)."""

    def write(rows):
        write_json(
            tmp_path / "A.json",
            {"data": [{"image_id": row[0], "question": row[1], "answers": row[2]} for row in rows]},
        )
        write_jsonl(
            tmp_path / "B.jsonl",
            ({"question_id": row[0], "prompt": prompt_for(row[1]), "text": row[3]} for row in rows),
        )
        return tmp_path / "A.json", tmp_path / "B.jsonl"

    return write


@pytest.mark.parametrize(("text", "expected"), M4C["normalise"])
def test_normalisation_is_official(text, expected):
    assert textvqa.normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("." * 40, "." * 8),  # only 32 periods go
        ("Id've", "id've"),  # the official table has capitals, the text none
        ("couldntve", "couldntve"),  # two apostrophes missing are not repaired
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("a-b c", "b c"),
        ("a-b -c", "ab c"),  # one hyphen beside a space deletes all
        ("1.a", "1a"),
        ("the-end", "end"),
    ],
)
def test_corners_of_normalisation(text, expected):
    assert textvqa.normalise(text) == expected


def test_soft_scores_are_official():
    values = []
    for row in M4C["scores"]:
        values.append(
            textvqa.soft_scores(M4C["gt_answers"][row["gt"]]).get(textvqa.normalise(row["pred"]), 0.0)
        )
        assert values[-1] == row["score"]
    assert sum(values) / len(values) == M4C["mean_over_all"]


@pytest.mark.parametrize(("prompt", "question"), M4C["prompt_processor"])
def test_question_of_the_prompt(prompt, question):
    assert textvqa.question_of(prompt) == question


@pytest.mark.parametrize(
    "prompt",
    [
        "one line",
        "a\nb\nc",
        "Reference OCR token: \na\nb\nc",
        "OCR tokens: a Question: b?",
        pytest.param("OCR tokens: " + "Question: " * 200_000, id="many"),
    ],
)
def test_unknown_prompt(prompt):
    with pytest.raises(ValueError):
        textvqa.question_of(prompt)


def test_score_command_prints_the_official_number(files, capsys):
    rows = [
        (f"i{n}", f"What Is {n}?", M4C["gt_answers"][row["gt"]], row["pred"])
        for n, row in enumerate(M4C["scores"])
    ]
    annotations, answers = files(rows)
    assert (
        main(["evaluate", "textvqa-score", "--annotations", str(annotations), "--answers", str(answers)]) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"accuracy": 100.0 * M4C["mean_over_all"], "questions": 40, "empty": 0, "unanswered": 0}


def test_score_command_scores_the_lines_that_are_there_as_the_official_scorer_does(files, capsys):
    ten = ["x"] * 10
    annotations, answers = files([("i", "q?", ten, "x"), ("j", "q?", ten, "y"), ("k", "q?", ten, "x")])
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text(lines[0] + lines[1] + lines[1])  # one twice, one never
    assert (
        main(["evaluate", "textvqa-score", "--annotations", str(annotations), "--answers", str(answers)]) == 0
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "accuracy": 100.0 * (1 / 3),
        "questions": 3,
        "empty": 0,
        "unanswered": 1,
        "repeated": 1,
    }
    assert "1 question is unanswered" in printed.err
    assert "1 answer is to a question that another line answers too" in printed.err
    with pytest.raises(UserError):  # an entry must be complete
        textvqa.score(annotations, answers)


def test_a_question_annotated_twice_is_answered_twice(files):
    ten = ["x"] * 10
    annotations, answers = files([("i", "q?", ["y"] * 10, "x"), ("i", "Q?", ten, "y")])
    result = textvqa.score(annotations, answers)
    assert result["accuracy"] == 50.0  # the last annotation counts for both
    assert result["scores"] == {"i: q?": 1.0, "i: q? #2": 0.0}


def change(path, edit):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(edit(lines)))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda lines: lines[:2], ["no row for image_id 'i2'"]),
        (lambda lines: [*lines, lines[1]], ["row 4", "once more", "'i1'"]),
        (
            lambda lines: [lines[0].replace("i0", "other"), *lines[1:]],
            ["A.json has no entry", "'other'", "row 1"],
        ),
        (lambda lines: [lines[0].replace("q0", "q9"), *lines[1:]], ["A.json has no entry", "q9?"]),
        (lambda lines: [*lines[:2], lines[2].replace("\\n", " ")], ["row 3", "three known shapes"]),
        (lambda lines: [*lines[:2], lines[2].replace('"text"', '"words"')], ["answer 3", "no text"]),
        (lambda lines: [*lines[:2], lines[2][:20]], ["line 3", "not valid JSON"]),
        (lambda lines: [], ["no row for"]),
    ],
)
def test_answers_that_do_not_fit_are_named(files, edit, words):
    annotations, answers = files([(f"i{n}", f"q{n}?", ["x"] * 10, "x") for n in range(3)])
    change(answers, edit)
    with pytest.raises(UserError) as error:
        textvqa.score(annotations, answers)
    assert all(
        word in str(error.value) for word in [*words, "B.jsonl" if "A.json" not in words[0] else "A.json"]
    )


def test_nine_human_answers_are_refused(files):
    annotations, answers = files([("i", "q?", ["x"] * 9, "x")])
    with pytest.raises(UserError, match="has 9 answers instead of 10"):
        textvqa.score(annotations, answers)


def test_a_number_among_the_human_answers_is_its_digits(files):
    """A kinder reading than the official scorer's, which ends there: tables drop the quotes of numbers."""
    annotations, answers = files([("i", "q?", [7] * 10, "7"), (5, "q?", ["x", 7] * 5, "seven")])
    assert textvqa.score(annotations, answers)["scores"] == {"i: q?": 1.0, "5: q?": 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": None}, "answers must be a list of 10 texts"),
        ({"answers": "x" * 10}, "answers must be a list of 10 texts"),
        ({"answers": ["x"] * 9 + [None]}, "answer 10 is null, a text is expected"),
        ({"answers": [True] * 10}, "answer 1 is true"),
        ({"answers": [7.5] * 10}, r"answer 1 is 7\.5"),
        ({"answers": [["x"]] * 10}, "answer 1 is .*x"),
        ({"question": None}, "question a text"),
        ({"image_id": True}, "image_id must be a text or an integer"),
        ({"image_id": 1.0}, "image_id must be a text or an integer"),
        ({"image_id": ["i"]}, "image_id must be a text or an integer"),
    ],
)
def test_annotations_of_other_kinds_are_named(files, tmp_path, changes, words):
    annotations, answers = files([("i", "q?", ["x"] * 10, "x"), ("j", "q?", ["x"] * 10, "x")])
    data = json.loads(annotations.read_text())
    data["data"][1] |= changes
    write_json(annotations, data)
    with pytest.raises(UserError, match=f"A.json, data entry 2.*{words}"):
        textvqa.score(annotations, answers)


@pytest.mark.parametrize(
    "changes",
    [{"question_id": True}, {"question_id": 1.0}, {"question_id": ["i"]}, {"prompt": None}, {"prompt": 3}],
)
def test_answers_of_other_kinds_are_named(files, changes):
    annotations, answers = files([("i", "q?", ["x"] * 10, "x")])
    write_jsonl(answers, [json.loads(answers.read_text()) | changes])
    with pytest.raises(
        UserError, match=r"B\.jsonl, row 1 cannot be matched: it lacks question_id or a prompt"
    ):
        textvqa.score(annotations, answers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": 5}, "image is 5, the name of a file is expected"),
        ({"image": None}, "image is None"),
        ({"image": ["q.jpg"]}, "the name of a file is expected"),
        ({"image": ""}, "the name of a file is expected"),
        ({"image": "/etc/q.jpg"}, "'/etc/q.jpg' does not lie in the folder"),
        ({"image": "a/../../q.jpg"}, "does not lie in the folder"),
        ({"image": "q\0.jpg"}, "does not lie in the folder"),
        ({"text": None}, "text a text"),
        ({"question_id": True}, "question_id must be"),
        ({"question_id": 1.0}, "question_id must be"),
    ],
)
def test_questions_of_other_kinds_are_named(tmp_path, changes, words):
    good = {"question_id": "q", "image": "q.jpg", "text": prompt_for("q?")}
    write_jsonl(tmp_path / "Q.jsonl", [good, good | changes])
    with pytest.raises(UserError, match=f"Q.jsonl, question 2.*{words}"):
        textvqa.load_questions(tmp_path / "Q.jsonl")


def test_scoring_imports_no_torch(files):
    annotations, answers = files([("i", "q?", ["x"] * 10, "x")])
    code = (
        "import sys; from toolkit.__main__ import main; status = main(['evaluate', 'textvqa-score', "
        f"'--annotations', {str(annotations)!r}, '--answers', {str(answers)!r}]); assert 'torch' not in "
        "sys.modules and 'pandas' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == 100.0
