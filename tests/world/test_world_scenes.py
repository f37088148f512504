"""Scenes: same seed, same picture; splits that never share a content; tags that say what is where."""

import numpy as np
import pytest

from toolkit.world import captions, questions, words
from toolkit.world.build import Picture, draw
from toolkit.world.scene import SPLITS, Scene, jpeg, place, render, sample_scene, split_of


def scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for _ in range(count)]


def test_same_seed_same_bytes():
    scene = scenes("seed", 1)[0]
    first, second, other = (jpeg(render(scene, np.random.default_rng(seed))[0]) for seed in (3, 3, 4))
    assert first == second != other


def test_splits_never_share_a_content():
    seen = {split: set(scenes(split, 800)) for split in SPLITS}
    for split, contents in seen.items():
        assert {split_of(scene) for scene in contents} == {split}
        assert len(contents) > 400  # and none is starved
        for other, others in seen.items():
            assert other == split or not contents & others


def test_objects_stay_on_the_canvas_and_off_the_sign():
    for number, scene in enumerate(scenes("zoo", 300)):
        *objects, sign = place(scene, np.random.default_rng(number))[0]
        assert len(objects) == (2 if scene.relation else scene.count)
        for box in (*objects, sign):
            assert -3 <= box.x0 < box.x1 <= 195 and -3 <= box.y0 < box.y1 <= 195
        assert all(box.y1 <= sign.y0 + 12 or box.y0 >= sign.y1 - 12 for box in objects)


@pytest.mark.parametrize("relation", words.RELATIONS)
def test_relation_is_what_is_drawn(relation):
    scene = Scene((("red", "mug"), ("blue", "box")), relation, 1, "nova")
    for seed in range(50):
        boxes = {box.thing: box for box in place(scene, np.random.default_rng(seed))[0]}
        first, second = boxes[0], boxes[1]
        assert {
            "left": first.x1 < second.x0 + 15,  # boxes may touch, centres are far apart
            "right": first.x0 > second.x1 - 15,
            "above": first.y1 < second.y0 + 8,
            "below": first.y0 > second.y1 - 8,
        }[relation]


def test_captions():
    scene = Scene((("red", "mug"), ("orange", "box")), "left", 1, "nova")
    assert captions.describe(scene) == "a red mug left of an orange box"
    assert (
        captions.full_caption(scene) == "an orange box right of a red mug, sign reads nova"
    )  # box before mug, whichever the scene names first
    assert (
        captions.full_caption(Scene((("green", "fish"),), None, 3, "kiwi"))
        == "three green fish, sign reads kiwi"
    )
    rng = np.random.default_rng(0)
    named = np.mean(["nova" in captions.caption(scene, rng) for _ in range(1000)])
    assert 0.5 < named < 0.67


def test_near_duplicates_differ_a_little_and_defects_much():
    from io import BytesIO
    from pathlib import Path

    from PIL import Image

    scene = scenes("seed", 1)[0]
    files = {
        look: draw(Picture(Path(), scene, (1, 2, 3), look)) for look in ("plain", "again", "blurred", "tiny")
    }
    assert len(set(files.values())) == 4
    images = {look: Image.open(BytesIO(data)) for look, data in files.items()}
    assert 20 <= images["tiny"].width <= 30
    plain, again, blurred = (np.asarray(images[look], dtype=float) for look in ("plain", "again", "blurred"))
    assert abs(plain - again).mean() < 6 < abs(plain - blurred).mean()


def test_questions_have_one_right_option():
    rng = np.random.default_rng(0)
    counted = []
    for scene in scenes("instruction", 1500):
        question = questions.ask(scene, rng)
        choices = questions.options(question, rng)
        assert len(set(choices)) == 4 and choices.count(question.answer) == 1
        if question.topic == "count":
            counted.append(question.answer)
    shares = [counted.count(number) / len(counted) for number in words.NUMBERS]
    assert max(shares) < 0.4  # guessing one number gains little
