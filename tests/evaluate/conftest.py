"""A small evaluation set, a finetuning folder and a stand-in for the model's answerer (the model has its own
tests)."""

import base64
import sys

import pandas
import pytest
from fake_answerer import fake_module
from photos import encoded
from PIL import Image
from proved import prove

from toolkit.files import write_json, write_jsonl


@pytest.fixture
def answerer(monkeypatch):
    """The stand-in's class, in place within this process."""
    module = fake_module()
    monkeypatch.setitem(sys.modules, "toolkit.mgm.answer", module)
    return module.Answerer


@pytest.fixture
def model(tmp_path):
    """A finetuning folder whose merge.json names a checkpoint."""
    folder = tmp_path / "MGM-Tiny-Finetune-synth"
    (folder / "merged").mkdir(parents=True)
    (folder / "merged/model-00001-of-00001.safetensors").write_bytes(b"weights")
    prove(folder)
    return folder


@pytest.fixture
def textvqa(tmp_path, model):
    """The command line of a TextVQA evaluation with 10 questions on 5 images, without --output."""
    (tmp_path / "images").mkdir()
    questions = []
    for number in range(10):
        name = f"i{number // 2}"
        Image.new("RGB", (8, 8), (20 * (number // 2),) * 3).save(tmp_path / f"images/{name}.png")
        text = (
            f"What {'very ' * number}word?\nReference OCR token: a\nAnswer the question using a single "
            "word or phrase."
        )
        questions.append({"question_id": name, "image": f"{name}.png", "text": text, "category": "default"})
    write_jsonl(tmp_path / "Q.jsonl", questions)
    entries = [
        {"image_id": q["question_id"], "question": q["text"].split("\n")[0], "answers": ["20"] * 10}
        for q in questions
    ]
    write_json(tmp_path / "A.json", {"data": entries})
    arguments = [
        "evaluate",
        "textvqa",
        "--model",
        model,
        "--questions",
        tmp_path / "Q.jsonl",
        "--images",
        tmp_path / "images",
    ]
    return [str(part) for part in [*arguments, "--annotations", tmp_path / "A.json", "--batch-size", 3]]


def png(shade):
    """A grey PNG in base64."""
    return base64.b64encode(encoded(Image.new("RGB", (8, 8), (shade,) * 3), "PNG")).decode()


@pytest.fixture
def mmbench(tmp_path, model):
    """The command line of an MMBench evaluation with 3 questions in 2 rotations, without --output."""
    rows = [
        {
            "index": turn * 1_000_000 + number,
            "question": f"q{number}?",
            "hint": None,
            "A": "x",
            "B": "y",
            "C": None,
            "D": None,
            "answer": "A",
        }
        | {
            "category": "c",
            "image": png(50 * number),
            "source": "s",
            "l2-category": "l",
            "comment": None,
            "split": "dev",
        }
        for turn in range(2)
        for number in range(3)
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "mmbench_dev_20230712.tsv", sep="\t", index=False)
    arguments = ["evaluate", "mmbench", "--model", model, "--table", tmp_path / "mmbench_dev_20230712.tsv"]
    return [str(part) for part in [*arguments, "--prompt", "Letter only.", "--batch-size", 4]]
