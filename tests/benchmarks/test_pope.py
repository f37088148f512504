"""POPE's score against what the official scorer gave (tests/golden/benchmarks/pope), and files that cannot be
scored."""

import json
import shutil
from pathlib import Path

import pytest

from toolkit.benchmarks import POPE, pope
from toolkit.errors import UserError
from toolkit.files import read_jsonl, write_jsonl

GOLDEN = Path(__file__).parents[1] / "golden/benchmarks/pope"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def files(folder: Path) -> dict[str, Path]:
    labels = {f"pope_{name}": folder / f"coco/coco_pope_{name}.json" for name in pope.SAMPLINGS}
    return {"pope_questions": folder / "llava_pope_test.jsonl", "pope_images": folder / "val2014", **labels}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "pope")
    return tmp_path / "pope"


def test_every_measure_is_the_official_scorers():
    result = POPE.score(files(GOLDEN), GOLDEN / "answers.jsonl")
    assert result["questions"] == EXPECTED["questions"]
    assert result["score"] == pytest.approx(EXPECTED["mean_F1_percent"], abs=1e-9)
    names = {
        "accuracy": "Accuracy",
        "precision": "Precision",
        "recall": "Recall",
        "f1": "F1 score",
        "yes": "Yes ratio",
    }
    for sampling, official in EXPECTED["official"].items():
        found = result["samplings"][sampling]
        assert found["questions"] == official["samples"]
        for own, theirs in names.items():
            assert found[own] == pytest.approx(100 * official[theirs], abs=1e-9), (sampling, own)
    assert sum(s["accuracy"] for s in result["samplings"].values()) / 3 == pytest.approx(
        EXPECTED["mean_accuracy_percent"], abs=1e-9
    )


def test_every_answer_is_judged_as_by_the_official_scorer():
    """Yes or no, whatever the answer's corner (NO, No!, isn't, a decimal before no, another language)."""
    kinds: dict[str, list[int]] = {}
    right = POPE.score(files(GOLDEN), GOLDEN / "answers.jsonl")["scores"]
    rows = list(read_jsonl(GOLDEN / "answers.jsonl"))
    for row, kind in zip(rows, EXPECTED["kind_of_each_answer"], strict=True):
        counts = kinds.setdefault(kind, [0, 0])
        counts[0] += 1
        counts[1] += right[str(row["question_id"])]
    assert kinds == EXPECTED["kinds_count_right"]
    assert (
        "".join(pope.yes_or_no(row["text"])[0] for row in rows)
        == EXPECTED["per_question_label_in_answers_order"]
    )


def test_the_order_of_lines_does_not_matter(copy):
    """The official tools join by line: rows in another order would score at random without a word."""
    before = POPE.score(files(copy), copy / "answers.jsonl")
    for path in [*(copy / "coco").iterdir(), copy / "answers.jsonl"]:
        write_jsonl(path, list(read_jsonl(path))[::-1])
    after = POPE.score(files(copy), copy / "answers.jsonl")
    assert after["samplings"] == before["samplings"] and after["scores"] == before["scores"]


@pytest.mark.parametrize(
    ("file", "edit", "sentence"),
    [
        (
            "coco/coco_pope_random.json",
            lambda rows: [rows[0] | {"text": "Is there a dog?"}, *rows[1:]],
            "has no label for question",
        ),
        (
            "coco/coco_pope_random.json",
            lambda rows: rows[1:],
            r"has no label for question .*: take the label files of POPE's commit e3e39262",
        ),
        (
            "coco/coco_pope_popular.json",
            lambda rows: [rows[0] | {"label": "maybe"}],
            "line 1 lacks question_id, image, text or a label yes or no",
        ),
        (
            "coco/coco_pope_popular.json",
            lambda rows: [*rows, rows[0]],
            "question_id 1 is not a number or repeated",
        ),
        (
            "llava_pope_test.jsonl",
            lambda rows: [{"question_id": 1}, *rows],
            "question 1 lacks question_id, image or text",
        ),
        ("llava_pope_test.jsonl", lambda rows: [*rows, rows[0]], "two labels for question 1: "),
        (
            "llava_pope_test.jsonl",
            lambda rows: [rows[0] | {"image": "../x.jpg"}],
            "does not lie in the folder of images",
        ),
        ("answers.jsonl", lambda rows: rows[1:], "has no answer for question 1"),
        ("answers.jsonl", lambda rows: [*rows, rows[0]], "answers question 1 a second time"),
        (
            "answers.jsonl",
            lambda rows: [rows[0] | {"question_id": 777}],
            "is for question 777, which is not asked",
        ),
        (
            "answers.jsonl",
            lambda rows: [rows[0] | {"text": None}],
            "answer 1 does not name its question, or has no text",
        ),
    ],
)
def test_what_cannot_be_scored_is_named(copy, file, edit, sentence):
    rows = list(read_jsonl(copy / file))
    write_jsonl(copy / file, edit(rows))
    with pytest.raises(UserError, match=sentence):
        POPE.score(files(copy), copy / "answers.jsonl")


def test_no_other_module_knows_a_benchmark_by_name():
    """Quoted names of benchmarks outside toolkit/benchmarks: the embedded world draws them, nothing else
    may."""
    root = Path(pope.__file__).parents[1]
    known = [
        f"{path.relative_to(root)}: {name}"
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in ("benchmarks", "world")
        for name in ("textvqa", "mmbench", "pope")
        if f'"{name}"' in path.read_text()
    ]
    assert known == []
