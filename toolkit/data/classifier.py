"""Classifiers of images in batches: what the filters of watermarks and of unsafe images share, of which
Data-Juicer's own take one image at a time."""

from functools import partial
from typing import Any

import torch

from toolkit.data.batches import Inputs, compute, image_inputs


def load_model(folder: str, device: str) -> tuple[Any, Any]:
    """The classifier in `folder` in float32, and its image processor. OSError without model.safetensors: a
    pickle is not read."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model: Any = AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(folder)


def second_class(paths: list[str], loaded: tuple[Any, Any], rows_at_once: int) -> list[float]:
    """The probability of the second class for each image; `loaded`: of `load_model`."""
    model, processor = loaded

    def probabilities(inputs: Inputs) -> list[float]:
        return model(**inputs).logits.softmax(-1)[:, 1].tolist()

    return compute(paths, partial(image_inputs, processor), probabilities, rows_at_once, model.device)
