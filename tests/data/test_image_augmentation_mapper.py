"""New images: deterministic files, true to their captions, the background painted and nothing else."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from photos import encoded
from PIL import Image, ImageDraw
from test_data_synthesize import synthesize_arguments
from tiny_data import picture, seed_set

from toolkit.__main__ import main
from toolkit.data.operators.image_augmentation_mapper import PALE, ImageAugmentationMapper, plain_background
from toolkit.data.samples import text_of
from toolkit.files import read_jsonl

# nothing changes but what a test turns on
STILL = {"colour": 0.0, "crop": 0.0, "rotation": 0.0, "background": 0.0}


def scene(ground: tuple[int, int, int] = (250, 250, 250)) -> bytes:
    """A red box on a plain ground, wider than high, with a hole of the ground's colour that the border does
    not reach."""
    image = Image.new("RGB", (96, 64), ground)
    draw = ImageDraw.Draw(image)
    draw.rectangle((30, 20, 60, 50), fill=(200, 30, 30))
    draw.rectangle((40, 30, 50, 40), fill=ground)
    return encoded(image, "PNG")


def view(data: bytes, caption: str, **arguments) -> np.ndarray:
    (image,) = ImageAugmentationMapper(**arguments).views(data, caption)
    return np.asarray(image).astype(int)


def run(folder: Path, images: list[Path], captions: list[str], **arguments) -> list[tuple[str, str]]:
    batch = {"text": [text_of(caption) for caption in captions], "images": [[str(path)] for path in images]}
    produced = ImageAugmentationMapper(save_dir=str(folder), **arguments).process_batched(batch)
    return list(zip((paths[0] for paths in produced["images"]), produced["text"], strict=True))


def test_files_are_named_by_content_and_the_same_for_any_company(tmp_path: Path) -> None:
    images = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(images):
        picture(path, number, 80)
    captions = ["a mug", "a box", "a ball"]
    produced = run(tmp_path / "new", images, captions, copies=2)
    assert [text for _, text in produced] == [text_of(caption) for caption in captions for _ in range(3)]
    assert [path for path, _ in produced[::3]] == [str(path) for path in images]
    new = [Path(path) for number, (path, _) in enumerate(produced) if number % 3]
    assert len(set(new)) == 6 == len(list((tmp_path / "new").iterdir()))
    for path in new:
        assert (
            path.parent == tmp_path / "new"
            and path.stem == hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        )
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (80, 80), "RGB")
    alone = run(tmp_path / "alone", images[1:2], captions[1:2], copies=2, keep_original_sample=False)
    assert [Path(path).name for path, _ in alone] == [path.name for path in new[2:4]]
    other = run(tmp_path / "alone", images[1:2], captions[1:2], copies=2, keep_original_sample=False, seed=1)
    assert not {path for path, _ in other} & {path for path, _ in alone}


def test_each_kind_can_be_turned_off() -> None:
    data, pixels = scene(), np.asarray(Image.open(io.BytesIO(scene())))
    assert (view(data, "a box", **STILL) == pixels).all()
    for name, value in (("colour", 0.3), ("crop", 0.3), ("rotation", 20.0), ("background", 1.0)):
        assert (view(data, "a box", **STILL | {name: value}) != pixels).any(), name


@pytest.mark.parametrize(
    ("caption", "allowed"),
    [
        ("a box", True),
        ("a box left of a mug", False),
        ("a box, sign reads nova", False),
        ('a box, "ok" on it', False),
        ("a map", False),
    ],
)
def test_an_image_is_mirrored_only_where_its_caption_allows(caption: str, allowed: bool) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(scene())))
    operator = ImageAugmentationMapper(**STILL, copies=12, flip=True)
    mirrored = [(np.asarray(image) == pixels[:, ::-1]).all() for image in operator.views(scene(), caption)]
    assert any(mirrored) == allowed and not all(mirrored)


def test_the_background_is_painted_and_the_object_is_not() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(scene())))
    region = plain_background(pixels)
    # the hole is not background
    assert region is not None and region[0, 0] and not region[25, 35] and not region[35, 45]
    new = view(scene((226, 226, 226)), "a box", **STILL | {"background": 1.0})
    assert tuple(new[2, 2]) in PALE and tuple(new[2, 2]) != (226, 226, 226)
    assert (abs(new[24:27, 34:37] - (200, 30, 30)) <= 1).all() and (abs(new[34:37, 44:47] - 226) <= 1).all()


def test_no_background_is_painted_that_is_dark_or_busy_or_in_the_caption(tmp_path: Path) -> None:
    paint = STILL | {"background": 1.0}
    assert plain_background(np.asarray(Image.open(io.BytesIO(scene((60, 60, 160)))))) is None
    picture(tmp_path / "busy.jpg", 1)
    assert plain_background(np.asarray(Image.open(tmp_path / "busy.jpg"))) is None
    for caption in ("a box on a white background", "a box in the snow"):
        assert (view(scene(), caption, **paint) == np.asarray(Image.open(io.BytesIO(scene())))).all()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"crop is 0\.7"):
        ImageAugmentationMapper(crop=0.7)
    picture(tmp_path / "x.jpg", 1)
    with pytest.raises(ValueError, match="save_dir"):
        ImageAugmentationMapper().process_batched({"text": ["a"], "images": [[str(tmp_path / "x.jpg")]]})
    with pytest.raises(ValueError, match="exactly one image"):
        ImageAugmentationMapper(save_dir=str(tmp_path)).process_batched({"text": ["a"], "images": [[]]})


def test_a_recipe_with_new_images_passes_the_check_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    recipe = (
        "process:\n  - image_augmentation_mapper: {copies: 2}\n  - image_shape_filter: {min_width: 10}\n  - "
        "question_answer_mapper:\n"
    )
    rows, files = seed_set(tmp_path, 5), {}
    for name, processes in (("one", 1), ("two", 2)):
        out = tmp_path / name
        arguments = synthesize_arguments(tmp_path, recipe, rows, out, "--processes", processes)
        assert main(["data", "synthesize", *map(str, arguments)]) == 0
        files[name] = [path.read_bytes() for path in sorted(out.glob("synthetic_images/*"))] + [
            (out / "out.jsonl").read_bytes()
        ]
    assert files["one"] == files["two"] and len(files["one"]) == 11
    kept = list(read_jsonl(tmp_path / "one" / "out.jsonl"))
    assert sum(row["images"][0].startswith("synthetic_images/") for row in kept) >= 10
    check = [
        "--images",
        tmp_path,
        "--original",
        tmp_path / "stage_1.json",
        "--output",
        tmp_path / "check.json",
    ]
    assert main(["data", "check", "--samples", str(tmp_path / "one" / "out.jsonl"), *map(str, check)]) == 0
    (tmp_path / "one" / kept[1]["images"][0]).unlink()
    assert main(["data", "check", "--samples", str(tmp_path / "one" / "out.jsonl"), *map(str, check)]) == 1
