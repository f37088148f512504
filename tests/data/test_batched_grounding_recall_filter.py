"""The grounding filter: the share of a caption's phrases that the detector finds, whatever stands beside a
row."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from world_rows import ZOO, depends_on_its_row_alone, scene_rows, statistics

pytestmark = pytest.mark.usefixtures("offline")
MODEL, NAME = ZOO / "detector", "phrase_grounding_recall"


def grounding(**arguments):
    from toolkit.data.operators.batched_grounding_recall_filter import BatchedGroundingRecallFilter

    return BatchedGroundingRecallFilter(hf_owlvit=str(MODEL), rows_at_once=8, **arguments)


def test_phrases_name_things() -> None:
    from toolkit.data.operators.batched_grounding_recall_filter import MOST, phrases

    assert phrases("a picture of three red boxes and a sign") == ["three red boxes", "a sign"]
    assert phrases("nova sign and a red mug, a red mug") == ["nova sign", "a red mug"]
    assert phrases("a photo") == phrases("") == []
    assert len(phrases(", ".join(f"a mug{number}" for number in range(40)))) == MOST


def test_the_statistic_is_the_share_of_phrases_with_a_box(tmp_path: Path) -> None:
    from transformers import AutoProcessor, OwlViTForObjectDetection

    _, rows = scene_rows(tmp_path, 10)
    texts = [row["text"] for row in rows]
    rows += [{**row, "text": other} for row, other in zip(rows, texts[1:] + texts[:1], strict=True)]
    # padded to 8
    rows += [
        {
            **rows[0],
            "text": "<__dj__image>\na mug, a box, a ball, a star, a lamp and a red tree <|__dj__eoc|>",
        }
    ]
    rows += [{**rows[0], "text": "<__dj__image>\na photo <|__dj__eoc|>"}]
    model, processor = (
        OwlViTForObjectDetection.from_pretrained(MODEL).eval(),
        AutoProcessor.from_pretrained(MODEL),
    )
    from toolkit.data.operators.batched_grounding_recall_filter import phrases

    found = [value for (value,) in statistics(grounding(confidence=0.5), rows, NAME)]
    for row, recall in zip(rows, found, strict=True):
        asked = phrases(row["text"].removeprefix("<__dj__image>\n").removesuffix(" <|__dj__eoc|>"))
        if not asked:
            assert recall == 1.0
            continue
        inputs = processor(
            text=[asked],
            images=Image.open(row["images"][0]),
            return_tensors="pt",
            padding="max_length",
            max_length=8,
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]  # [cells, phrases]
        assert recall == pytest.approx((logits.sigmoid().amax(0) >= 0.5).float().mean().item())
    # true captions, captions of other images
    assert np.mean(found[:10]) > 0.9 and np.mean(found[10:20]) < 0.5
    depends_on_its_row_alone(grounding(), rows, NAME)
    with pytest.raises(ValueError, match="exactly one image"):
        statistics(grounding(), [{**rows[0], "images": []}], NAME)


def test_a_limit_keeps_rows() -> None:
    operator = grounding(min_recall=0.5)
    assert [operator.process_single({"__dj__stats__": {NAME: [value]}}) for value in (0.4, 0.5, 1.0)] == [
        False,
        True,
        True,
    ]


def test_a_box_over_the_whole_image_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.data.operators import batched_grounding_recall_filter as module

    _, rows = scene_rows(tmp_path, 3)
    assert [value for (value,) in statistics(grounding(), rows, NAME)] == [1.0] * 3
    monkeypatch.setattr(module, "LARGE", 0.0)
    assert [value for (value,) in statistics(grounding(), rows, NAME)] == [0.0] * 3
