"""A pretraining and a LoRA finetuning that several modules look at."""

import pytest
from tiny_training import SETUP, finetune, pretrain

from toolkit.train import stages


@pytest.fixture
def short_scale(monkeypatch):
    """The scale of SETUP, for one test."""
    monkeypatch.setattr(stages, "load", stages.load)
    exec(SETUP, {})


@pytest.fixture(scope="session")
def trained(parts, conversations, tmp_path_factory):
    """An uninterrupted pretraining and LoRA finetuning."""
    root = tmp_path_factory.mktemp("trained")
    keep = stages.load
    exec(SETUP, {})
    pretrain(parts, conversations, root / "pretrain")
    finetune(parts, conversations, root / "pretrain" / "mm_projector.bin", root / "finetune")
    stages.load = keep
    return root
