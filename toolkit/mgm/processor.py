"""Images to tensors, bit-equal to the official path: numpy and PIL bicubic at high resolution, plain bilinear down to CLIP's side."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toolkit.mgm.config import MGMConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, per channel
STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE = 0.00392156862745098


def expand_to_square(image: Image.Image) -> Image.Image:
    """Centre the image on a square canvas of the mean colour."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * value) for value in MEAN))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def resize_and_crop(image: Image.Image, side: int) -> np.ndarray:
    """Bicubic resize of the shorter edge to `side`, then centre crop: uint8 [side, side, 3]."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    other = int(side * long / short)
    image = image.resize((side, other) if width <= height else (other, side), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Normalised float32 of every uint8 value, per channel [3, 256]: float64 rescale, float32 from there on."""
    values = (np.arange(256).astype(np.float64) * RESCALE).astype(np.float32)
    return (values[None] - np.array(MEAN, np.float32)[:, None]) / np.array(STD, np.float32)[:, None]


def normalise(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W]."""
    return torch.from_numpy(np.stack([_table()[channel][pixels[..., channel]] for channel in range(3)]))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's bilinear kernel rounds differently when several threads share an image; data loader workers, official and ours, have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def low_resolution(images_aux: Tensor, config: MGMConfig) -> Tensor:
    """[3, S, S] -> CLIP's input [3, s, s]; with a grid g the crops [g*g, 3, s, s], row-major, and the whole image last if asked for."""
    side, grid = config.clip["image_size"], config.image_grid
    low = F.interpolate(images_aux[None], size=(side * grid, side * grid), mode="bilinear", align_corners=False)
    if grid == 1:
        return low[0]
    crops = low[0].reshape(3, grid, side, grid, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    if not config.image_global:
        return crops
    return torch.cat([crops, F.interpolate(low, size=(side, side), mode="bilinear", align_corners=False)])


def preprocess(image: Image.Image, config: MGMConfig) -> tuple[Tensor, Tensor]:
    """PIL image -> (images for CLIP, images_aux [3, S, S] for ConvNeXt), float32."""
    image = image.convert("RGB")
    if config.image_aspect_ratio == "pad":
        image = expand_to_square(image)
    images_aux = normalise(resize_and_crop(image, config.image_size_aux))
    return low_resolution(images_aux, config), images_aux


def blank(config: MGMConfig) -> tuple[Tensor, Tensor]:
    """The dummy images of a text-only sample: zeros after normalisation."""
    side, views = config.clip["image_size"], config.image_grid**2 + config.image_global
    shape = (3, side, side) if config.image_grid == 1 else (views, 3, side, side)
    return torch.zeros(shape), torch.zeros(3, config.image_size_aux, config.image_size_aux)
