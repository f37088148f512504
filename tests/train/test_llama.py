"""Both stages, the merge and its proof with a tiny random Llama, whose output layer is its own."""

import json

import pytest
import torch
from tiny_training import changed, job, merge

from toolkit.errors import UserError
from toolkit.mgm import checkpoint
from toolkit.train import stages

SHORT = changed("tiny_llama", micro_batch=4, save_steps=2)
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def projector(llama_parts, conversations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    stages.pretrain(job(llama_parts, conversations, folder, scale=SHORT))
    return folder / "mm_projector.bin"


def finetuned(parts, conversations, projector, folder, lora):
    stages.finetune(job(parts, conversations, folder, scale=SHORT), projector, lora)
    assert merge(parts, folder) == 0
    return json.loads((folder / "merge.json").read_text())["results"]


def test_stage_1_trains_what_the_official_code_trains(projector, llama_parts):
    before = checkpoint.build(
        llama_parts.llm, llama_parts.clip, llama_parts.convnext, seed=1, image_size_aux=128
    )
    after = torch.load(projector, weights_only=True)
    assert not {name for name in after if name.startswith(("model.layers", "lm_head", "model.embed"))}
    record = json.loads((projector.parent / "run.json").read_text())
    trained = [name for name in after if "mm_projector" in name or "vlm_uni" in name]
    assert record["results"]["trained_parameters"] == sum(after[name].numel() for name in trained)
    state = checkpoint.official_state(before)
    assert all(
        torch.equal(after[name], state[name].to(after[name].dtype)) for name in after if "tower" in name
    )


@pytest.mark.numerics
@pytest.mark.parametrize("base", ["full", "nf4", "fp8"])
def test_the_adapter_is_merged_and_proved_and_leaves_the_head_alone(
    base, projector, llama_parts, conversations, tmp_path
):
    results = finetuned(llama_parts, conversations, projector, tmp_path / "f", stages.Lora(8, 16, 0.1, base))
    assert results["max_logit_difference"] <= results["tolerance"]
    assert results["tensors_changed"] == 21  # seven linear layers in each of three blocks
    merged, llm = checkpoint.Weights(tmp_path / "f/merged"), checkpoint.Weights(llama_parts.llm)
    assert torch.equal(merged[HEAD], llm[HEAD].to(merged[HEAD].dtype))
    assert not torch.equal(merged[HEAD], merged["model.embed_tokens.weight"])


def test_full_finetuning_trains_the_head(projector, llama_parts, conversations, tmp_path):
    results = finetuned(llama_parts, conversations, projector, tmp_path / "f", None)
    tuned, llm = checkpoint.Weights(tmp_path / "f"), checkpoint.Weights(llama_parts.llm)
    assert not torch.equal(tuned[HEAD], llm[HEAD].to(tuned[HEAD].dtype))
    assert not torch.equal(tuned[HEAD], tuned["model.embed_tokens.weight"])
    assert results["tensors_changed"] == 3 + 9 * 3  # embeddings, last norm, head; nine in each block


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may train by DeepSpeed")
@pytest.mark.parametrize("lora", [None, stages.Lora(8, 16, 0.1, "full")])
def test_the_kits_setting_is_for_full_finetuning_on_a_gpu(
    projector, llama_parts, conversations, tmp_path, lora
):
    asked = job(llama_parts, conversations, tmp_path / "f", scale=SHORT, deepspeed="zero2")
    with pytest.raises(UserError, match=r"--deepspeed is for the full finetuning .* on a GPU"):
        stages.finetune(asked, projector, lora)


def test_a_scale_is_for_its_language_model(parts, llama_parts, conversations, tmp_path):
    with pytest.raises(UserError, match="holds a gemma, the scale tiny_llama is for llama"):
        stages.pretrain(job(parts, conversations, tmp_path / "a", scale=SHORT))
    with pytest.raises(UserError, match="holds a llama, the scale tiny is for gemma"):
        stages.pretrain(job(llama_parts, conversations, tmp_path / "b"))


def test_the_first_stage_has_a_template_of_its_own(llama_parts, conversations, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "Conversations", lambda *given: seen.append(given[-1]) or 1 / 0)
    for template, expected in (("plain", "plain"), (None, "llama_3")):
        scale = SHORT.model_copy(update={"caption_template": template})
        with pytest.raises(ZeroDivisionError):
            stages.pretrain(job(llama_parts, conversations, tmp_path / expected, scale=scale))
        assert seen.pop() == expected
