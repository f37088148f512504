"""One rule for pixels, wherever they are read: training, recipes, hashes, galleries."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import encoded
from PIL import ExifTags, Image

from toolkit import images
from toolkit.images import PROPORTION, Unreadable, load, opened, rgb

GREY16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    pixels = np.asarray(load(encoded(Image.fromarray(GREY16), kind)))
    assert np.abs(pixels[..., 0] - GREY16 / 257).max() <= 0.5 + 1e-9
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("kind", images.FORMATS)
@pytest.mark.parametrize("orientation", [None, 6])
def test_the_header_says_the_size_that_the_decoded_image_has(kind, orientation):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    NOISE.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}))
    assert images.size_of(file.getvalue()) == opened(file.getvalue()).size


JPEGS = [
    encoded(NOISE.convert(mode), "JPEG", subsampling=subsampling, **more)
    for mode in ("RGB", "L", "CMYK")
    for subsampling in (0, 2)
    for more in ({}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 2})
]
PIECES = (
    b"\xff\xd9",
    b"\xff\xd8",
    b"\xff\xda",
    b"\xff\xc4",
    b"\xff\xc2",
    b"\xff\xd3",
    b"\xff\x00",
    b"\xff",
    b"\0" * 50,
)


@pytest.mark.parametrize("data", JPEGS)
def test_a_jpegs_size_is_read_without_pillow(data, monkeypatch):
    assert images._jpeg_size(data) == NOISE.size
    filled = data[:2] + b"\xff" + data[2:]  # any number of these may precede a marker
    assert images._jpeg_size(filled) is None and images.size_of(filled) == NOISE.size
    for cut in range(300):  # none that is wrong
        assert images._jpeg_size(data[:cut]) in (None, NOISE.size)
    monkeypatch.setattr(images.Image, "open", None)
    assert images.size_of(data) == NOISE.size


def verdict(function, data):
    """What is wrong with an image; headers alone are refused in other words."""
    try:
        function(data)
    except Unreadable:
        return "unreadable"
    return "readable"


@pytest.mark.parametrize("data", [*JPEGS, *(encoded(NOISE, kind) for kind in images.FORMATS)])
def test_a_check_finds_what_decoding_finds(data):
    images.check(data)
    for cut in (0, 1, 2, 10, len(data) // 2, len(data) - 2, len(data) - 1):
        assert verdict(images.check, data[:cut]) == verdict(opened, data[:cut])


@settings(max_examples=400)
@given(st.data())
def test_a_check_finds_what_decoding_finds_in_damaged_files(draw):
    data = bytearray(draw.draw(st.sampled_from(JPEGS)))
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(2, len(data)))
        piece = draw.draw(st.sampled_from(PIECES) | st.binary(max_size=3))
        data[place : place + draw.draw(st.integers(0, 3))] = piece
    assert verdict(images.check, bytes(data)) == verdict(opened, bytes(data))


def test_the_pixels_of_an_ordinary_jpeg_are_not_decoded_and_the_same_headers_once(monkeypatch):
    lengths = []
    monkeypatch.setattr(images, "opened", lambda data, **_: lengths.append(len(data)))
    turned = encoded(NOISE.transpose(Image.Transpose.ROTATE_180), "JPEG", subsampling=0)
    images._check_short.cache_clear()
    try:
        for data in [*JPEGS[:3], *JPEGS[:2], turned]:
            images.check(data)
    finally:
        images._check_short.cache_clear()  # these were not decoded
    assert len(lengths) == 3 and lengths[0] < len(JPEGS[0]) / 2 and lengths[1] < len(JPEGS[1]) / 2
    assert lengths[2] == len(JPEGS[2])  # progressive


@pytest.mark.parametrize("comment", [0, 60_000])  # headers that are remembered, and longer ones
def test_headers_that_cannot_be_decoded_are_refused_each_time(comment):
    segment = b"\xff\xfe" + (comment + 2).to_bytes(2, "big") + bytes(comment)
    good = JPEGS[0][:2] + segment + JPEGS[0][2:]
    table = good.index(b"\xff\xc4") + 5  # how many codes have one bit, two bits, …
    damaged = good[:table] + b"\xff" * 16 + good[table + 16 :]
    images.check(good)
    for _ in range(2):
        with pytest.raises(Unreadable):
            images.check(damaged)


@pytest.mark.parametrize(("dtype", "what"), [(np.int32, "32-bit"), (np.float32, "float")])
def test_pixels_without_a_defined_white_are_refused(dtype, what):
    with pytest.raises(Unreadable, match=f"its {what} pixels have no defined white"):
        opened(encoded(Image.fromarray(GREY16.astype(dtype)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_are_converted_as_pillow_does(mode):
    image = NOISE.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    assert load(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_postscript_and_other_formats_are_not_opened():
    eps = encoded(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(Unreadable, match=r"it is none of JPEG, PNG"):
        opened(eps)
    with pytest.raises(Unreadable, match="it is none of"):
        opened(b"%PDF-1.4")
    for nothing in (b"", io.BytesIO()):
        with pytest.raises(Unreadable, match="it is empty"):
            opened(nothing)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (20, 20_000)])
def test_strips_are_refused_and_cropped_before_they_are_resized(size):
    from toolkit.mgm.processor import pixels

    image = Image.new("RGB", size, (9, 8, 7))
    with pytest.raises(
        Unreadable, match=rf"{size[0]} x {size[1]} pixels: more than {PROPORTION} times as long as wide"
    ):
        opened(encoded(image, "PNG"))
    for aspect in ("square", "pad"):
        assert pixels(image, SimpleNamespace(image_aspect_ratio=aspect, image_size_aux=32)).shape == (
            32,
            32,
            3,
        )


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 99)
    with pytest.raises(Unreadable, match="10 x 10 pixels, at most 99 are read"):
        opened(encoded(Image.new("RGB", (10, 10)), "PNG"))


def test_the_orientation_in_exif_is_applied_nowhere(tmp_path):
    """By the trainer, Data-Juicer's own operators and ours, the image deduplicators and the gallery alike."""
    from data_juicer.ops.deduplicator.image_deduplicator import ImageDeduplicator
    from data_juicer.ops.filter import image_shape_filter

    import toolkit.data.operators  # noqa: F401
    from toolkit.data.analysis.gallery import picture
    from toolkit.data.operators import batched_similarity_filter
    from toolkit.mgm.processor import pixels

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(encoded(NOISE, "JPEG"))
    turned.write_bytes(encoded(NOISE, "JPEG", exif=exif))
    assert Image.open(turned).getexif()[0x0112] == 6

    config = SimpleNamespace(image_aspect_ratio="square", image_size_aux=32)
    assert (pixels(opened(turned), config) == pixels(opened(plain), config)).all()
    for module in (image_shape_filter, batched_similarity_filter):
        assert module.load_image(str(turned)).tobytes() == module.load_image(str(plain)).tobytes()
    sample = [{"images": [str(path)], "text": ""} for path in (plain, turned)]
    hashes = [ImageDeduplicator(method="phash").compute_hash(row)["__dj__imagehash"] for row in sample]
    assert hashes[0] == hashes[1]
    small = [Image.open(tmp_path / picture(path, tmp_path)) for path in (plain, turned)]
    assert small[0].size == small[1].size and not small[1].getexif()


@settings(max_examples=60)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]), st.data())
def test_damaged_files_are_read_or_refused(kind, data):
    content = bytearray(encoded(NOISE.crop((0, 0, 16, 12)), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert rgb(opened(content)).mode == "RGB"
    except Unreadable as problem:
        assert str(problem)
