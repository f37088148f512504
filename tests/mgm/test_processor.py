"""Images to tensors: the same bits one by one and in batches, here and on a GPU, and Pillow's own resize."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import normalise, one_thread, pixels, preprocess, resize_and_crop, tensors

pytestmark = pytest.mark.numerics
GOLDEN = Path(__file__).parents[1] / "golden" / "mgm"
SIZES = [(512, 384), (384, 512), (300, 300), (597, 336), (336, 1000), (1151, 768), (768, 1024)]


def config(**changes) -> MGMConfig:
    return MGMConfig(
        language=None, clip={"image_size": 56}, depths=(1,), dims=(8,), image_size_aux=128
    ).with_(**changes)


def picture(size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(size)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def official_resize(image: Image.Image, side: int) -> np.ndarray:
    """Resize the whole image, then crop, as the official processor does."""
    width, height = image.size
    other = int(side * max(width, height) / min(width, height))
    resized = image.resize((side, other) if width <= height else (other, side), Image.Resampling.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    return np.asarray(resized)[top : top + side, left : left + side]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [128, 768])
def test_cropping_between_the_resize_s_passes_changes_no_bit(size, side):
    assert np.array_equal(resize_and_crop(picture(size), side), official_resize(picture(size), side))


def test_golden_pixels_are_reproduced():
    images = {
        name.removeprefix("raw_"): Image.fromarray(raw.numpy())
        for name, raw in load_file(GOLDEN / "raw_images.safetensors").items()
    }
    golden = load_file(GOLDEN / "image_preprocess.safetensors")
    side = next(tensor.shape[-1] for name, tensor in golden.items() if name.endswith("images_aux_u8"))
    clip = {
        "image_size": next(tensor.shape[-1] for name, tensor in golden.items() if name.endswith(".images"))
    }
    for mode in ("pad", "square"):
        settings = config(image_aspect_ratio=mode, image_size_aux=side, clip=clip)
        names = sorted(name for name in images if f"{mode}.{name}.images" in golden)
        assert names
        stacked = np.stack([pixels(images[name], settings) for name in names])
        low, high = tensors(torch.from_numpy(stacked), settings)
        for number, name in enumerate(names):
            expected = golden[f"{mode}.{name}.images_aux_u8"].reshape(3, side, side).permute(1, 2, 0).numpy()
            assert np.array_equal(stacked[number], expected)
            assert torch.equal(high[number], normalise(expected))
            # the official computation on this processor to the bit; on that of the golden tensors up to
            # rounding
            with one_thread():
                official = F.interpolate(
                    high[number : number + 1], size=low.shape[-2:], mode="bilinear", align_corners=False
                )[0]
            assert torch.equal(low[number], official)
            torch.testing.assert_close(
                low[number], golden[f"{mode}.{name}.images"].reshape(official.shape), rtol=0, atol=2e-6
            )


@pytest.mark.parametrize("grid", [{}, {"image_grid": 2}, {"image_grid": 2, "image_global": True}])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_gives_the_bits_of_its_images(grid, threads):
    settings = config(**grid)
    images = [picture(size) for size in SIZES]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        low, high = tensors(
            torch.from_numpy(np.stack([pixels(image, settings) for image in images])), settings
        )
    finally:
        torch.set_num_threads(before)
    for number, image in enumerate(images):
        one_low, one_high = preprocess(image, settings)
        assert torch.equal(low[number], one_low) and torch.equal(high[number], one_high)
    views = settings.image_grid**2 + settings.image_global
    assert low.shape == (len(images), *([views] if grid else []), 3, 56, 56)


def test_a_grid_s_crops_are_the_parts_of_the_image_and_the_whole_comes_last():
    image = picture((300, 200))
    whole, _ = preprocess(image, config(clip={"image_size": 112}))
    low, _ = preprocess(image, config(image_grid=2, image_global=True))
    parts = [whole[:, top : top + 56, left : left + 56] for top in (0, 56) for left in (0, 56)]
    assert all(torch.equal(crop, part) for crop, part in zip(low[:4], parts, strict=True))
    assert torch.equal(
        low[4], torch.nn.functional.interpolate(whole[None], size=(56, 56), mode="bilinear")[0]
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares with a GPU")
@pytest.mark.parametrize("grid", [{}, {"image_grid": 2, "image_global": True}])
def test_a_gpu_gives_the_same_bits_and_low_resolution_up_to_rounding(grid):
    settings = config(image_size_aux=768, clip={"image_size": 336}, **grid)
    stacked = torch.from_numpy(np.stack([pixels(picture(size), settings) for size in SIZES]))
    low, high = tensors(stacked, settings)
    low_there, high_there = tensors(stacked.cuda(), settings)
    assert torch.equal(high_there.cpu(), high)
    assert high_there.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(low_there.cpu(), low, rtol=0, atol=2e-6)
