"""The aesthetics filter: the predictor's score of each image, whatever stands beside it."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from world_rows import ZOO, changed, depends_on_its_row_alone, scene_rows, statistics

from toolkit.aesthetics import AestheticsPredictor

pytestmark = pytest.mark.usefixtures("offline")
MODEL, NAME = ZOO / "sharpness", "image_aesthetics_scores"


def scorer(**arguments):
    from toolkit.data.operators.batched_aesthetics_filter import BatchedAestheticsFilter

    return BatchedAestheticsFilter(hf_scorer_model=str(MODEL), rows_at_once=8, **arguments)


def test_the_statistic_is_the_predictors_score(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    _, rows = scene_rows(tmp_path, 11)
    model, processor = (
        AestheticsPredictor.from_pretrained(MODEL).eval(),
        AutoImageProcessor.from_pretrained(MODEL),
    )
    found = statistics(scorer(), rows, NAME)
    for row, (score,) in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = (
                model(**processor(images=Image.open(row["images"][0]), return_tensors="pt")).logits.item()
                / 10
            )
        assert score == pytest.approx(expected, abs=1e-5)
    depends_on_its_row_alone(scorer(), rows, NAME)
    with pytest.raises(ValueError, match="exactly one image"):
        statistics(scorer(), [{**rows[0], "images": []}], NAME)


def test_a_limit_tells_sharp_from_blurred(tmp_path: Path) -> None:
    _, rows = scene_rows(tmp_path, 12)
    blurred = changed(rows, lambda image: image.filter(ImageFilter.GaussianBlur(9)))
    operator = scorer(min_score=0.5)
    kept = [
        operator.process_single({"__dj__stats__": {NAME: value}})
        for value in statistics(operator, rows + blurred, NAME)
    ]
    assert kept == [True] * 12 + [False] * 12
    assert operator._reads == "image"


def test_the_weights_have_the_published_names() -> None:
    names = {
        name
        for name in AestheticsPredictor.from_pretrained(MODEL).state_dict()
        if not name.startswith("vision_model.")
    }
    layers = {f"layers.{number}.{part}" for number in (0, 2, 4, 6, 7) for part in ("weight", "bias")}
    assert names == {"visual_projection.weight"} | layers
