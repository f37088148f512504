"""Near-duplicates of evaluation items are found among training rows, strangers are not."""

import base64
import json

import numpy
import pandas
import pytest
from photos import encoded
from PIL import Image

from toolkit.__main__ import main
from toolkit.evaluate.contamination import fingerprint, near_images, near_texts
from toolkit.files import write_jsonl

LONG = "why is the tall man in the red coat holding a green umbrella while the sun is shining"


def scene(seed: int) -> Image.Image:
    """A picture with large and small shapes, as smooth as a photo."""
    noise = numpy.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encoded(image, "JPEG", quality=quality)


COPIES = {
    "bytes": lambda image: jpeg(image),
    "PNG": lambda image: encoded(image, "PNG"),
    "quality": lambda image: jpeg(image, quality=40),
    "half the size": lambda image: jpeg(image.resize((48, 36))),
    "wider": lambda image: jpeg(image.resize((125, 72))),
    "grey": lambda image: jpeg(image.convert("L")),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_strangers_are_not(copy):
    originals = [fingerprint(jpeg(scene(seed))) for seed in range(40)]
    train = [fingerprint(COPIES[copy](scene(seed))) for seed in (7, 100, 101, 102)]
    assert [(row, place) for row, place, _ in near_images(train, originals)] == [(0, 7)]


def test_a_copy_whose_hash_turned_is_found():
    """Half the frequencies of a symmetrical picture are rounding errors, so another size turns many bits of
    its hash."""
    picture = Image.new("RGB", (96, 72), "orange")
    picture.paste("white", (32, 24, 64, 48))
    original, copy = (
        fingerprint(jpeg(picture)),
        fingerprint(jpeg(picture.resize((144, 108)), quality=60)),
    )
    assert (original[1] ^ copy[1]).bit_count() > 12
    assert [pair[:2] for pair in near_images([copy], [original])] == [(0, 0)]


def test_damaged_images_are_compared_by_their_bytes():
    damaged = [fingerprint(b"no image"), fingerprint(b"another")]
    assert [pair[:2] for pair in near_images(damaged, damaged[1:])] == [(1, 0)]
    assert list(near_images([("", 0, None)], [("", 0, None)])) == []  # two that are absent


def test_captions():
    items = [LONG, "what word is on the sign maple"]
    captions = [
        f"A man. {LONG.upper()}, indeed!",
        "what word is on the sign maple",
        LONG.replace("green", "blue").replace("man", "boy"),
        "a dog",
    ]
    found = list(near_texts(captions, items))
    # the short item says too little
    assert [(row, place) for row, place, _ in found] == [(0, 0)] and found[0][2] == 1.0


@pytest.fixture
def files(tmp_path):
    """The command line, with two training rows and one question on an image of its own in each benchmark."""
    (tmp_path / "seed").mkdir()
    (tmp_path / "train_images").mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"seed/{name}.jpg").write_bytes(jpeg(scene(seed)))
    (tmp_path / "train_images/q.jpg").write_bytes(jpeg(scene(3)))
    rows = [{"id": name, "text": f"<__dj__image>\na {name}", "images": [f"{name}.jpg"]} for name in "ab"]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    text = "What is it?\nReference OCR token: a\nAnswer the question using a single word or phrase."
    write_jsonl(tmp_path / "questions.jsonl", [{"question_id": "q", "image": "q.jpg", "text": text}])
    humans = [{"image_id": "q", "question": "What is it?", "answers": ["sign"] * 10}]
    (tmp_path / "annotations.json").write_text(json.dumps({"data": humans}))
    row = {
        "index": 4,
        "question": f"{LONG}?",
        "hint": None,
        "A": "rain",
        "B": "fun",
        "C": None,
        "D": None,
        "answer": "A",
    }
    row |= {"image": base64.b64encode(jpeg(scene(4))).decode()}
    pandas.DataFrame([row, row | {"index": 1_000_004}]).to_csv(tmp_path / "table.tsv", sep="\t", index=False)
    arguments = [
        "--samples",
        "rows.jsonl",
        "--images",
        "seed",
        "--questions",
        "questions.jsonl",
        "--question-images",
        "train_images",
    ]
    paths = [
        *arguments,
        "--annotations",
        "annotations.json",
        "--table",
        "table.tsv",
        "--output",
        "found.json",
    ]
    return [part if part.startswith("--") else str(tmp_path / part) for part in paths]


def test_command(files, tmp_path, capsys):
    assert main(["evaluate", "contamination", *files]) == 0
    clean = json.loads((tmp_path / "found.json").read_text())
    assert clean["found"] == [] and "warning" not in capsys.readouterr().err
    assert clean["compared"] == {
        "rows": 2,
        "images": 2,
        "evaluation_images": 2,
        "evaluation_texts": 1,
        "unreadable": 0,
    }
    sound = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(sound + '{"id": "x"}\nnothing\n')
    assert main(["evaluate", "contamination", *files]) == 0
    assert "warning: 2 lines are no sound row and left out" in capsys.readouterr().err
    assert json.loads((tmp_path / "found.json").read_text())["compared"] == clean["compared"]
    (tmp_path / "rows.jsonl").write_text(sound)
    (tmp_path / "seed/b.jpg").write_bytes(jpeg(scene(4), quality=50))  # the picture inside the table
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("a a", f"{LONG}, rain"))
    assert main(["evaluate", "contamination", *files, "--threads", "3"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(pair["kind"], pair["training"], pair["evaluation"]) for pair in found["found"]] == [
        ("image", "b.jpg", "mmbench 4"),
        ("text", "a", "mmbench 4"),
    ]
    assert found["images"] != clean["images"] and "b.jpg is like mmbench 4" in capsys.readouterr().err


def test_what_was_not_compared_is_said(files, tmp_path, capsys):
    (tmp_path / "seed/b.jpg").unlink()
    assert main(["evaluate", "contamination", *files]) == 0
    assert "1 of 4 images cannot be read: at most their bytes were compared" in capsys.readouterr().err
    elsewhere = [str(tmp_path / "nowhere") if part.endswith("/seed") else part for part in files]
    assert main(["evaluate", "contamination", *elsewhere]) == 1
    assert "nowhere is not a folder: name that of the images of" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text('[{"conversations": []}]\n')  # LLaVA's json
    assert main(["evaluate", "contamination", *files]) == 1
    assert "rows.jsonl has no sound row: Data-Juicer's jsonl is expected" in capsys.readouterr().err
