"""Cropped, mirrored, turned and framed copies of an evaluation image are listed, strangers are not."""

import json

import pytest
from photos import encoded, photo
from PIL import Image, ImageOps
from test_contamination import files  # noqa: F401 - the command's files

from toolkit.__main__ import main
from toolkit.evaluate.contamination import fingerprint, near_images
from toolkit.evaluate.look_alikes import Index, features, grey_of

ATTACKS = {
    "crop": lambda image: image.crop((20, 15, 380, 285)),
    "mirror": ImageOps.mirror,
    "turned": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "framed": lambda image: ImageOps.expand(image, 5),
    "all of it": lambda image: ImageOps.expand(
        ImageOps.mirror(image.crop((20, 15, 380, 285))).rotate(-2), 3, "white"
    ),
}


@pytest.fixture(scope="module")
def index() -> Index:
    return Index({str(seed): grey_of(encoded(photo(seed))) for seed in range(30)})


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_copies_are_found_and_strangers_are_not(index, attack):
    for seed in (7, 21):
        copy = encoded(ATTACKS[attack](photo(seed)))
        (pair,) = index.like("copy", features(grey_of(copy)))
        assert pair.evaluation == str(seed) and pair.training == "copy"
        assert pair.mirrored == (attack in ("mirror", "all of it"))
        # what the first stage cannot see
        assert not list(near_images([fingerprint(copy)], [fingerprint(encoded(photo(seed)))]))
    for seed in (100, 101, 102):
        stranger = encoded(ATTACKS[attack](photo(seed)))
        assert not list(index.like("stranger", features(grey_of(stranger))))


def test_the_same_corners_in_another_picture_are_not_enough(index):
    """One poster in two rooms: the greys where the two overlap tell them apart."""
    scene = photo(200)
    scene.paste(photo(7).crop((80, 60, 300, 240)), (60, 50))
    assert not list(index.like("scene", features(grey_of(encoded(scene)))))


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (300, 200), "red"), Image.new("L", (1, 40)), photo(7).resize((9, 7))]
)
def test_images_without_corners_are_like_nothing(index, image):
    assert not list(index.like("plain", features(grey_of(encoded(image)))))
    assert not list(
        Index({"plain": grey_of(encoded(image))}).like("photo", features(grey_of(encoded(photo(7)))))
    )


def test_command(files, tmp_path, capsys):  # noqa: F811
    """The pairs are listed by name and change nothing about the status."""
    (tmp_path / "train_images/q.jpg").write_bytes(encoded(photo(3)))
    (tmp_path / "seed/b.jpg").write_bytes(encoded(ImageOps.mirror(photo(3))))
    look = tmp_path / "look.json"
    assert main(["evaluate", "contamination", *files, "--look-alikes", str(look), "--threads", "2"]) == 0
    (pair,) = json.loads(look.read_text())
    assert (pair["training"], pair["evaluation"], pair["mirrored"]) == ("b.jpg", "textvqa q.jpg", True)
    told = capsys.readouterr()
    assert "look at these: b.jpg and textvqa q.jpg" in told.err and "1 pair to look at" in told.out
    assert json.loads((tmp_path / "found.json").read_text())["found"] == []
    # what the first stage has found is not listed again
    (tmp_path / "seed/b.jpg").write_bytes(encoded(photo(3)))
    assert main(["evaluate", "contamination", *files, "--look-alikes", str(look)]) == 0
    assert json.loads(look.read_text()) == [] and "near-duplicate" in capsys.readouterr().out
