"""A pretraining and a LoRA finetuning that several modules look at."""

import pytest
from tiny_training import finetune, pretrain


@pytest.fixture(scope="session")
def trained(parts, conversations, tmp_path_factory):
    """An uninterrupted pretraining and LoRA finetuning."""
    root = tmp_path_factory.mktemp("trained")
    pretrain(parts, conversations, root / "pretrain")
    finetune(parts, conversations, root / "pretrain" / "mm_projector.bin", root / "finetune")
    return root
