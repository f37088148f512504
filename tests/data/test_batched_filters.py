"""The batched filters against Data-Juicer's stock operators, one row at a time; what a statistic may not
depend on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_data import ROOT, columns, run_python

pytestmark = pytest.mark.usefixtures("offline")


def similarity(folder: Path, **arguments: Any) -> Any:
    from toolkit.data.operators.batched_similarity_filter import BatchedSimilarityFilter

    return BatchedSimilarityFilter(hf_clip=str(folder), **arguments)


def matching(folder: Path, **arguments: Any) -> Any:
    from toolkit.data.operators.batched_matching_filter import BatchedMatchingFilter

    return BatchedMatchingFilter(hf_blip=str(folder), **arguments)


def embedding(folder: Path, **arguments: Any) -> Any:
    from toolkit.data.operators.image_embedding_filter import ImageEmbeddingFilter

    return ImageEmbeddingFilter(hf_clip=str(folder), **arguments)


def statistics(operator: Any, rows: list[dict], name: str) -> list:
    return [found[name] for found in operator.compute_stats_batched(columns(rows))["__dj__stats__"]]


def against_stock(operator: Callable, stock: Any, folder: Path, rows: list[dict], name: str) -> None:
    """The statistic is the stock operator's, whatever the batch; a threshold keeps the rows that it
    should."""
    expected = [
        stock.compute_stats_single({**row, "__dj__stats__": {}})["__dj__stats__"][name] for row in rows
    ]
    assert np.std(expected) > 1e-4
    for size in (1, 8):
        found = statistics(operator(folder, rows_at_once=size), rows, name)
        assert [len(value) for value in found] == [1] * len(rows)
        assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5
    limit = float(np.median(expected)) + 2e-5
    limited = operator(folder, min_score=limit)
    kept = [limited.process_single({"__dj__stats__": {name: value}}) for value in found]
    assert kept == [value[0] >= limit for value in found] and 0 < sum(kept) < len(kept)


@pytest.mark.numerics
def test_similarity_is_that_of_the_stock_operator(rows: list[dict], clip: Path) -> None:
    from data_juicer.ops.filter.image_text_similarity_filter import ImageTextSimilarityFilter

    against_stock(
        similarity, ImageTextSimilarityFilter(hf_clip=str(clip)), clip, rows, "image_text_similarity"
    )


@pytest.mark.numerics
def test_matching_is_that_of_the_stock_operator(rows: list[dict], matcher: Path) -> None:
    from data_juicer.ops.filter.image_text_matching_filter import ImageTextMatchingFilter

    # texts of 7, 42 and 200 tokens: padded to 32, padded to 64, cut at 128
    rows = [
        {**row, "text": row["text"].replace(" <|", " red mug" * (0, 20, 100)[number % 3] + " <|")}
        for number, row in enumerate(rows)
    ]
    against_stock(
        matching, ImageTextMatchingFilter(hf_blip=str(matcher)), matcher, rows, "image_text_matching_score"
    )


def test_the_embedding_is_clips(rows: list[dict], clip: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, CLIPModel

    model, processor = CLIPModel.from_pretrained(clip), AutoProcessor.from_pretrained(clip)
    images = [Image.open(row["images"][0]) for row in rows]
    with torch.no_grad():
        expected = model(
            **processor(text=["a"] * len(rows), images=images, return_tensors="pt")
        ).image_embeds.numpy()
    operator = embedding(clip, rows_at_once=8)
    found = statistics(operator, rows, "image_embedding")
    assert np.abs(np.array(found) - expected).max() < 1e-4
    assert all(value == round(value, 4) for row in found for value in row)
    assert operator.process_single({}) and operator._reads == "image"


@pytest.mark.parametrize(
    ("operator", "model", "name"),
    [
        (similarity, "clip", "image_text_similarity"),
        (matching, "matcher", "image_text_matching_score"),
        (embedding, "clip", "image_embedding"),
    ],
)
@pytest.mark.numerics
def test_a_statistic_depends_on_its_row_alone(
    rows: list[dict], operator: Callable, model: str, name: str, request: pytest.FixtureRequest
) -> None:
    operator = operator(request.getfixturevalue(model), rows_at_once=8)
    together = statistics(operator, rows, name)
    assert statistics(operator, rows[::-1], name) == together[::-1]  # to the last bit
    assert [statistics(operator, [row], name)[0] for row in rows[:4]] == together[:4]
    with pytest.raises(ValueError, match="exactly one image"):
        statistics(operator, [{**rows[0], "images": []}], name)


def test_the_folder_is_a_custom_operator_path_of_stock_data_juicer() -> None:
    code = (
        "import toolkit\n"  # makes torchvision importable
        "from data_juicer.config.config import load_custom_operators\n"
        "from data_juicer.ops import OPERATORS\n"
        "load_custom_operators(['toolkit/data/operators'])\n"
        "print(*sorted({'batched_captioning_mapper', 'batched_similarity_filter'} & "
        "OPERATORS.modules.keys()))\n"
    )
    assert run_python("-c", code).stdout.split() == ["batched_captioning_mapper", "batched_similarity_filter"]
    assert (ROOT / "toolkit/data/operators/__init__.py").is_file()
