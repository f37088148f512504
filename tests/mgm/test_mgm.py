"""The model against tensors of the official code, and its checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from PIL import Image
from safetensors.torch import load_file, save_file

from toolkit.__main__ import main
from toolkit.bench.synthetic import CONFIGS
from toolkit.errors import UserError
from toolkit.mgm import checkpoint
from toolkit.mgm.answer import Answerer
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.parity import Golden, run, strided
from toolkit.mgm.processor import low_resolution, preprocess
from toolkit.mgm.text import TEMPLATES, encode
from toolkit.mgm.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "mgm"
REAL_GEMMA = CONFIGS["2B"].language
REAL_CLIP = {
    **dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
    **dict(image_size=336, patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5),
}


@pytest.mark.numerics
@pytest.mark.parametrize("family", ["mgm", "mgm_vicuna", "mgm_llama3"])
def test_every_golden_case_is_reproduced(family, capsys):
    golden = GOLDEN.parent / family
    assert main(["mgm", "parity", str(golden)]) == 0
    printed = capsys.readouterr().out
    meta = json.loads((golden / "meta.json").read_text())
    assert all(name in printed for name in meta["cases"])
    assert "FAILED" not in printed


@pytest.mark.parametrize("template", ["gemma", "v1", "plain", "llama_3"])
@pytest.mark.parametrize(("question", "answer"), [("say nothing", ""), ("", "a cup"), ("", "")])
def test_an_empty_turn_is_an_open_one(template, question, answer):
    """As in the official conversation.py, which asks `if message`."""
    style = TEMPLATES[template]
    assert style.prompt([question, answer]) == style.prompt([question or None, answer or None])
    expected = {
        "gemma": "<start_of_turn>user\nsay nothing<end_of_turn>\n<start_of_turn>model\n",
        "v1": f"{TEMPLATES['v1'].system} USER: say nothing ASSISTANT:",
        "plain": "say nothing\n",
        "llama_3": (
            f"{TEMPLATES['llama_3'].system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nsay nothing"
            "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
        ),
    }
    if question:
        assert style.prompt([question, answer]) == expected[template]


def test_ids_of_an_empty_answer():
    """18 of them, not 21: neither <end_of_turn>, a line's end nor <eos> follows."""
    tokenizer = load_tokenizer(GOLDEN, 2048)
    turns = [{"from": "human", "value": "say nothing"}, {"from": "gpt", "value": ""}]
    ids, labels = encode(turns, tokenizer, "gemma", has_image=False)
    assert tokenizer.decode(ids[-3:]) == tokenizer.decode(
        tokenizer("<start_of_turn>model\n").input_ids[1:]
    ) and set(labels) == {-100}


@pytest.mark.numerics
def test_the_attention_that_trains_and_answers_gives_the_same_logits():
    golden = Golden(GOLDEN)  # eager, as the golden tensors were made
    batch = golden.batch(golden.meta["cases"]["case_train_mixed"]["samples"], "gemma")
    sdpa = checkpoint.empty(golden.config)
    checkpoint.fill(sdpa, golden.load("weights"), "weights", torch.float32)
    assert (golden.model.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    results = []
    for model in (golden.model, sdpa.eval()):
        with torch.no_grad():
            spliced = model.splice(
                batch["input_ids"], batch["mask"], None, batch["images"], batch["images_aux"]
            )
            results.append(model.logits(spliced)[spliced.layout.mask])
    assert (results[0] - results[1]).abs().max() <= 1e-5


def test_parity_fails_on_other_weights(tmp_path, capsys):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    weights = load_file(GOLDEN / "weights.safetensors")
    weights["model.vlm_uni_query_projector.1.bias"] += 0.01
    save_file(weights, tmp_path / "golden" / "weights.safetensors")
    assert main(["mgm", "parity", str(tmp_path / "golden")]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_parity_notices_a_wrong_generation_order_and_label(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    tensors = load_file(GOLDEN / "case_infer.safetensors")
    tensors["generated_ids"][0, 3] += 1
    save_file(tensors, tmp_path / "golden" / "case_infer.safetensors")
    tokens = json.loads((GOLDEN / "tokenization.json").read_text())
    tokens["sampler"]["indices"][:2] = tokens["sampler"]["indices"][1::-1]
    tokens["gemma"][0]["labels"][-1] = -100
    (tmp_path / "golden" / "tokenization.json").write_text(json.dumps(tokens))
    failed = {what for case in run(tmp_path / "golden") for what, _, _ in case.failed}
    assert failed == {"generated_ids", "sampler", "gemma 0 labels"}


def test_parity_takes_names_from_the_set_and_says_what_is_damaged(tmp_path, capsys):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    meta = json.loads((GOLDEN / "meta.json").read_text())
    cases = {
        "other name": meta["cases"]["case_train_mixed"],
        "case_truncated": meta["cases"]["case_truncated"],
    }
    for number, sample in enumerate(cases["other name"]["samples"]):
        sample["id"] = f"row-{number}"
        sample |= {"image": f"folder/{sample['image']}"} if "image" in sample else {}
    cases["case_truncated"]["sample_ids"] = ["row-0", "row-1", "row-2"]
    (folder / "meta.json").write_text(json.dumps(meta | {"cases": cases}))
    (folder / "case_train_mixed.safetensors").rename(folder / "other name.safetensors")
    assert main(["mgm", "parity", str(folder)]) == 0
    capsys.readouterr()
    (folder / "case_truncated.safetensors").write_bytes(b"short")
    assert main(["mgm", "parity", str(folder)]) == 1
    assert "case_truncated.safetensors is not a readable" in capsys.readouterr().err
    shutil.copy(GOLDEN / "case_truncated.safetensors", folder)
    cases["case_truncated"]["sample_ids"] = ["row-0", "absent"]
    (folder / "meta.json").write_text(json.dumps(meta | {"cases": cases}))
    assert main(["mgm", "parity", str(folder)]) == 1
    assert "no case holds all of the samples" in capsys.readouterr().err
    (folder / "meta.json").write_text(json.dumps(meta | {"config": 5}))
    assert main(["mgm", "parity", str(folder)]) == 1
    assert "is not golden data as expected" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "step"), [(512, 4), (510, 4), (77, 8), (16, 16), (15, 2)])
def test_strided_cuts_as_a_slice_does(size, step):
    tensor = torch.arange(size)
    assert torch.equal(strided(tensor, tensor[::step].shape), tensor[::step])


@pytest.mark.parametrize(
    ("size", "names", "tensors", "gigabytes"),
    [
        ("2B", "mgm/mgm2b", 912, [4.95, 2.14]),
        ("7B", "mgm_vicuna/mgm7b", 1038, [4.94, 4.95, 4.65]),
        ("8B", "mgm_llama3/mgm8b", 1038, [4.98, 5.00, 4.92, 2.22]),
        ("13B", "mgm_vicuna/mgm13b", 1110, [4.98, 4.97, 4.97, 4.93, 4.93, 2.32]),
    ],
)
def test_names_shapes_and_shards_of_the_published_models(size, names, tensors, gigabytes):
    model = checkpoint.empty(CONFIGS[size])
    expected = json.loads((GOLDEN.parent / f"{names}_state_dict_shapes.json").read_text())["shapes"]
    state = {name: tensor.to(torch.bfloat16) for name, tensor in checkpoint.official_state(model).items()}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
    assert len(state) == tensors
    shards = split_torch_state_dict_into_shards(
        state, max_shard_size=checkpoint.SHARD_BYTES
    ).filename_to_tensors.values()
    sizes = [sum(state[name].numel() * 2 for name in names) for names in shards]
    assert [round(size / 1e9, 2) for size in sizes] == gigabytes  # of the published files
    # the official builder takes the whole CLIP tower from the shards that hold the mining modules
    assert (
        len({number for number, names in enumerate(shards) if any("vision_tower." in n for n in names)}) == 1
    )


@pytest.mark.parametrize("family", ["mgm_vicuna", "mgm_llama3"])
@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [("MGMLlamaForCausalLM", "mgm"), ("MiniGeminiLlamaForCausalLM", "mini_gemini")],
)
def test_members_with_llama_are_written_and_read_under_either_name(
    family, architecture, model_type, tmp_path
):
    golden = Golden(GOLDEN.parent / family)
    shards = checkpoint.save_checkpoint(golden.model, tmp_path, golden.tokenizer, shard_bytes=300_000)
    assert len(shards) > 2
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    assert (raw["architectures"], raw["model_type"]) == (["MGMLlamaForCausalLM"], "mgm")
    assert raw["tie_word_embeddings"] is False
    path.write_text(json.dumps(raw | {"architectures": [architecture], "model_type": model_type}))
    again = checkpoint.load_checkpoint(tmp_path)
    assert again.lm_head.weight is not again.model.embed_tokens.weight
    expected, state = golden.load("weights"), checkpoint.official_state(again)
    assert list(state) == list(checkpoint.official_state(golden.model)) and state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in state.items())
    assert again.mgm.language == golden.config.language
    question = "what is this?\n"
    tokenizer = load_tokenizer(tmp_path, 2048)
    assert tokenizer(question).input_ids == golden.tokenizer(question).input_ids


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_llama_folder_is_built_from_shards_of_either_kind(kind, tmp_path, parts):
    """Vicuna's are .bin files, and hold the rotary frequencies, which follow from the configuration."""
    golden = Golden(GOLDEN.parent / "mgm_vicuna")
    llm = {
        name: tensor
        for name, tensor in golden.load("weights").items()
        if name.startswith(("model.layers", "model.embed_tokens", "model.norm", "lm_head"))
    }
    names = sorted(llm)
    halves = [{name: llm[name] for name in part} for part in (names[:9], names[9:])]
    halves[1]["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    placed = {}
    for number, half in enumerate(halves, start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        save_file(half, tmp_path / file) if kind == "safetensors" else torch.save(half, tmp_path / file)
        placed |= dict.fromkeys(half, file)
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": placed}))
    (tmp_path / "config.json").write_text(json.dumps(golden.meta["tiny_llama_config"]))
    model = checkpoint.build(tmp_path, parts.clip, parts.convnext, image_size_aux=128)
    assert all(torch.equal(model.get_parameter(name), tensor.float()) for name, tensor in llm.items())
    assert model.model.rotary_emb.inv_freq[0] == 1 and model.model.rotary_emb.inv_freq[1] < 1
    (tmp_path / "config.json").write_text(
        json.dumps(golden.meta["tiny_llama_config"] | {"architectures": ["MixtralForCausalLM"]})
    )
    with pytest.raises(UserError, match="names the architecture"):
        checkpoint.build(tmp_path, parts.clip, parts.convnext, image_size_aux=128)


@pytest.fixture
def model(parts):
    return checkpoint.build(
        parts.llm, parts.clip, parts.convnext, seed=3, image_size_aux=128, model_max_length=256
    )


def test_checkpoint_round_trip_in_shards_whatever_the_folder_is_called(model, parts, tmp_path):
    folder = tmp_path / "any name"
    shards = checkpoint.save_checkpoint(model, folder, load_tokenizer(parts.llm, 256), shard_bytes=200_000)
    assert len(shards) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert index["metadata"]["total_size"] == sum(
        t.numel() * 4 for t in checkpoint.official_state(model).values()
    )
    again = checkpoint.load_checkpoint(folder)
    for name, tensor in checkpoint.official_state(model).items():
        assert torch.equal(tensor, checkpoint.official_state(again)[name]), name
    assert again.mgm.clip == model.mgm.clip
    assert again.lm_head.weight is again.model.embed_tokens.weight
    shards[1].unlink()
    with pytest.raises(UserError, match="missing"):
        checkpoint.load_checkpoint(folder)


def test_a_trained_model_is_trained_further(model, parts, tmp_path):
    """In the language model's place, with the same towers."""
    checkpoint.save_checkpoint(model, tmp_path / "own", load_tokenizer(parts.llm, 256))
    settings = {"image_size_aux": 128, "model_max_length": 256}
    further = checkpoint.build(tmp_path / "own", parts.clip, parts.convnext, seed=8, **settings)
    for name, tensor in checkpoint.official_state(model).items():
        assert torch.equal(checkpoint.official_state(further)[name], tensor), name
    # the proof of a merge starts from nothing between the parts, as with a language model
    proof = checkpoint.build(tmp_path / "own", parts.clip, parts.convnext, seed=None, **settings)
    assert proof.model.mm_projector[0].weight.isnan().all()

    with torch.no_grad():
        model.model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight.add_(1.0)
    checkpoint.save_checkpoint(model, tmp_path / "other", load_tokenizer(parts.llm, 256))
    with pytest.raises(UserError, match="other was trained with another tower than the given tower"):
        checkpoint.build(tmp_path / "other", parts.clip, parts.convnext, seed=8, **settings)


def test_damaged_and_foreign_weights_are_named(parts, tmp_path):
    shutil.copytree(parts.llm, tmp_path / "llm")
    file = tmp_path / "llm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors is not a readable"):
        checkpoint.build(tmp_path / "llm", parts.clip, parts.convnext)
    with pytest.raises(UserError, match="no ConvNeXt"):
        checkpoint.build(parts.llm, parts.clip, parts.clip)
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint.Weights(tmp_path)


def test_projector_file_has_the_official_content(model, tmp_path, parts):
    checkpoint.save_projector(model, tmp_path / "mm_projector.bin")
    names = set(torch.load(tmp_path / "mm_projector.bin", weights_only=True))
    assert names == {
        n
        for n in checkpoint.official_state(model)
        if "embed" not in n.split(".")[1]
        and n.split(".")[1] not in ("layers", "norm")
        and n != "lm_head.weight"
    }
    other = checkpoint.build(parts.llm, parts.clip, parts.convnext, seed=4, image_size_aux=128)
    checkpoint.load_projector(other, tmp_path / "mm_projector.bin", torch.float32)
    assert torch.equal(other.model.mm_projector[0].weight, model.model.mm_projector[0].weight)
    checkpoint.save_projector(model, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "mm_projector.bin").read_bytes()


def test_towers_stay_in_eval_mode(model):
    model.train()
    assert model.training
    assert not any(module.training for module in model.model.vision_tower_aux.modules())
    assert not any(module.training for module in model.model.vision_tower.modules())


@pytest.mark.numerics
def test_answers_do_not_depend_on_the_batch(model, parts, tmp_path):
    checkpoint.save_checkpoint(model, tmp_path / "m", load_tokenizer(parts.llm, 256))
    prompts = [
        "what is this?",
        "describe this image.\nIs it red or blue or the answer?",
        "the",
        "what is 2+2?",
    ]
    pictures = [Image.new("RGB", (50 + 9 * n, 60), (60 * n, 20, 90)) for n in range(3)] + [None]
    together = Answerer(tmp_path / "m", "cpu", batch_size=4).answer(prompts, pictures, 8)
    alone = Answerer(tmp_path / "m", "cpu", batch_size=1).answer(prompts, pictures, 8)
    assert together == alone
    assert all(together)


def test_low_resolution_image_does_not_depend_on_the_number_of_threads():
    config = MGMConfig(language=REAL_GEMMA, clip=REAL_CLIP, depths=(1,), dims=(8,))
    low, high = preprocess(Image.effect_noise((500, 400), 90).convert("RGB"), config)
    assert low.shape == (3, 336, 336) and high.shape == (3, 768, 768)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(low_resolution(high[None], config)[0], low)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
