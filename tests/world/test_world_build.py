"""The three parts in the contest's file formats: same bytes for one seed, defects in their shares, prompts to
the letter."""

import base64
import csv
import io
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import forks
import numpy as np
import psutil
import pytest
from PIL import Image

from toolkit import assets
from toolkit.benchmarks import MMBENCH, MME, POPE, mme, pope
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl
from toolkit.world import build as module
from toolkit.world import questions, words
from toolkit.world.build import MMBENCH_COLUMNS, build, build_evaluation
from toolkit.world.captions import DEFECTS
from toolkit.world.scene import Scene, sample_scene, split_of


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("world")
    for part, rows in (("seed", 150), ("instruction", 60), ("evaluation", 25)):
        build(part, root / part, 5, rows)
    return {part: root / part for part in ("seed", "instruction", "evaluation")}


def test_same_seed_same_bytes(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # one process draws what several drew
    for part, rows in (("seed", 150), ("instruction", 60), ("evaluation", 25)):
        build(part, tmp_path / part, 5, rows)
        assert tree(tmp_path / part) == tree(parts[part])
    build("instruction", tmp_path / "other", 6, 60)
    assert tree(tmp_path / "other") != tree(parts["instruction"])


def test_images_of_another_size(parts, tmp_path):
    build("instruction", tmp_path / "large", 5, 60, side=200)
    names = {name for name in tree(parts["instruction"]) if name.endswith(".jpg")}
    assert {name for name in tree(tmp_path / "large") if name.endswith(".jpg")} == names
    for name in names:
        with Image.open(tmp_path / "large" / name) as image:
            assert image.size == (200, 200)
    listed = "mgm_instruction_stage_1.json"
    assert read_json(tmp_path / "large" / listed) == read_json(parts["instruction"] / listed)


def test_what_is_drawn_is_counted_before(parts):
    counts = module.drawn("evaluation", 25)
    root = parts["evaluation"]
    assert counts["rows"] == 25 + 20 + 5 + 5
    assert counts["textvqa"] == len(list(read_jsonl(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl")))
    assert counts["pope"] == len(list(read_jsonl(root / "pope/llava_pope_test.jsonl")))
    assert counts["mme"] == len(list(read_jsonl(root / "mme/llava_mme.jsonl")))
    table = (root / "mmbench/mmbench_dev_20230712.tsv").read_text().splitlines()
    assert counts["mmbench"] == len(table) - 1
    assert module.drawn("seed", 150) == {"rows": 150} and module.drawn("seed") == {"rows": 6000}


def test_development_questions_share_no_content_with_other_parts(tmp_path, monkeypatch):
    """Contents are objects with their sign; and no picture is another part's, as it is registered."""
    contents: dict[str, set[Scene]] = {}
    pictures: dict[str, set[bytes]] = {}

    def noted(rng, split):
        contents[part].add(scene := sample_scene(rng, split))
        return scene

    monkeypatch.setattr(module, "sample_scene", noted)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    for part, rows in (("seed", 120), ("instruction", 120), ("evaluation", 60), ("development", 60)):
        contents[part] = set()
        build(part, tmp_path / part, assets.entry(f"world-{part}").seed, rows)
        pictures[part] = set(tree(tmp_path / part).values())
    assert {split_of(scene) for scene in contents["development"]} == {"tuning"}
    assert len(contents["development"]) > 90
    assert {name.partition("/")[0] for name in tree(tmp_path / "development")} == {"textvqa", "mmbench"}
    for part in ("seed", "instruction", "evaluation"):
        assert not contents["development"] & contents[part]
        assert not pictures["development"] & pictures[part]
    counts = module.drawn("development", 60)
    lines = (tmp_path / "development/mmbench/mmbench_dev_20230712.tsv").read_text().splitlines()
    assert counts == {"rows": 108, "textvqa": 60, "mmbench": len(lines) - 1}


def test_seed_format(parts):
    root = parts["seed"]
    rows, originals, truth = (
        list(read_jsonl(root / "mgm_pretrain_stage_1.jsonl")),
        read_json(root / "stage_1.json"),
        list(read_jsonl(root / "truth/labels.jsonl")),
    )
    assert len(rows) == len(originals) == len(truth) == 150
    for row, original, label in zip(rows, originals, truth, strict=True):
        assert list(row) == ["id", "text", "images"] and row["id"] == original["id"] == label["id"]
        assert re.fullmatch(r"<__dj__image>\n.+ <\|__dj__eoc\|>", row["text"])
        assert row["images"] == [f"images/{row['id'][:5]}/{row['id']}.jpg"] == [original["image"]]
        human, gpt = original["conversations"]
        assert human["from"] == "human" and human["value"].removeprefix("<image>\n") in words.CAPTION_PROMPTS
        assert gpt["from"] == "gpt" and row["text"] == f"<__dj__image>\n{gpt['value']} <|__dj__eoc|>"
        with Image.open(root / row["images"][0]) as image:
            assert image.format == "JPEG" and (image.size == (128, 128) or label["defect"] == "tiny")
        if label["defect"] in ("clean", "duplicate", "blurred", "tiny"):
            assert gpt["value"] == label["caption"]
        if label["defect"] == "duplicate":
            of = next(other for other in truth if other["id"] == label["of"])
            same = (root / row["images"][0]).read_bytes() == (
                root / f"images/00000/{label['of']}.jpg"
            ).read_bytes()
            assert of["defect"] == "clean" and of["id"] < label["id"] and same == label["exact"]
    assert len(set(words.CAPTION_PROMPTS)) == 11


def test_defects_in_their_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "save", lambda *_: None)  # labels without pictures
    build("seed", tmp_path, 1)
    labels = [row["defect"] for row in read_jsonl(tmp_path / "truth/labels.jsonl")]
    assert len(labels) == 6000
    for defect, share in DEFECTS.items():
        assert abs(labels.count(defect) / len(labels) - share) < 0.02
    rows = zip(
        read_jsonl(tmp_path / "mgm_pretrain_stage_1.jsonl"),
        read_jsonl(tmp_path / "truth/labels.jsonl"),
        strict=True,
    )
    wrong = [row for row, label in rows if label["defect"] == "swapped" and label["caption"] in row["text"]]
    assert len(wrong) < 0.02 * len(labels)  # a swapped caption fits by chance only


def shape(prompt: str) -> str:
    lines = prompt.split("\n")
    if (
        len(lines) == 3
        and lines[1].startswith("Reference OCR token: ")
        and lines[2] == "Answer the question using a single word or phrase."
    ):
        return "sign"
    if len(lines) == 2 and lines[1] == "Answer the question using a single word or phrase.":
        return "open"
    assert lines[-1] == "Answer with the option's letter from the given choices directly."
    assert [line[:3] for line in lines[-5:-1]] == ["A. ", "B. ", "C. ", "D. "] and len(lines) in (6, 7)
    return "choice"


def test_instruction_prompts(parts, tmp_path, monkeypatch):
    rows = read_json(parts["instruction"] / "mgm_instruction_stage_1.json")
    assert all((parts["instruction"] / row["image"]).is_file() for row in rows)
    monkeypatch.setattr(module, "save", lambda *_: None)
    build("instruction", tmp_path, 1, 2000)
    rows = read_json(tmp_path / "mgm_instruction_stage_1.json")
    shapes, true_words = [], []
    for row in rows:
        human, gpt = row["conversations"]
        assert human["value"].startswith("<image>\n") and human["value"].count("<image>") == 1
        prompt = human["value"].removeprefix("<image>\n")
        shapes.append(shape(prompt))
        if shapes[-1] == "choice":
            assert gpt["value"] in ("A", "B", "C", "D")
        elif shapes[-1] == "sign":
            true_words.append(gpt["value"] in prompt.split("\n")[1])
    for name, share in (("sign", 0.35), ("open", 0.20), ("choice", 0.45)):
        assert abs(shapes.count(name) / len(shapes) - share) < 0.04
    assert sum(true_words) / len(true_words) < 0.12  # OCR tokens tell nothing: 2 of 40 words on average


def test_textvqa_format(parts):
    root = parts["evaluation"] / "textvqa"
    asked = list(read_jsonl(root / "llava_textvqa_val_v051_ocr.jsonl"))
    annotations = {
        (row["image_id"], row["question"].lower()): row
        for row in read_json(root / "TextVQA_0.5.1_val.json")["data"]
    }
    assert len(asked) == len(annotations) == 25
    for row in asked:
        assert list(row) == ["question_id", "image", "text", "category"] and shape(row["text"]) == "sign"
        assert (root / "train_images" / row["image"]).is_file() and row["image"] == row[
            "question_id"
        ] + ".jpg"
        answers = annotations[row["question_id"], row["text"].split("\n")[0].lower()]["answers"]
        assert len(answers) == 10 and max(answers.count(word) for word in words.SIGNS) >= 8


def test_mmbench_format(parts):
    csv.field_size_limit(10**7)
    with (parts["evaluation"] / "mmbench/mmbench_dev_20230712.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert tuple(rows[0]) == tuple(MMBENCH_COLUMNS) and len(rows) == 4 * 20
    groups: dict[int, list[dict]] = {}
    for row in rows:
        groups.setdefault(int(row["index"]) % 1_000_000, []).append(row)
        assert Image.open(io.BytesIO(base64.b64decode(row["image"]))).size == (128, 128)
    for group in groups.values():
        assert sorted(int(row["index"]) // 1_000_000 for row in group) == [0, 1, 2, 3]
        assert len({row[row["answer"]] for row in group}) == 1  # the same option is right in every rotation
        assert sorted(row["answer"] for row in group) == ["A", "B", "C", "D"]
        assert (
            len(
                {
                    (row["question"], row["image"], row["category"], row["l2-category"], row["split"])
                    for row in group
                }
            )
            == 1
        )


def test_command_line(tmp_path, capsys):
    from toolkit.__main__ import main

    command = ["world", "build", "--part", "seed", "--seed", "3"]
    assert main([*command, "--rows", "5", "--output", str(tmp_path / "seed")]) == 0
    assert len(list(read_jsonl(tmp_path / "seed/mgm_pretrain_stage_1.jsonl"))) == 5
    assert main([*command, "--rows", "3", "--output", str(tmp_path / "seed")]) == 1
    assert "seed is not empty: choose another folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--rows", "0", "--output", str(tmp_path / "none")])
    assert "--rows" in capsys.readouterr().err
    with pytest.raises(UserError):
        build("instruction", tmp_path / "none", 3, -1)
    assert json.loads((tmp_path / "seed/stage_1.json").read_text())


def test_mmbench_is_asked_as_the_benchmark_asks():
    """The world draws questions without the benchmark's code, so that an edit there draws nothing anew."""
    assert MMBENCH.instruction == words.LETTER


def test_pope_has_a_label_for_each_question_and_says_what_is_there(tmp_path):
    build_evaluation(tmp_path, seed=1, rows=30)
    files = {name: tmp_path / path for name, path in assets.entry("world-evaluation").files.items()}
    labels = POPE.labels(files)
    assert len(labels) == 6 * 6 and [label.right for label in labels] == ["yes", "no"] * 18
    assert {label.part for label in labels} == set(pope.SAMPLINGS)
    assert all((files["pope_images"] / question.image).is_file() for question in POPE.questions(files))


def test_mme_has_a_yes_and_a_no_for_each_image(tmp_path):
    build_evaluation(tmp_path, seed=1, rows=150)
    files = {name: tmp_path / path for name, path in assets.entry("world-evaluation").files.items()}
    labels = MME.labels(files)
    assert len(MME.questions(files)) == len(labels) == 5 * 3 * 2
    assert [label.right for label in labels] == ["yes", "no"] * 15
    assert {label.part for label in labels} == set(module.TASKS) <= set(mme.PERCEPTION)
    assert all((files["mme_images"] / question.image).is_file() for question in MME.questions(files))


def test_what_mme_claims_of_a_scene():
    pair = Scene((("red", "mug"), ("orange", "box")), "above", 1, "nova")
    group = Scene((("red", "mug"),), None, 3, "nova")
    rng = np.random.default_rng(1)
    assert questions.claims("position", pair, rng) == (
        "Is the red mug above the orange box?",
        "Is the red mug below the orange box?",
    )
    assert questions.claims("position", group, rng) is questions.claims("count", pair, rng) is None
    yes, no = questions.claims("count", group, rng)
    assert yes == "Are there three mugs in the image?" and no != yes
    yes, no = questions.claims("existence", pair, rng)
    assert yes == "Is there a mug in the image?" and not {"mug", "box"} & set(no.split())
    yes, no = questions.claims("color", group, rng)
    assert yes == "Is there a red mug in the image?" and no != yes
    assert questions.claims("OCR", group, rng)[0] == 'Is the word on the sign "nova"?'


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_draws_ends_with_the_command(number, tmp_path):
    command = [sys.executable, "-m", "toolkit", "world", "build", "--part", "seed", "--seed", "1"]
    building = forks.Fork([*command, "--rows", "20000", "--output", tmp_path / "world"])
    process = psutil.Process(building.pid)
    while not list(tmp_path.rglob("*.jpg")):
        assert building.poll() is None
        time.sleep(0.02)
    drawing = process.children(recursive=True)
    os.kill(building.pid, number)
    building.wait()
    assert drawing
    _, alive = psutil.wait_procs(drawing, timeout=30)
    assert not alive
