"""Answer files: the kit's names and fields, records, continuation after a kill, the image-swap
control."""

import base64
import json
import shutil
import sys
from pathlib import Path

import forks
import pandas
import pytest
from fake_answerer import fake_module
from photos import encoded
from PIL import Image
from proved import prove

from toolkit.__main__ import main
from toolkit.files import sha256, write_json, write_jsonl

ROOT = Path(__file__).parents[2]
KILLED = -9


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_until(arguments, dies_at):
    """The command in a process of its own that is killed (SIGKILL) before the given answer; its exit
    status."""
    environment = {"EVALUATE_DIES_AT": str(dies_at), "PATH": "/usr/bin:/bin"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(sys.modules, "toolkit.mgm.answer", fake_module())
        return forks.run([sys.executable, "-m", "toolkit", *arguments], env=environment).returncode


def test_textvqa_writes_the_kits_answers_and_records(textvqa, tmp_path, answerer, model):
    output = tmp_path / "out"
    assert main([*textvqa, "--output", str(output)]) == 0
    rows = lines(output / "bm1.jsonl")
    questions = lines(tmp_path / "Q.jsonl")
    assert [list(row) for row in rows] == [
        ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    ] * 10
    assert [(row["question_id"], row["prompt"]) for row in rows] == [
        (q["question_id"], q["text"]) for q in questions
    ]
    assert {row["model_id"] for row in rows} == {"MGM-Tiny-Finetune-synth"}
    assert len({row["answer_id"] for row in rows}) == 10
    asked = [q["text"] for q in questions]
    assert answerer.asked == [asked, asked]  # and the control, which asks all when they are few
    score, record = (json.loads((output / name).read_text()) for name in ("score.json", "run.json"))
    assert score["accuracy"] == 0.0
    assert score["model"] == {"name": "MGM-Tiny-Finetune-synth", "merge_sha256": sha256(model / "merge.json")}
    assert score["files"]["answers"] == sha256(output / "bm1.jsonl") == record["outputs"]["answers"]["sha256"]
    assert len(score["scores"]) == score["questions"] == record["results"]["questions"] == 10
    assert record["settings"]["max_new_tokens"] == 128
    assert {path.name for path in output.iterdir()} == {
        "bm1.jsonl",
        "control.jsonl",
        "score.json",
        "run.json",
    }
    control = lines(output / "control.jsonl")
    assert [row["answer_id"] for row in control] == [row["answer_id"] for row in rows]
    # the stand-in looks at the image
    assert all(again["text"] != row["text"] for again, row in zip(control, rows, strict=True))
    assert score["control"] == record["results"]["control"] == {"questions": 10, "same": 0}
    assert record["outputs"]["control"]["sha256"] == sha256(output / "control.jsonl")


def test_mmbench_writes_the_kits_tree(mmbench, tmp_path, answerer):
    output, split = tmp_path / "out", "mmbench_dev_20230712"
    assert main([*mmbench, "--output", str(output)]) == 0
    name = "MGM-Tiny-Finetune-synth"
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert files == {
        f"answers/{split}/{name}.jsonl",
        f"answers_upload/{split}/{name}.xlsx",
        "control.jsonl",
        "score.json",
        "run.json",
    }
    rows = lines(output / f"answers/{split}/{name}.jsonl")
    assert rows[4]["prompt"] == "q1?\nA. x\nB. y"
    assert answerer.asked[0][4] == "q1?\nA. x\nB. y\nLetter only."
    upload = pandas.read_excel(output / f"answers_upload/{split}/{name}.xlsx")
    assert upload["prediction"].tolist() == [row["text"] for row in rows]
    assert upload["index"].tolist() == [row["question_id"] for row in rows]
    score = json.loads((output / "score.json").read_text())
    assert (score["questions"], score["rows"], score["circular"]) == (3, 6, 0.0)
    assert (
        main(["evaluate", "mmbench-score", "--table", str(output / f"answers_upload/{split}/{name}.xlsx")])
        == 0
    )


@pytest.mark.parametrize("torn", [b"", b'{"question_id": "i4", "pro', b'{"question_id": "i4"}\n', b"\0" * 50])
@pytest.mark.parametrize("size", ["3", "4"])  # of the batches after the kill
def test_a_killed_run_ends_with_the_same_bytes(textvqa, tmp_path, answerer, torn, size):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*textvqa, "--output", str(whole)]) == 0
    arguments = [*textvqa, "--output", str(cut)]
    assert run_until(arguments, 5) == KILLED
    partial = cut / "bm1.jsonl.partial"
    rows = lines(partial)
    assert [row["question_id"] for row in rows] == ["i1", "i0", "i0", "i2", "i2"]  # questions 2 1 0, 5 4
    assert not (cut / "bm1.jsonl").exists()
    with partial.open("ab") as handle:
        handle.write(torn)
    arguments[arguments.index("3")] = size
    assert main(arguments) == 0
    every = [row["text"] for row in lines(tmp_path / "Q.jsonl")]
    assert answerer.asked[-2] == [every[3], *every[6:]]  # the last is the control
    for name in ("bm1.jsonl", "control.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert ((cut / "score.json").read_bytes() == (whole / "score.json").read_bytes()) == (size == "3")
    assert not list(cut.glob("*partial*"))


@pytest.mark.parametrize("change", ["model", "questions", "shuffle", "code", "packages", "older toolkit"])
def test_answers_of_another_run_are_not_reused(textvqa, tmp_path, answerer, model, change, monkeypatch):
    arguments = [*textvqa, "--output", str(tmp_path / "out")]
    assert run_until(arguments, 6) == KILLED
    if change == "model":
        prove(model, tensors_changed=1)
    elif change == "questions":
        for name in ("Q.jsonl", "A.json"):
            (tmp_path / name).write_text(
                (tmp_path / name).read_text().replace("very very very word", "very very very words")
            )
    elif change == "shuffle":
        arguments += ["--shuffle-images", "1"]
    elif change == "code":
        monkeypatch.setattr("toolkit.code.digest", lambda *modules: "0" * 64)
    elif change == "packages":
        monkeypatch.setattr("toolkit.evaluate.answer_file.versions", lambda *names: {"torch": "1.0"})
    else:
        label = tmp_path / "out/bm1.jsonl.partial.json"
        belongs = json.loads(label.read_text())
        write_json(label, {key: belongs[key] for key in ("model", "name", "questions", "settings")})
    assert main(arguments) == 0
    assert len(answerer.asked[0]) == 10


def test_a_damaged_note_of_what_answers_belong_to_is_named(textvqa, tmp_path, answerer, capsys):
    arguments = [*textvqa, "--output", str(tmp_path / "out")]
    assert run_until(arguments, 6) == KILLED
    label = tmp_path / "out/bm1.jsonl.partial.json"
    label.write_bytes(label.read_bytes()[:50])
    assert main(arguments) == 1
    assert "delete it and bm1.jsonl.partial" in capsys.readouterr().err
    label.unlink()
    label.with_suffix("").unlink()
    assert main(arguments) == 0


def test_a_kill_before_the_scores_costs_no_second_generation(textvqa, tmp_path, answerer, monkeypatch):
    import toolkit.benchmarks.textvqa

    arguments = [*textvqa, "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(
            toolkit.benchmarks.textvqa, "score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert main(arguments) == 130
    assert main(arguments) == 0
    assert answerer.asked[-1] == []


def test_shuffled_images_are_never_ones_own(textvqa, mmbench, tmp_path, answerer):
    for seed in ("1", "2"):
        assert main([*textvqa, "--output", str(tmp_path / seed), "--shuffle-images", seed]) == 0
    assert main([*textvqa, "--output", str(tmp_path / "true")]) == 0
    seen = {
        name: [int(row["text"].split()[0]) for row in lines(tmp_path / name / "bm1.jsonl")]
        for name in ("1", "2", "true")
    }
    assert seen["true"] == [20 * (number // 2) for number in range(10)]
    assert all(
        shown != own for name in ("1", "2") for shown, own in zip(seen[name], seen["true"], strict=True)
    )
    assert sorted(seen["1"]) == sorted(seen["true"])
    assert seen["1"] != seen["2"]
    assert main([*mmbench, "--output", str(tmp_path / "m"), "--shuffle-images", "1"]) == 0
    shown = [row["text"].split()[0] for row in lines(next((tmp_path / "m/answers").rglob("*.jsonl")))]
    assert shown[:3] == shown[3:] and set(shown) == {"0", "50", "100"}  # rotations stay together
    assert json.loads((tmp_path / "m/score.json").read_text())["settings"]["shuffle_images"] == 1


def break_image(tmp_path):
    path = tmp_path / "images/i3.png"
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "images/i3.png").unlink(), "i3.png does not exist"),
        (break_image, "i3.png cannot be read"),
        (
            lambda folder: (folder / "MGM-Tiny-Finetune-synth/merge.json").unlink(),
            "merge.json does not exist",
        ),
        (lambda folder: shutil.rmtree(folder / "MGM-Tiny-Finetune-synth/merged"), "which does not exist"),
        (
            lambda folder: (folder / "MGM-Tiny-Finetune-synth/merged/config.json").write_text("{}"),
            "config.json is not among the files",
        ),
        (
            lambda folder: (folder / "out").mkdir() or (folder / "out/bm1.jsonl.partial").write_text("mine"),
            "was not written by an evaluation",
        ),
        (
            lambda folder: (
                (folder / "out").mkdir() or (folder / "out/bm1.jsonl.partial.json").write_text("[]")
            ),
            "was not written by an eval",
        ),
        (
            lambda folder: (folder / "A.json").write_text('{"data": []}'),
            "A.json has no entry with image_id 'i0'",
        ),
        (lambda folder: (folder / "Q.jsonl").write_text('{"question_id": 1}\n'), "question 1 lacks"),
    ],
)
def test_problems_are_one_sentence_and_leave_no_answers(textvqa, tmp_path, answerer, capsys, damage, words):
    damage(tmp_path)
    assert main([*textvqa, "--output", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out/bm1.jsonl").exists()


def text_of(content):
    return base64.b64encode(content).decode()


def png(size=(8, 8)):
    return text_of(encoded(Image.new("RGB", size), "PNG"))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("AAAA", "cannot be read (it is none of JPEG"),
        (text_of(EPS), "cannot be read (it is none of JPEG"),
        (png()[:40], "cannot be read"),
        (png() + "AAA", "is not valid base64"),
        ("é" + png(), "is not valid base64"),
        ("!" + png(), "is not valid base64"),
        (png((20_000, 20)), "more than 50 times as long as wide"),
    ],
)
def test_bad_image_in_the_table(mmbench, tmp_path, answerer, capsys, image, words):
    path = tmp_path / "mmbench_dev_20230712.tsv"
    table = pandas.read_table(path, dtype=str)
    table.loc[4, "image"] = image
    table.to_csv(path, sep="\t", index=False)
    assert main([*mmbench, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "image of question 1000001" in said and words in said
    assert answerer.asked == []  # known before the first answer


def test_images_are_decoded_before_the_first_answer(textvqa, tmp_path, answerer, capsys):
    break_image(tmp_path)
    assert main([*textvqa, "--output", str(tmp_path / "out")]) == 1
    assert "question i3:" in capsys.readouterr().err
    assert answerer.asked == []


def test_images_that_are_links_to_elsewhere_are_counted(textvqa, tmp_path, answerer, capsys):
    (tmp_path / "images/i3.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "images/i3.png").symlink_to(tmp_path / "elsewhere.png")
    assert main([*textvqa, "--output", str(tmp_path / "out")]) == 0
    assert f"1 image is a link out of {tmp_path / 'images'}, the first is i3.png" in capsys.readouterr().err


def test_a_single_image_has_no_control(textvqa, tmp_path, answerer, capsys):
    write_jsonl(tmp_path / "Q.jsonl", lines(tmp_path / "Q.jsonl")[:1])
    write_json(tmp_path / "A.json", {"data": json.loads((tmp_path / "A.json").read_text())["data"][:1]})
    output = tmp_path / "out"
    assert main([*textvqa, "--output", str(output)]) == 0
    assert "control.jsonl is left out, it needs two different images" in capsys.readouterr().err
    assert {path.name for path in output.iterdir()} == {"bm1.jsonl", "score.json", "run.json"}
    score = json.loads((output / "score.json").read_text())
    assert score["questions"] == 1 and "control" not in score and "control" not in score["files"]
    answerer.asked.clear()
    assert main([*textvqa, "--output", str(tmp_path / "shuffled"), "--shuffle-images", "1"]) == 1
    assert "at least two different images" in capsys.readouterr().err and answerer.asked == []


def test_what_the_official_rule_drops_is_said_before_the_first_answer(mmbench, tmp_path, answerer, capsys):
    path = tmp_path / "mmbench_dev_20230712.tsv"
    table = pandas.read_table(path, dtype=str)
    table.loc[4, "answer"] = "C"
    table.to_csv(path, sep="\t", index=False)
    assert main([*mmbench, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "the answer of 1 row is none of the options asked; the first has index 1000001" in said
    assert said.index("warning:") < said.index("loading")
    score = json.loads((tmp_path / "out/score.json").read_text())
    assert score["unanswerable"] == {"rows": 1, "first": 1_000_001}
    table.loc[4, "answer"] = None
    table.to_csv(path, sep="\t", index=False)
    answerer.asked.clear()
    assert main([*mmbench, "--output", str(tmp_path / "again")]) == 1
    assert "row 6 has no answer" in capsys.readouterr().err and answerer.asked == []
