"""Models of recipes: whole or refused, and without gradients."""

import functools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from world_rows import ZOO, scene_rows

from toolkit.data import recipe
from toolkit.data.engine import juicer
from toolkit.errors import UserError

pytestmark = pytest.mark.usefixtures("offline")


def computed(name: str, arguments: dict[str, Any], rows: list[dict]) -> list[str]:
    """What an operator computes of rows, as a recipe runs it."""
    job = juicer.Job(((1, name, json.dumps(arguments)),))
    contents = [(row["text"], row["images"][0], None) for row in rows]
    return juicer.compute(job, contents, [range(len(rows))])[0]


@pytest.mark.parametrize(
    ("model", "operator", "argument", "weights"),
    [
        ("watermark", "image_watermark_filter", "hf_watermark_model", "classifier."),
        ("perplexity", "batched_perplexity_filter", "hf_model", "transformer.h.0.ln_1"),
        ("sentences", "sentence_embedding_filter", "hf_sentences", "embeddings.LayerNorm"),
    ],
)
def test_a_model_without_some_of_its_weights_is_refused(
    model: str, operator: str, argument: str, weights: str, tmp_path: Path
) -> None:
    shutil.copytree(ZOO / model, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(weights)}
    assert len(load_file(file)) - len(tensors) == 2
    save_file(tensors, file, {"format": "pt"})
    _, rows = scene_rows(tmp_path, 1)
    loading = PreTrainedModel.__dict__["from_pretrained"]
    with pytest.raises(UserError, match=rf"step 1 .*lacks 2 of the weights of a \w+, {weights}"):
        computed(operator, {argument: str(tmp_path / "model")}, rows)
    assert PreTrainedModel.__dict__["from_pretrained"] is loading


@pytest.mark.parametrize(
    ("operator", "argument", "model", "message"),
    [
        ("batched_similarity_filter", "hf_clip", "gemma", "gemma holds a GemmaForCausalLM, where CLIP is"),
        ("batched_matching_filter", "hf_blip", "clip", "holds a CLIPModel, where BLIP for matching is"),
        ("batched_captioning_mapper", "hf_img2seq", "clip", "where a captioner is"),
        ("batched_perplexity_filter", "hf_model", "clip", "where a causal language model is"),
        ("caption_loss_filter", "hf_mgm", "gemma", "where an MGM is"),
        ("image_nsfw_filter", "hf_nsfw_model", "clip", "where an image classifier is"),
        ("sentence_embedding_filter", "hf_sentences", "gemma", "where an encoder of sentences is"),
    ],
)
def test_a_model_of_another_kind_is_refused_before_anything_runs(
    operator: str, argument: str, model: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(f'process: [{{{operator}: {{{argument}: "{{given}}"}}}}]')
    with pytest.raises(UserError) as caught:
        recipe.load(tmp_path / "recipe.yaml", {"given": ZOO / model})
    assert message in str(caught.value)


def test_a_model_that_is_whole_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    _, rows = scene_rows(tmp_path, 1)
    shutil.copytree(ZOO / "sentences", tmp_path / "model")  # which no other test has loaded
    assert computed("sentence_embedding_filter", {"hf_sentences": str(tmp_path / "model")}, rows)
    assert not said  # of the pooler, which it has not, and does not need


def test_nothing_is_kept_for_a_backward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.data.operators.image_watermark_filter import ImageWatermarkFilter

    gradients, compute = [], ImageWatermarkFilter.compute_stats_batched

    @functools.wraps(compute)
    def watched(*arguments: Any, **keywords: Any) -> Any:
        gradients.append(torch.is_grad_enabled())
        return compute(*arguments, **keywords)

    monkeypatch.setattr(ImageWatermarkFilter, "compute_stats_batched", watched)
    _, rows = scene_rows(tmp_path, 2)
    computed("image_watermark_filter", {"hf_watermark_model": str(ZOO / "watermark")}, rows)
    assert gradients == [False] and torch.is_grad_enabled()
