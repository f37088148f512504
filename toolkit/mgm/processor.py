"""Images to tensors, bit-equal to the official path: numpy and PIL bicubic at high resolution, plain bilinear
down to CLIP's side."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toolkit.images import PROPORTION, rgb
from toolkit.mgm.config import MGMConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, per channel
STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE = 0.00392156862745098
# pixels of an edge that is padded to a square: the official code makes squares of any size, 1.2 GB for 20,000
# pixels
LONGEST = 8192


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
    """Bicubic resize of the shorter edge to `side`, then centre crop: uint8 [side, side, 3].

    Of a longer strip than `toolkit.images` reads, the ends are cropped first, so that memory stays bounded.
    """
    width, height = image.size
    if max(width, height) > PROPORTION * min(width, height):
        kept_width, kept_height = (min(edge, PROPORTION * min(width, height)) for edge in (width, height))
        left, top = (width - kept_width) // 2, (height - kept_height) // 2
        image = image.crop((left, top, left + kept_width, top + kept_height))
        width, height = image.size
    other = int(side * max(width, height) / min(width, height))
    if width > height:
        # Pillow resizes columns before rows and rounds between the two, so columns that are cropped can go
        # before the rows are made
        image = image.resize((other, height), Image.Resampling.BICUBIC)
        left = (other - side) // 2
        return np.array(
            image.crop((left, 0, left + side, height)).resize((side, side), Image.Resampling.BICUBIC)
        )
    top = (other - side) // 2
    return np.array(image.resize((side, other), Image.Resampling.BICUBIC).crop((0, top, side, top + side)))


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Normalised float32 of every uint8 value, per channel [3, 256]: float64 rescale, float32 from there
    on."""
    values = (np.arange(256).astype(np.float64) * RESCALE).astype(np.float32)
    return (values[None] - np.array(MEAN, np.float32)[:, None]) / np.array(STD, np.float32)[:, None]


def normalise(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W]."""
    return torch.from_numpy(np.stack([_table()[channel][pixels[..., channel]] for channel in range(3)]))


@lru_cache(maxsize=1)
def _table_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """The table as one row [768] on a device, and where each channel's part of it begins [3]."""
    return torch.from_numpy(_table()).flatten().to(device), torch.tensor(
        [0, 256, 512], dtype=torch.int32, device=device
    )


def _normalise_there(pixels: Tensor) -> Tensor:
    """As `normalise`, for a batch on a GPU: uint8 [B, H, W, 3] -> float32 [B, 3, H, W], channels last in
    memory."""
    table, offsets = _table_on(pixels.device)
    return table.index_select(0, (pixels + offsets).flatten()).view(pixels.shape).permute(0, 3, 1, 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's bilinear kernel rounds differently when several threads share an image; data loader workers,
    official and ours, have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def low_resolution(images_aux: Tensor, config: MGMConfig) -> Tensor:
    """[B, 3, S, S] -> CLIP's input [B, 3, s, s]; with a grid g the crops [B, g*g, 3, s, s], row-major, and
    the whole image if asked for."""
    side, grid = config.clip["image_size"], config.image_grid
    low = F.interpolate(images_aux, size=(side * grid, side * grid), mode="bilinear", align_corners=False)
    if grid == 1:
        return low
    crops = low.reshape(-1, 3, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    if not config.image_global:
        return crops
    return torch.cat(
        [crops, F.interpolate(low, size=(side, side), mode="bilinear", align_corners=False)[:, None]], dim=1
    )


def pixels(image: Image.Image, config: MGMConfig) -> np.ndarray:
    """PIL image -> uint8 [S, S, 3], all that is done before normalisation."""
    image = rgb(image)
    if config.image_aspect_ratio == "pad":
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC)
        image = expand_to_square(image)
    return resize_and_crop(image, config.image_size_aux)


def tensors(pixels: Tensor, config: MGMConfig) -> tuple[Tensor, Tensor]:
    """uint8 [B, S, S, 3] -> (images for CLIP as `low_resolution` gives them, images_aux [B, 3, S, S] for
    ConvNeXt), float32, same device.

    On the CPU both are bit-equal to what the official code gives on the same processor, whatever the batch.
    On a GPU images_aux is too, channels last in memory, and images differ by the rounding of float32.
    """
    on_cpu = pixels.device.type == "cpu"
    images_aux = (
        torch.stack([normalise(image) for image in pixels.numpy()]) if on_cpu else _normalise_there(pixels)
    )
    return low_resolution(images_aux, config), images_aux


def preprocess(image: Image.Image, config: MGMConfig) -> tuple[Tensor, Tensor]:
    """PIL image -> (images for CLIP, images_aux [3, S, S] for ConvNeXt), float32."""
    images, images_aux = tensors(torch.from_numpy(pixels(image, config))[None], config)
    return images[0], images_aux[0]


def views(config: MGMConfig) -> int:
    """How often CLIP sees an image: once, or its crops and, if asked for, the whole."""
    return config.image_grid**2 + config.image_global


def blank(config: MGMConfig) -> tuple[Tensor, Tensor]:
    """The dummy images of a text-only sample: zeros after normalisation."""
    side = config.clip["image_size"]
    shape = (3, side, side) if config.image_grid == 1 else (views(config), 3, side, side)
    return torch.zeros(shape), torch.zeros(3, config.image_size_aux, config.image_size_aux)
