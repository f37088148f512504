"""Rows of the embedded world for the operators that run a model of the zoo."""

from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.data.recipe.statistic_names import COMPUTED
from toolkit.world import build
from toolkit.world.captions import full_caption
from toolkit.world.scene import Scene, render, sample_scene

ZOO = Path(build.__file__).parent / "zoo"


def row(caption: str, image: Path | None = None) -> dict:
    """A row as an operator gets it."""
    return {"text": f"<__dj__image>\n{caption} <|__dj__eoc|>", "images": [str(image)] if image else []}


def scene_rows(folder: Path, count: int) -> tuple[list[Scene], list[dict]]:
    """`count` scenes that no model of the zoo was trained on, and a row for each: its image in `folder` and
    its full caption."""
    random, scenes, rows = np.random.default_rng([78, count]), [], []
    for number in range(count):
        scene = sample_scene(random, "tuning")
        image, _ = render(scene, random)
        image.save(folder / f"{number}.jpg", quality=90)
        scenes.append(scene)
        rows.append(row(full_caption(scene), folder / f"{number}.jpg"))
    return scenes, rows


def changed(rows: list[dict], change) -> list[dict]:
    """The rows with images put through `change`, beside the originals."""
    made = []
    for one in rows:
        path = Path(one["images"][0])
        path = path.with_name(f"changed-{path.name}")
        change(Image.open(one["images"][0])).save(path, quality=90)
        made.append({**one, "images": [str(path)]})
    return made


def statistics(operator, rows: list[dict], name: str) -> list:
    """The operator's statistic of every row."""
    columns = {key: [one[key] for one in rows] for key in ("text", "images")}
    found = operator.compute_stats_batched({**columns, "__dj__stats__": [{} for _ in rows]})["__dj__stats__"]
    assert all(set(actual) == set(COMPUTED[operator._name]) for actual in found)
    return [actual[name] for actual in found]


def depends_on_its_row_alone(operator, rows: list[dict], name: str) -> None:
    """To the last bit, whatever stands beside a row."""
    together = statistics(operator, rows, name)
    assert statistics(operator, rows[::-1], name) == together[::-1]
    assert [statistics(operator, [one], name)[0] for one in rows[:4]] == together[:4]
