"""The check of merges: what PEFT merges by itself passes, and every way in which a merge can be wrong is
named."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from toolkit.__main__ import main
from toolkit.merge_check.adapter import Update

LLAMA = transformers.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
GPT2 = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
BERT = transformers.BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
)
LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "plain": (LLAMA, {"target_modules": LINEAR}),
    "in half precision": (LLAMA, {"target_modules": LINEAR}),
    "rslora": (LLAMA, {"target_modules": LINEAR, "use_rslora": True}),
    "patterns": (
        LLAMA,
        {
            "target_modules": LINEAR,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 3},
        },
    ),
    "dora": (LLAMA, {"target_modules": LINEAR, "use_dora": True}),
    "embeddings": (LLAMA, {"target_modules": ["embed_tokens", "q_proj"]}),
    "a saved head": (LLAMA, {"target_modules": LINEAR, "modules_to_save": ["lm_head"]}),
    "transposed": (GPT2, {"target_modules": ["c_attn", "c_proj"]}),
    "biases": (GPT2, {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "an encoder": (BERT, {"target_modules": ["query", "value"]}),
}


def tune(kind, folder, dtype=torch.float32):
    """base, adapter and merged in `folder`, as PEFT makes them."""
    from peft import LoraConfig, get_peft_model  # after `toolkit`, which lets torchvision be imported

    config, settings = KINDS[kind]
    torch.manual_seed(1)
    tops = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert": "BertModel"}
    model = getattr(transformers, tops[config.model_type])(config).to(dtype)
    model.save_pretrained(folder / "base")
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **settings))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(folder / "adapter")
    tuned.merge_and_unload().save_pretrained(folder / "merged")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tune("plain", tmp_path_factory.mktemp("plain"))


@pytest.fixture
def tree(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "tree")


def run(folder, capsys, *flags):
    status = main(["merge-check", *(str(folder / name) for name in ("base", "adapter", "merged")), *flags])
    return status, capsys.readouterr()


def change(folder, action):
    tensors = load_file(folder / "model.safetensors")
    action(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_merges_is_proved(kind, tmp_path, capsys):
    half = torch.bfloat16 if kind == "in half precision" else torch.float32
    status, printed = run(tune(kind, tmp_path, half), capsys)
    assert status == 0, printed
    assert "the merged model is the base with the adapter" in printed.out
    values = dict(line.split(": ", 1) for line in printed.out.splitlines() if ": " in line)
    assert int(values["tensors_adapted"]) == int(values["tensors_changed"]) > 0
    assert float(values["logits_moved"]) > 2 * float(values["logit_difference"])


Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.1.self_attn.k_proj.weight"
V = "model.layers.1.self_attn.v_proj.weight"


def of_base(tree):
    shutil.rmtree(tree / "merged")
    shutil.copytree(tree / "base", tree / "merged")


def adapted(base, tree):
    from peft import PeftModel

    return PeftModel.from_pretrained(base, tree / "adapter")


def unmerged(tree):
    base = transformers.AutoModelForCausalLM.from_pretrained(tree / "base")
    adapted(base, tree).base_model.model.save_pretrained(tree / "merged")


def twice(tree):
    base = transformers.AutoModelForCausalLM.from_pretrained(tree / "merged")
    adapted(base, tree).merge_and_unload().save_pretrained(tree / "merged")


def other_alpha(tree):
    path = tree / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 9}))


def shape(tree):
    change(tree / "merged", lambda tensors: tensors.update({Q: tensors[Q][:16].clone()}))


def one_missed(tree):
    base = load_file(tree / "base/model.safetensors")
    change(tree / "merged", lambda tensors: tensors.update({Q: base[Q]}))


WRONG = {
    "the base": (of_base, "nothing changed: the merged model is the base"),
    "adapter left": (unmerged, "of the adapter is left in the merged folder"),
    "merged twice": (twice, "holds 2.000 times its update in place of 1.000"),
    "another alpha": (other_alpha, "holds 0.889 times its update in place of 1.000"),
    "one tensor missed": (one_missed, f"{Q}: is the base's: the update was not added"),
    "another tensor changed": (
        lambda tree: change(tree / "merged", lambda tensors: tensors[K].add_(0.01)),
        f"{K}: changed, and the adapter does not touch it",
    ),
    "one number": (
        lambda tree: change(tree / "merged", lambda tensors: tensors[Q][3].sub_(0).__setitem__(0, 0.5)),
        f"{Q}: ",
    ),
    "no number": (
        lambda tree: change(tree / "merged", lambda tensors: tensors[Q][3].__setitem__(0, torch.nan)),
        f"{Q}: has numbers that are not finite",
    ),
    "another shape": (shape, f"{Q}: has shape [16, 32], in the base [32, 32]"),
    "a tensor less": (
        lambda tree: change(tree / "merged", lambda tensors: tensors.pop(K)),
        f"{K} is in the base and not in the merged model",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name, tree, capsys):
    action, problem = WRONG[name]
    action(tree)
    status, printed = run(tree, capsys, "--arithmetic-only")
    assert status == 1 and problem in printed.out
    assert "the merge is not proved" in printed.out


def test_a_module_that_was_trained_whole_is_the_trained_one(tmp_path, capsys):
    tune("a saved head", tmp_path)
    base = load_file(tmp_path / "base/model.safetensors")["lm_head.weight"]
    change(tmp_path / "merged", lambda tensors: tensors["lm_head.weight"].copy_(base))
    status, printed = run(tmp_path, capsys, "--arithmetic-only")
    assert status == 1
    assert "lm_head.weight: is not the tensor that was trained in its place" in printed.out


def test_a_small_update_that_is_missing_shows_in_half_precision(tmp_path, capsys):
    """By the rounding of each number alone it could be there."""
    tune("plain", tmp_path, torch.bfloat16)
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: 0.02 * tensor for name, tensor in tensors.items()}, path)
    shutil.rmtree(tmp_path / "merged")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted(base, tmp_path).merge_and_unload().save_pretrained(tmp_path / "merged")
    assert run(tmp_path, capsys)[0] == 0
    change(
        tmp_path / "merged",
        lambda tensors: tensors[Q].copy_(load_file(tmp_path / "base/model.safetensors")[Q]),
    )
    status, printed = run(tmp_path, capsys, "--arithmetic-only")
    assert status == 1 and f"{Q}: is the base's: the update was not added" in printed.out
    merged, base = (load_file(tmp_path / name / "model.safetensors")[V] for name in ("merged", "base"))
    change(tmp_path / "merged", lambda tensors: tensors[V].copy_((merged + base) / 2))
    assert f"{V}: holds 0.5" in run(tmp_path, capsys, "--arithmetic-only")[1].out


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peft_type": "VERA"}, "is not that of a LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which is not checked"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern has '(a+)+$', which is not checked"),
        ({"r": 0}, "r is 0"),
        ({"lora_bias": True}, "lora_bias is True, which is not checked"),
    ],
)
def test_an_adapter_that_cannot_be_checked_is_refused(settings, problem, tree, capsys):
    path = tree / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    status, printed = run(tree, capsys)
    assert status == 1 and problem in printed.err and "Traceback" not in printed.err


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (torch.zeros(4, 31), "parts of it have shapes [4, 31] and [32, 4]"),
        (torch.zeros(3, 32), "parts of it have shapes [3, 32] and [32, 4]"),
        (torch.zeros(()), "parts of it have shapes [] and [32, 4]"),
        (None, "the adapter has only lora_B of it"),
    ],
)
def test_a_damaged_adapter_is_named(part, problem, tree, capsys):
    path = tree / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(A)
    save_file(tensors | ({A: part} if part is not None else {}), path)
    status, printed = run(tree, capsys, "--arithmetic-only")
    assert status == 1 and f"{Q}: " in printed.out and problem in printed.out
    if part is not None:
        error = run(tree, capsys)[1].err
        assert "error: PEFT cannot load" in error and not error.strip().endswith(":")


def test_convolutions_are_folded_as_peft_does(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3))
    weight = model[0].weight.detach().clone()
    tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=["0"]))
    layer = tuned.base_model.model[0]
    a, b = layer.lora_A["default"].weight.detach(), torch.randn(8, 2, 1, 1)
    layer.lora_B["default"].weight.data.copy_(b)
    merged, _ = Update(1.5, False, {"lora_A": a, "lora_B": b}).of(weight)
    assert torch.allclose(merged, tuned.merge_and_unload()[0].weight, atol=1e-6)


def test_folders_of_something_else_are_one_sentence(tree, capsys):
    config = tree / "merged/config.json"
    kept = config.read_text()
    config.write_text(json.dumps(json.loads(kept) | {"model_type": "mgm_gemma"}))
    assert "`python -m toolkit train merge` proves it" in run(tree, capsys)[1].err
    config.write_text(kept)
    (tree / "base/config.json").unlink()
    assert "holds no config.json" in run(tree, capsys)[1].err
    shutil.rmtree(tree / "adapter")
    (tree / "base/config.json").write_text('{"model_type": "llama"}')
    assert (
        "does not exist" in run(tree, capsys)[1].err or "holds no adapter_config" in run(tree, capsys)[1].err
    )
