"""What is blank or nearly so goes by its entropy; what shows something stays."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from toolkit.data.engine import juicer
from toolkit.data.recipe import Step

pytestmark = pytest.mark.usefixtures("offline")
NAME = "blank_image_filter"


def statistics(*paths: Path) -> list[dict]:
    rows = [("", str(path), None) for path in paths]
    (texts,) = juicer.compute(juicer.job([Step(1, NAME, {})]), rows, [range(len(rows))])
    return [json.loads(text) for text in texts]


def is_kept(values: dict) -> bool:
    return juicer.operator(Step(1, NAME, {})).process_single({"__dj__stats__": values})


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGB", "white"), ("L", 128), ("P", 3), ("RGBA", (9, 9, 9, 0)), ("1", 1), ("I;16", 40_000)],
)
def test_one_colour_has_no_entropy(tmp_path: Path, mode: str, colour: object) -> None:
    Image.new(mode, (120, 40), colour).save(tmp_path / "a.png")
    (values,) = statistics(tmp_path / "a.png")
    assert values == {"image_entropy": [0.0], "image_deviation": [0.0]} and not is_kept(values)


def test_equal_shares_have_the_entropy_of_their_number(tmp_path: Path) -> None:
    greys = np.repeat(np.repeat(np.array([[0, 80], [160, 240]], dtype=np.uint8), 64, axis=0), 64, axis=1)
    Image.fromarray(greys).save(tmp_path / "four.png")
    Image.fromarray(greys[:, :64]).save(tmp_path / "two.png")
    values = statistics(tmp_path / "four.png", tmp_path / "two.png")
    assert [value["image_entropy"] for value in values] == [[2.0], [1.0]]
    assert values[1]["image_deviation"] == [80.0]


def test_a_pale_notice_goes_and_a_thing_on_white_and_a_pale_thing_stay(tmp_path: Path) -> None:
    notice = Image.new("RGB", (400, 300), (245, 245, 245))
    ImageDraw.Draw(notice).text((110, 130), "IMAGE COMING SOON", fill=(200, 200, 200), font_size=16)
    thing = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(thing).ellipse((110, 110, 190, 190), fill=(30, 20, 30))
    slope = np.tile(np.linspace(215, 255, 300).astype(np.uint8), (300, 1))
    for name, picture in {"notice": notice, "thing": thing, "pale": Image.fromarray(slope)}.items():
        picture.save(tmp_path / f"{name}.jpg", quality=80)
    values = statistics(*(tmp_path / f"{name}.jpg" for name in ("notice", "thing", "pale")))
    assert list(map(is_kept, values)) == [False, True, True]
    assert (
        values[1]["image_entropy"][0] < 0.75 and values[2]["image_deviation"][0] < 12
    )  # one alone is not enough


SEED = Path(__file__).parents[3] / "shared" / "seed_10k_sample"


@pytest.mark.skipif(not SEED.is_dir(), reason="the contest's sample rows are not on this machine")
def test_of_the_real_rows_one_goes() -> None:
    rows = [json.loads(line) for line in (SEED / "mgm_pretrain_stage_1_10k.jsonl").read_text().splitlines()]
    values = statistics(*(SEED / row["images"][0] for row in rows))
    assert [row["id"] for row, value in zip(rows, values, strict=True) if not is_kept(value)] == ["000627663"]
