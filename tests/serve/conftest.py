"""A tiny random model, and questions to it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_server import NAME, png

from toolkit.mgm import checkpoint
from toolkit.mgm.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def folder(parts, tmp_path_factory):
    """The checkpoint of a random model, some of whose answers are full of near-ties."""
    folder = tmp_path_factory.mktemp("served") / NAME
    mgm = checkpoint.build(
        parts.llm, parts.clip, parts.convnext, seed=4, image_size_aux=128, model_max_length=256
    )
    with torch.no_grad():  # every eighth token has a twin that differs by rounding
        mgm.lm_head.weight[3::8] = torch.nextafter(mgm.lm_head.weight[2::8], torch.tensor(1.0))
    checkpoint.save_checkpoint(mgm, folder, load_tokenizer(parts.llm, 256))
    return folder


@pytest.fixture(scope="session")
def second(parts, tmp_path_factory):
    """The checkpoint of another random model."""
    folder = tmp_path_factory.mktemp("second") / "other"
    mgm = checkpoint.build(
        parts.llm, parts.clip, parts.convnext, seed=9, image_size_aux=128, model_max_length=256
    )
    checkpoint.save_checkpoint(mgm, folder, load_tokenizer(parts.llm, 256))
    return folder


@pytest.fixture(scope="session")
def asked():
    """64 questions with an image each, every fifth without: .messages, .images, .files (PNG)."""
    random, words = (
        np.random.default_rng(0),
        ["what", "is", "this", "red", "blue", "image", "or", "answer", "of", "a", "dog"],
    )
    messages = [" ".join(random.choice(words, int(random.integers(1, 20)))) for _ in range(64)]
    images = [
        None
        if number % 5 == 4
        else Image.fromarray(random.integers(0, 255, (*random.integers(40, 90, 2), 3), dtype=np.uint8))
        for number in range(64)
    ]
    return SimpleNamespace(messages=messages, images=images, files=[image and png(image) for image in images])
