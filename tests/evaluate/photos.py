"""Pictures that tests draw."""

import io

import numpy
from PIL import Image, ImageDraw


def photo(seed: int) -> Image.Image:
    """A picture with as many corners as a photograph's."""
    draw = numpy.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 255, (6, 8, 3), dtype=numpy.uint8)).resize((400, 300))
    pencil = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, width, height = draw.integers(0, [400, 300, 60, 60])
        colour = tuple(draw.integers(0, 256, 3).tolist())
        pencil.polygon([(x, y), (x + width, y + height // 3), (x + width // 2, y + height)], fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of the image's file."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()
