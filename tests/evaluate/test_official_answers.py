"""The commands on the official tiny model: answers equal to those of the official evaluation scripts, batched
and left-padded."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from PIL import Image
from proved import prove
from safetensors.numpy import load_file

from toolkit.__main__ import main
from toolkit.benchmarks import BENCHMARKS, MMBENCH, TEXTVQA
from toolkit.files import write_json, write_jsonl

pytestmark = pytest.mark.numerics
GOLDEN = Path(__file__).parents[1] / "golden/mgm"
EVAL = json.loads((GOLDEN / "eval.json").read_text(encoding="utf-8"))
MMBENCH_TOKENS = 8  # the golden answers were cut here; those of TextVQA as their "settings" say


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finetuning folder with the golden weights as its checkpoint, and the golden images."""
    from toolkit.mgm.checkpoint import save_checkpoint
    from toolkit.mgm.parity import Golden

    root = tmp_path_factory.mktemp("official")
    golden = Golden(GOLDEN)
    save_checkpoint(golden.model, root / "MGM-2B-tiny/merged", golden.tokenizer)
    prove(root / "MGM-2B-tiny")
    (root / "images").mkdir()
    for name, pixels in load_file(GOLDEN / "raw_images.safetensors").items():
        Image.fromarray(pixels).save(root / f"images/{name.removeprefix('raw_')}.png")
    return root


def same_answers(path, golden):
    """Equal but for the random answer ids of the official scripts."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row | {"answer_id": ""} for row in rows] == [row | {"answer_id": ""} for row in golden]


def test_textvqa_answers(folder, monkeypatch):
    golden = EVAL["vqa_loader"]
    assert "max_new_tokens 16" in golden["settings"]
    monkeypatch.setitem(BENCHMARKS, "textvqa", replace(TEXTVQA, max_new_tokens=16))
    write_jsonl(folder / "Q.jsonl", golden["questions"])
    entries = [
        {"image_id": q["question_id"], "question": q["text"].split("\n")[0], "answers": ["x"] * 10}
        for q in golden["questions"]
    ]
    write_json(folder / "A.json", {"data": entries})
    arguments = [
        "--model",
        folder / "MGM-2B-tiny",
        "--questions",
        folder / "Q.jsonl",
        "--images",
        folder / "images",
    ]
    arguments += ["--annotations", folder / "A.json", "--batch-size", "2", "--output", folder / "textvqa"]
    assert main(["evaluate", "textvqa", *map(str, arguments)]) == 0
    assert same_answers(folder / "textvqa/bm1.jsonl", golden["answers"])


def test_mmbench_answers(folder, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "mmbench", replace(MMBENCH, max_new_tokens=MMBENCH_TOKENS))
    rows = []
    for row in EVAL["mmbench_rows"]:
        name = row["image"].removeprefix("<base64 png of ").removesuffix(">")
        rows.append(row | {"image": base64.b64encode((folder / f"images/{name}.png").read_bytes()).decode()})
    pandas.DataFrame(rows).to_csv(folder / "dev.tsv", sep="\t", index=False)
    arguments = [
        "--model",
        folder / "MGM-2B-tiny",
        "--table",
        folder / "dev.tsv",
        "--batch-size",
        "3",
        "--output",
        folder / "mmbench",
    ]
    arguments += ["--prompt", "Answer with the option's letter from the given choices directly."]
    assert main(["evaluate", "mmbench", *map(str, arguments)]) == 0
    assert same_answers(
        folder / "mmbench/answers/dev/MGM-2B-tiny.jsonl", EVAL["mmbench_all_rounds_False"]["answers"]
    )
