"""Scenes of the embedded world: what they hold, where it stands, how it is drawn. Needs numpy and Pillow
only.

A scene is one object, a pair in a relation, or a group of two to four equal objects, and a sign with one
word. It is drawn on a 192 x 192 canvas, whose 4 x 4 cells of 48 pixels are what the tiny CLIP's 16 patches
see, and stored at 128 x 128 pixels. Everything comes from the generator passed in: same seed, same bytes.
"""

import io
import math
import zlib
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkit.world.words import BACKGROUNDS, COLOURS, KINDS, RELATIONS, SIGNS

CANVAS, SIDE, CELL = 192, 128, 48  # pixels
QUALITY = 90  # of the JPEG files
# Share of all contents (percent, by hash) that each split may draw from: no two splits ever show the same
# content.
SPLITS = {"zoo": 50, "seed": 25, "instruction": 10, "evaluation": 10, "tuning": 5}


@dataclass(frozen=True)
class Scene:
    """Content alone: two drawings of one scene differ in places, shades and noise.

    objects: (colour, kind), one entry, or two where `relation` says how the first stands to the second.
    count: 1 to 4 equal objects.
    """

    objects: tuple[tuple[str, str], ...]
    relation: str | None
    count: int
    sign: str


@dataclass(frozen=True)
class Placed:
    """Something drawn: `thing` is an index into `Scene.objects`, or None for the sign; its box in canvas
    pixels."""

    thing: int | None
    x0: float
    y0: float
    x1: float
    y1: float


def split_of(scene: Scene) -> str:
    """The one split that may show this content."""
    point = zlib.crc32(repr(astuple(scene)).encode()) % 100
    for split, share in SPLITS.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("the shares sum to 100")


def sample_scene(rng: np.random.Generator, split: str) -> Scene:
    """A random scene of `split`: 35 % single objects, 40 % pairs, 25 % groups."""
    while True:
        colours = [str(colour) for colour in rng.choice(list(COLOURS), size=2)]
        # different kinds, so that "the mug" is clear
        kinds = [str(kind) for kind in rng.choice(KINDS, size=2, replace=False)]
        relation, sign, form = str(rng.choice(RELATIONS)), str(rng.choice(SIGNS)), rng.random()
        single_object = ((colours[0], kinds[0]),)
        if form < 0.35:
            scene = Scene(single_object, None, 1, sign)
        elif form < 0.75:
            scene = Scene((*single_object, (colours[1], kinds[1])), relation, 1, sign)
        else:
            scene = Scene(single_object, None, int(rng.integers(2, 5)), sign)
        if split_of(scene) == split:
            return scene


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as with every size
    return font


def _box(thing: int, cx: float, cy: float, size: float) -> Placed:
    return Placed(thing, cx - size / 2, cy - size / 2, cx + size / 2, cy + size / 2)


def place(scene: Scene, rng: np.random.Generator) -> tuple[list[Placed], int]:
    """Where everything stands: boxes, the sign last, and the sign's font size (pixels).

    The sign fills the top or the bottom row of cells, the objects have the other three.
    """
    top = 48 if rng.random() < 0.5 else 0  # first pixel row of the 144 that the objects have
    placed = []
    if scene.relation in ("left", "right"):
        cx, cy = rng.uniform((32, 120), (72, 160)), top + 72 + rng.uniform(-22, 22, 2)
        order = (0, 1) if scene.relation == "left" else (1, 0)
        placed = [_box(thing, cx[i], cy[i], rng.uniform(50, 62)) for i, thing in enumerate(order)]
    elif scene.relation:
        cx, cy = (
            rng.uniform(48, 144) + rng.uniform(-12, 12, 2),
            top + np.array((37, 107)) + rng.uniform(-6, 6, 2),
        )
        order = (0, 1) if scene.relation == "above" else (1, 0)
        placed = [_box(thing, cx[i], cy[i], rng.uniform(50, 62)) for i, thing in enumerate(order)]
    elif scene.count > 1:
        size = rng.uniform(36, 43)
        for cell in rng.choice(12, size=scene.count, replace=False):
            cx, cy = np.array((cell % 4, cell // 4)) * CELL + CELL / 2 + rng.uniform(-3, 3, 2)
            placed.append(_box(0, cx, top + cy, size))
    else:
        size = rng.uniform(66, 100)
        x, y = rng.uniform((size / 2 + 2, top + size / 2 + 1), (190 - size / 2, top + 143 - size / 2))
        placed = [_box(0, x, y, size)]
    points = int(rng.integers(26, 33))
    width = _font(points).getlength(scene.sign)
    x = rng.uniform(width / 2 + 8, CANVAS - width / 2 - 8)
    y = (168 if top == 0 else 24) + rng.uniform(-3, 3)
    placed.append(Placed(None, x - width / 2, y - points / 2, x + width / 2, y + points / 2))
    return placed, points


def _draw_object(
    draw: ImageDraw.ImageDraw, kind: str, box: Placed, fill: tuple[int, ...], line: tuple[int, ...]
) -> None:
    """One object inside its box, in one colour with a darker outline."""
    size = box.x1 - box.x0

    def at(*points: float) -> list[float]:  # unit square -> canvas
        return [(box.y0 if i % 2 else box.x0) + size * point for i, point in enumerate(points)]

    style: dict[str, Any] = {"fill": fill, "outline": line, "width": 2}
    if kind == "mug":
        draw.ellipse(at(0.55, 0.3, 1.0, 0.75), outline=line, width=max(4, int(size / 10)))
        draw.rectangle(at(0.08, 0.15, 0.75, 0.95), **style)
        draw.ellipse(at(0.08, 0.05, 0.75, 0.27), **style)
    elif kind == "box":
        draw.rectangle(at(0.05, 0.3, 0.95, 0.95), **style)
        draw.polygon(at(0.05, 0.3, 0.22, 0.08, 0.78, 0.08, 0.95, 0.3), **style)
        draw.line(at(0.5, 0.08, 0.5, 0.6), fill=line, width=3)
    elif kind == "ball":
        draw.ellipse(at(0.04, 0.04, 0.96, 0.96), **style)
        draw.arc(at(-0.4, 0.04, 0.5, 0.96), -60, 60, fill=line, width=2)
        draw.arc(at(0.5, 0.04, 1.4, 0.96), 120, 240, fill=line, width=2)
    elif kind == "star":
        radii = (0.5, 0.2)
        corners = [
            (0.5 + radii[i % 2] * math.sin(i * math.pi / 5), 0.52 - radii[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
        draw.polygon(at(*(value for corner in corners for value in corner)), **style)
    elif kind == "lamp":
        draw.rectangle(at(0.46, 0.5, 0.54, 0.9), fill=line)
        draw.rectangle(at(0.25, 0.88, 0.75, 0.97), **style)
        draw.polygon(at(0.3, 0.05, 0.7, 0.05, 0.92, 0.55, 0.08, 0.55), **style)
    elif kind == "tree":
        draw.rectangle(at(0.42, 0.7, 0.58, 0.98), fill=line)
        draw.polygon(at(0.5, 0.3, 0.92, 0.76, 0.08, 0.76), **style)
        draw.polygon(at(0.5, 0.02, 0.8, 0.46, 0.2, 0.46), **style)
    elif kind == "fish":
        draw.polygon(at(0.6, 0.5, 0.98, 0.2, 0.98, 0.8), **style)
        draw.ellipse(at(0.02, 0.24, 0.74, 0.76), **style)
        draw.ellipse(at(0.15, 0.4, 0.23, 0.48), fill=(250, 250, 250))
    else:  # house
        draw.rectangle(at(0.14, 0.45, 0.86, 0.96), **style)
        draw.polygon(at(0.5, 0.04, 0.98, 0.47, 0.02, 0.47), **style)
        draw.rectangle(at(0.42, 0.64, 0.6, 0.96), fill=line)


def render(scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, list[Placed]]:
    """Draw a scene: a 128 x 128 RGB image, and what stands where (canvas pixels)."""
    placed, points = place(scene, rng)
    ground = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))]) + rng.integers(-6, 7, 3)
    image = Image.new("RGB", (CANVAS, CANVAS), tuple(int(value) for value in np.clip(ground, 0, 255)))
    draw = ImageDraw.Draw(image)
    for box in placed[:-1]:
        assert box.thing is not None  # the sign is the last
        colour, kind = scene.objects[box.thing]
        shade = np.clip(np.array(COLOURS[colour]) + rng.integers(-14, 15, 3), 0, 255)
        fill = tuple(int(value) for value in shade)
        _draw_object(draw, kind, box, fill, tuple(int(value * 0.55) for value in fill))
    sign = placed[-1]
    draw.rectangle(
        (sign.x0 - 6, sign.y0 - 4, sign.x1 + 6, sign.y1 + 4),
        fill=(252, 252, 248),
        outline=(90, 90, 90),
        width=2,
    )
    ink = tuple(int(value) for value in rng.integers(10, 70, 3))
    draw.text(
        ((sign.x0 + sign.x1) / 2, (sign.y0 + sign.y1) / 2),
        scene.sign,
        font=_font(points),
        fill=ink,
        anchor="mm",
    )
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = (
        pixels
        + rng.normal(0, rng.uniform(2, 7), (SIDE, SIDE, 1)).astype(np.float32)
        + rng.normal(0, 2, 3).astype(np.float32)
    )
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), placed


def jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """The JPEG file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
