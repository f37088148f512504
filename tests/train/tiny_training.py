"""Trainings of a few steps on tiny random models."""

import json
from pathlib import Path
from typing import Any

from toolkit import scales
from toolkit.__main__ import main
from toolkit.files import sha256, write_json
from toolkit.train import stages
from toolkit.train.inputs import BaseModels


def changed(name: str = "tiny", **stage: int) -> scales.Scale:
    """The tiny scale with other numbers in its stages."""
    scale = scales.load(name)
    finetune = {name: value.model_copy(update=stage) for name, value in scale.finetune.items()}
    pretrain = scale.pretrain.model_copy(update=stage)
    return scale.model_copy(update={"pretrain": pretrain, "finetune": finetune})


SHORT = changed(micro_batch=4, save_steps=2)  # two micro-batches a step, a checkpoint every two


def job(
    parts, conversations, output: Path, seed: int = 1, scale: scales.Scale = SHORT, **more: Any
) -> stages.Job:
    base = BaseModels(parts.llm, parts.clip, parts.convnext)
    paths = conversations.samples, conversations.images
    return stages.Job(*paths, base, scale, seed, output, ["python"], **more)


def pretrain(parts, conversations, output: Path, seed: int = 1, **more: Any) -> None:
    stages.pretrain(job(parts, conversations, output, seed, **more))


def finetune(
    parts, conversations, projector: Path, output: Path, division: str = "open", rank: int = 16, **more: Any
) -> None:
    lora = stages.Lora(rank, 32, 0.1, "full") if division == "open" else None
    stages.finetune(job(parts, conversations, output, **more), projector, lora)


def merge(parts, folder: Path) -> int:
    base = ["--llm", str(parts.llm), "--clip", str(parts.clip), "--convnext", str(parts.convnext)]
    return main(["train", "merge", "--finetuned", str(folder), *base, "--output", str(folder / "merge.json")])


def relist(folder: Path, *names: str, record: str = "run.json") -> None:
    """Let the record state the files as they are now, as a forger would."""
    value = json.loads((folder / record).read_text())
    for name in names:
        value["outputs"][name]["sha256"] = sha256(folder / value["results"].get("checkpoint", ".") / name)
    write_json(folder / record, value)
