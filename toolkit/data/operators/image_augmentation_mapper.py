"""Other views of an image, under the same caption: colours, crop and rotation, mirror image, another
background.

Only what leaves the caption true is done. Colours change in brightness, contrast and saturation, never in
hue. An image is mirrored only on request (`flip`), and not if the caption has a side or speaks of text. A
background is painted only if it is plain and pale, as behind a product on a page, and the caption does not
speak of it; it stays pale.

    - image_augmentation_mapper:
        copies: 1

New images are JPEG files named by the SHA-256 of their bytes; what is drawn follows from the image's bytes,
the caption and `seed`.
"""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from data_juicer.ops.base_op import OPERATORS, Mapper
from PIL import Image

from toolkit.data.augment import generator, with_generated
from toolkit.data.phrases import readings
from toolkit.data.samples import HASH, caption_of
from toolkit.files import atomic
from toolkit.images import load

NAME = "image_augmentation_mapper"
QUALITY = 90  # of the JPEG files
SIDED = re.compile(
    r"\b(left|right|clockwise|signs?|text|words?|letters?|reads?|says?|written|logo|label|number|map|clock|poster|cover|book|brand)\b",
    re.I,
)
SCENERY = re.compile(
    r"\b(back\s?ground|backdrop|wall|sky|snowy?|floor|table|surface|paper|fog|foggy|clouds?|white|beige|cream)\b",
    re.I,
)
# sRGB
PALE = ((236, 232, 224), (218, 232, 240), (226, 240, 220), (244, 234, 214), (230, 224, 240), (250, 250, 250))
LIGHT = 200  # every channel of a background is at least this
NEAR = 24  # a pixel belongs to the background if no channel is further from its colour
COVERS = 0.2  # share of the image that is background at least
BORDER = 0.6  # share of the image's border that is background at least


@OPERATORS.register_module(NAME)
class ImageAugmentationMapper(Mapper):
    """Add `copies` rows with another view of the image after each row (one image each).

    `colour`: most by which brightness, contrast and saturation change, 0.2 for 80 to 120 %. `crop`: most of
    each side that is cut off. `rotation`: degrees at most. `flip`: mirror half of the images that allow it;
    off, for an image may hold text that its caption does not mention. `background`: share of the plain pale
    backgrounds that get another colour. 0 turns a kind off. The size in pixels stays. `keep_original_sample`:
    keep the row as it was beside the new rows. The toolkit sets `save_dir`.
    """

    _batched_op = True

    def __init__(
        self,
        copies: int = 1,
        colour: float = 0.2,
        crop: float = 0.05,
        rotation: float = 3.0,
        flip: bool = False,
        background: float = 0.5,
        seed: int = 0,
        keep_original_sample: bool = True,
        save_dir: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, value, most in (
            ("colour", colour, 0.9),
            ("crop", crop, 0.5),
            ("rotation", rotation, 45),
            ("background", background, 1),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}, a number from 0 to {most} is expected")
        if copies < 1:
            raise ValueError(f"copies is {copies}, it must be at least 1")
        self.copies, self.colour, self.crop, self.rotation, self.flip, self.background = (
            copies,
            colour,
            crop,
            rotation,
            flip,
            background,
        )
        self.seed, self.keep_original_sample, self.save_dir = seed, keep_original_sample, save_dir

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add the rows and write their images. A row without exactly one image raises ValueError."""
        generated = []
        for images, text in zip(samples[self.image_key], samples[self.text_key], strict=True):
            if len(images) != 1:
                raise ValueError("a row has not exactly one image")
            views = self.views(Path(images[0]).read_bytes(), caption_of(text))
            generated.append([{self.image_key: [save(view, self.save_dir)]} for view in views])
        return with_generated(samples, generated, self.keep_original_sample)

    def views(self, data: bytes, caption: str) -> list[Image.Image]:
        """The new images of the file `data`, RGB, of its size."""
        pixels = np.asarray(load(data))
        digest = hashlib.sha256(data).hexdigest()
        flip = self.flip and not SIDED.search(caption) and not readings(caption)
        ground = plain_background(pixels) if self.background and not SCENERY.search(caption) else None
        augmented = []
        for copy in range(self.copies):
            random, view = generator(self.seed, NAME, digest, copy), pixels
            if random.random() < self.background and ground is not None:
                view = painted(view, ground, PALE[random.integers(len(PALE))])
            view = moved(view, random, self.crop, self.rotation, flip and random.random() < 0.5)
            augmented.append(Image.fromarray(jittered(view, random, self.colour)))
        return augmented


def save(image: Image.Image, folder: str | None) -> str:
    """Write a JPEG named by its content into `folder`; its path. Two rows with the same image share the
    file."""
    if folder is None:
        raise ValueError("save_dir, the folder for new images, is not set")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    path = Path(folder) / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:HASH]}.jpg"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    return str(path)


def plain_background(pixels: np.ndarray) -> np.ndarray | None:
    """Boolean [H, W]: the plain pale region that the border belongs to; None for an image [H, W, 3] without
    one."""
    from scipy import ndimage

    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    colour = np.median(border, axis=0)
    if colour.min() < LIGHT:
        return None
    near = (np.abs(pixels.astype(np.int16) - colour) <= NEAR).all(axis=2)
    regions, _ = ndimage.label(near)
    edge = np.concatenate([regions[0], regions[-1], regions[1:-1, 0], regions[1:-1, -1]])
    if (edge > 0).mean() < BORDER:
        return None
    region = np.isin(regions, np.unique(edge[edge > 0]))
    return region if region.mean() >= COVERS else None


def painted(pixels: np.ndarray, region: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """`region` in another colour; its noise and shading stay, its edge is soft."""
    from scipy import ndimage

    weight = ndimage.gaussian_filter(region.astype(np.float32), 0.7)[..., None]
    shift = np.array(colour, dtype=np.float32) - np.median(pixels[region], axis=0)
    return np.clip(np.rint(pixels + weight * shift), 0, 255).astype(np.uint8)


def moved(
    pixels: np.ndarray, random: np.random.Generator, crop: float, rotation: float, mirrored: bool
) -> np.ndarray:
    """A part of the image, turned, at the image's size; what a turn brings in from outside is the border's
    mirror image."""
    height, width = pixels.shape[:2]
    scale, angle = 1 - random.uniform(0, crop), random.uniform(-rotation, rotation)
    centre = (
        width / 2 + random.uniform(-1, 1) * (1 - scale) * width / 2,
        height / 2 + random.uniform(-1, 1) * (1 - scale) * height / 2,
    )
    matrix = cv2.getRotationMatrix2D(centre, angle, 1 / scale)
    matrix[:, 2] += np.array((width / 2, height / 2)) - centre
    if (scale, angle) != (1, 0):
        pixels = cv2.warpAffine(
            pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def jittered(pixels: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation changed by up to `strength` each."""
    brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3)
    values = pixels.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = (values @ np.array((0.299, 0.587, 0.114), dtype=np.float32))[..., None]
    return np.clip(np.rint(grey + (values - grey) * saturation), 0, 255).astype(np.uint8)
