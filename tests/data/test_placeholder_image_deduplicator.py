"""Placeholders go with all their rows; an image that is rightly there twice stays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_synthesize import account, synthesize
from tiny_data import seed_row

from toolkit.data.words import content

STEP = "process: [placeholder_image_deduplicator]"


def placeholder(path: Path, quality: int = 90) -> None:
    """A box on white, saved anew at any quality."""
    pixels = np.full((96, 96, 3), 245, dtype=np.uint8)
    pixels[30:70, 20:80] = (200, 160, 120)
    pixels[80:86, 25:70] = (180, 60, 60)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=quality)


def rows_of(folder: Path, captions: list[str]) -> list[dict]:
    rows = [seed_row(number, caption) for number, caption in enumerate(captions)]
    for number, row in enumerate(rows):
        placeholder(folder / row["images"][0], 70 + 5 * (number % 5))
    return rows


def test_an_image_with_unrelated_captions_goes_with_all_its_rows(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        ["the game for kids is a great gift", "a very lazy song", "case for a phone", "kids play a game"],
    )
    other = seed_row(9, "an illustration of a doll")
    noise = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((96, 96)).save(tmp_path / other["images"][0])
    assert synthesize(tmp_path, STEP, [*rows, other]) == 0
    kept, removed, _ = account(tmp_path, 5)
    assert kept == [other]
    assert {entry["reason"] for entry in removed.values()} == {
        "the image comes with 3 captions that have no word in common"
    }
    assert all(
        entry["operator"] == "placeholder_image_deduplicator" and "of" not in entry
        for entry in removed.values()
    )


@pytest.mark.parametrize(
    ("captions", "step"),
    [
        (["a red box", "the box is red", "boxes on a table"], STEP),
        (["a red box", "the sea"], "process: [{placeholder_image_deduplicator: {min_captions: 3}}]"),
        (["a red box", "a red box", "..."], STEP),
        (["\u7ea2\u8272\u7684\u76d2\u5b50", "\u4e00\u4e2a\u7ea2\u8272\u76d2\u5b50"], STEP),
    ],
)
def test_related_captions_stay(tmp_path: Path, captions: list[str], step: str) -> None:
    rows = rows_of(tmp_path, captions)
    assert synthesize(tmp_path, step, rows) == 0
    assert account(tmp_path, len(rows))[0] == rows


def test_unrelated_captions_in_a_script_without_spaces(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["\u7ea2\u8272\u7684\u76d2\u5b50", "\u4e00\u53ea\u732b\u5728\u8dd1"])
    rows.append(seed_row(5, "a tree"))
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(
        tmp_path / rows[-1]["images"][0]
    )
    assert synthesize(tmp_path, STEP, rows) == 0
    assert account(tmp_path, 3)[0] == rows[2:]


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGB", "white"), ("RGB", "black"), ("L", 128), ("P", 3), ("RGBA", (255, 0, 0, 0)), ("1", 1)],
)
def test_plain_images_go(tmp_path: Path, mode: str, colour: object) -> None:
    rows = rows_of(tmp_path, ["a box", "a box too"])
    Image.new(mode, (120, 40), colour).save(tmp_path / rows[0]["images"][0], "PNG")
    assert synthesize(tmp_path, STEP, rows) == 0
    kept, removed, _ = account(tmp_path, 2)
    assert kept == rows[1:] and "the image is plain" in removed[rows[0]["id"]]["reason"]


def test_a_nearly_plain_image_goes_and_a_faint_one_stays(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["a box", "a box too", "this box"])
    pixels = np.full((100, 100, 3), 250, dtype=np.uint8)
    noise = np.random.default_rng(2).integers(0, 3, pixels.shape, dtype=np.uint8)
    Image.fromarray(pixels + noise).save(tmp_path / rows[0]["images"][0], quality=80)
    pixels[20:80, 40:60] = 230
    Image.fromarray(pixels).save(tmp_path / rows[1]["images"][0], quality=90)
    assert synthesize(tmp_path, STEP, rows) == 0
    assert account(tmp_path, 3)[0] == rows[1:]


def test_different_images_with_one_hash_are_told_apart(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["a red field", "two blue birds"])
    for row, colour in zip(rows, [(200, 20, 20), (10, 10, 140)], strict=True):
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        pixels[:, 32:] = colour
        Image.fromarray(pixels).save(tmp_path / row["images"][0], "PNG")
    assert synthesize(tmp_path, STEP, rows) == 0
    assert account(tmp_path, 2)[0] == rows


def test_words_that_say_what_a_caption_is_about() -> None:
    assert content("A picture of the Dogs, 2 cats and a dress; see dresses!") == {
        "pictur",
        "dog",
        "2",
        "cat",
        "dr",
        "see",
    }
    assert content("\u7ea2\u76d2\u5b50 box") == {"box", "\u7ea2\u76d2", "\u76d2\u5b50"}


def test_a_copy_at_a_distance_is_a_copy(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["a game for kids", "a very lazy song"])
    image = Image.open(tmp_path / rows[0]["images"][0])
    image.resize((61, 57)).save(tmp_path / rows[1]["images"][0], quality=30)
    exact = "process: [{placeholder_image_deduplicator: {hamming_distance: 0}}]"
    assert synthesize(tmp_path, exact, rows) == 0
    assert account(tmp_path, 2)[0] == rows  # their hashes differ
    other = seed_row(9, "an illustration")
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(
        tmp_path / other["images"][0]
    )
    assert synthesize(tmp_path, STEP, [*rows, other]) == 0
    assert account(tmp_path, 3)[0] == [other]
