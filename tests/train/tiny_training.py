"""Trainings of a few steps on tiny random models."""

import json
from pathlib import Path

from toolkit.__main__ import main
from toolkit.files import sha256, write_json
from toolkit.train import stages

# the tiny scale with checkpoints every two steps and two micro-batches a step
SETUP = """
import sys
from toolkit import scales
from toolkit.train import stages
stage = {"micro_batch": 4, "save_steps": 2}
scale = scales.load("tiny")
finetune = {name: value.model_copy(update=stage) for name, value in scale.finetune.items()}
scale = scale.model_copy(update={"pretrain": scale.pretrain.model_copy(update=stage), "finetune": finetune})
stages.load = lambda name: scale
"""


def pretrain(parts, conversations, output: Path, seed: int = 1) -> None:
    stages.pretrain(
        conversations.samples,
        conversations.images,
        parts.llm,
        parts.clip,
        parts.convnext,
        "tiny",
        seed,
        output,
        ["python"],
    )


def finetune(
    parts, conversations, projector: Path, output: Path, division: str = "open", rank: int = 16
) -> None:
    lora = {"rank": rank, "alpha": 32, "dropout": 0.1, "base": "full"}
    base = (parts.llm, parts.clip, parts.convnext)
    stages.finetune(
        conversations.samples,
        conversations.images,
        projector,
        *base,
        "tiny",
        division,
        lora,
        1,
        output,
        ["python"],
    )


def merge(parts, folder: Path) -> int:
    base = ["--llm", str(parts.llm), "--clip", str(parts.clip), "--convnext", str(parts.convnext)]
    return main(["train", "merge", "--finetuned", str(folder), *base, "--output", str(folder / "merge.json")])


def relist(folder: Path, *names: str, record: str = "run.json") -> None:
    """Let the record state the files as they are now, as a forger would."""
    value = json.loads((folder / record).read_text())
    for name in names:
        value["outputs"][name]["sha256"] = sha256(folder / value["results"].get("checkpoint", ".") / name)
    write_json(folder / record, value)
