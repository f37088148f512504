"""The loss filter: the loss that training has, whatever stands beside a row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from world_rows import depends_on_its_row_alone, row, scene_rows, statistics

from toolkit.data import recipe
from toolkit.data.engine.pipeline import Walk
from toolkit.data.engine.scores import Scores
from toolkit.data.engine.statistics import WalkRow
from toolkit.data.samples import caption_of
from toolkit.mgm import checkpoint
from toolkit.mgm.text import template_of
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.studies.defects import study
from toolkit.train.dataset import Conversations
from toolkit.train.sweep import row_losses

pytestmark = pytest.mark.usefixtures("offline")
NAME, PROMPT = "caption_loss", "Give a short caption."
LENGTH = 256  # tokens that the model reads
# The operator computes in bf16 on a GPU. What it is compared with is computed in float32 on the CPU.
ROUNDING = 0.02 if torch.cuda.is_available() else 1e-3


def model_of(parts: Any, folder: Path) -> Path:
    """An MGM of `parts` with random weights, as training leaves it."""
    model = checkpoint.build(
        parts.llm, parts.clip, parts.convnext, image_size_aux=64, model_max_length=LENGTH
    )
    checkpoint.save_checkpoint(model, folder, load_tokenizer(parts.llm, LENGTH))
    return folder


@pytest.fixture(scope="module")
def folder(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of(parts, tmp_path_factory.mktemp("mgm"))


def loss(folder: Path, **arguments: Any) -> Any:
    from toolkit.data.operators.caption_loss_filter import CaptionLossFilter

    return CaptionLossFilter(hf_mgm=str(folder), rows_at_once=4, **arguments)


def as_training_sees_it(folder: Path, rows: list[dict], question: str, work: Path) -> list[float]:
    """The losses by which the strategy curriculum orders the rows, asked `question`."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    samples = [
        {
            "id": str(number),
            "image": each["images"][0],
            "conversations": [*turns, {"from": "gpt", "value": caption_of(each["text"])}],
        }
        for number, each in enumerate(rows)
    ]
    (work / "samples.json").write_text(json.dumps(samples))
    words, model = load_tokenizer(folder, LENGTH), checkpoint.load_checkpoint(folder)
    data = Conversations(work / "samples.json", "/", words, model.mgm, template_of(words))
    return row_losses(model, data, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["parts", "llama_parts"])
def test_the_statistic_is_the_loss_of_training(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = model_of(request.getfixturevalue(kind), tmp_path / "mgm")
    _, rows = scene_rows(tmp_path, 9)
    image = Path(rows[0]["images"][0])
    rows += [row(text, image) for text in ("mug", "!?", "一个红色的杯子", "a red mug " * 300)]
    rows.append(row(caption_of(rows[0]["text"]), Path(rows[1]["images"][0])))  # the caption of another image
    losses = statistics(loss(folder), rows, NAME)
    expected = as_training_sees_it(folder, rows, PROMPT, tmp_path)
    assert losses == pytest.approx(expected, abs=ROUNDING) and len(set(losses)) == len(losses)
    other = statistics(loss(folder, prompt="What is shown?"), rows, NAME)
    expected = as_training_sees_it(folder, rows, "What is shown?", tmp_path)
    assert other == pytest.approx(expected, abs=ROUNDING)
    assert abs(other[0] - losses[0]) > ROUNDING


def test_other_rows_reach_no_result_and_an_empty_caption_has_none(folder: Path, tmp_path: Path) -> None:
    _, rows = scene_rows(tmp_path, 7)
    empty = row("", Path(rows[0]["images"][0]))
    depends_on_its_row_alone(loss(folder), [*rows, empty], NAME)
    assert statistics(loss(folder), [empty], NAME) == [0.0] and statistics(loss(folder), [], NAME) == []
    assert loss(folder)._reads == "both"
    with pytest.raises(ValueError, match="not exactly one image"):
        statistics(loss(folder), [row("a red mug")], NAME)


def test_either_end_can_be_kept(folder: Path) -> None:
    def kept(**limits: float) -> list[bool]:
        operator = loss(folder, **limits)
        return [operator.process_single({"__dj__stats__": {NAME: value}}) for value in (0.5, 2.0, 9.0)]

    assert kept() == [True] * 3
    assert kept(min_loss=2.0) == [False, True, True] and kept(max_loss=2.0) == [True, True, False]


def test_the_recipes_keep_either_half(folder: Path, tmp_path: Path) -> None:
    _, rows = scene_rows(tmp_path, 9)
    seeds = [
        WalkRow(place, each["text"], each["images"][0], bytes([place])) for place, each in enumerate(rows)
    ]
    kept = {}
    for name in ("hardest_half", "easiest_half"):
        loaded = recipe.load(Path(f"solution/recipes/{name}.yaml"), {"mgm": folder})
        outcome = Walk(loaded, Scores(tmp_path / "scores.sqlite"), tmp_path).select(seeds)
        kept[name] = {each.seed for each in outcome.rows}
    order = sorted(range(9), key=statistics(loss(folder), rows, NAME).__getitem__)
    assert kept == {"hardest_half": set(order[4:]), "easiest_half": set(order[:5])}


def test_the_study_runs_it_with_a_model_that_is_given(folder: Path, tmp_path: Path) -> None:
    result = study(tmp_path, ["easiest_half"], {"mgm": folder}, 40, 1)["recipes"]["easiest_half"]
    assert result["kept"] == 21 and result["model_calls"] == 40  # the limit keeps the upper middle row
