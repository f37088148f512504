"""The merge: its proof, and that nothing but the trained files becomes a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import merge, relist

from toolkit.errors import UserError
from toolkit.evaluate.answer_file import Checkpoint
from toolkit.files import sha256, write_json
from toolkit.mgm import checkpoint
from toolkit.train import merge as module
from toolkit.train.inputs import BaseModels

OTHERS, ADAPTER = "non_lora_trainables.bin", "adapter_model.safetensors"
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def finetuned(trained, tmp_path):
    """A finetuning's folder to damage."""
    return shutil.copytree(trained / "finetune", tmp_path / "f", ignore=shutil.ignore_patterns("merge*"))


@pytest.fixture(scope="module")
def proved(trained, parts, tmp_path_factory):
    """A finetuning's folder with its merged checkpoint."""
    folder = tmp_path_factory.mktemp("proved") / "f"
    shutil.copytree(trained / "finetune", folder, ignore=shutil.ignore_patterns("merge*"))
    assert merge(parts, folder) == 0
    return folder


@pytest.mark.numerics
def test_merge_folds_and_proves(proved, parts):
    results = json.loads((proved / "merge.json").read_text())["results"]
    assert results["max_logit_difference"] <= results["tolerance"] <= 1e-4
    assert results["tensors_changed"] == 14  # seven linear layers in each of two blocks
    merged, base = checkpoint.Weights(proved / "merged"), checkpoint.Weights(parts.llm)
    adapter = load_file(proved / ADAPTER)
    layer = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{layer}.lora_{half}.weight"] for half in "AB")
    torch.testing.assert_close(merged[f"{layer}.weight"], base[f"{layer}.weight"].float() + 2.0 * b @ a)
    assert results["shards"] == {path.name: sha256(path) for path in merged.files()}
    others = torch.load(proved / OTHERS, weights_only=True)
    assert all(
        torch.equal(merged[name.removeprefix("base_model.model.")], tensor.to(torch.float32))
        for name, tensor in others.items()
    )
    assert len(others) == 16


def change_bin(change):
    """Damage to the projector's file."""

    def damage(folder: Path) -> None:
        torch.save(change(torch.load(folder / OTHERS, weights_only=True)), folder / OTHERS)

    return OTHERS, damage


def change_adapter(change):
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / ADAPTER)), folder / ADAPTER, metadata={"format": "pt"})

    return ADAPTER, damage


def change_json(name: str, change):
    def damage(folder: Path) -> None:
        write_json(folder / name, change(json.loads((folder / name).read_text())))

    return name, damage


def first(tensors: dict) -> str:
    return min(tensors)


NEEDED = "base_model.model.model.mm_projector.0.weight"
DAMAGES = {
    "no projector": (
        *change_bin(lambda old: {}),
        "it lacks model.mm_projector.0.bias; it lacks model.mm_projector.0.weight",
    ),
    "half of the projector": (
        *change_bin(lambda old: dict(list(old.items())[::2])),
        "it lacks model.mm_projector.0.bias",
    ),
    "one tensor more": (
        *change_bin(lambda old: old | {"base_model.model.model.norm.weight": torch.ones(64)}),
        "unexpected tensor",
    ),
    "another shape": (*change_bin(lambda old: old | {NEEDED: old[NEEDED].T.contiguous()}), "has shape"),
    "whole numbers": (*change_bin(lambda old: old | {NEEDED: old[NEEDED].long()}), "is of type int64"),
    "no dict": (*change_bin(list), "holds no dict of tensors"),
    "no adapter": (
        *change_adapter(lambda old: {"x": torch.ones(1)}),
        "unexpected tensor x; it lacks model.layers.0.self_attn.q_proj",
    ),
    "a layer less": (
        *change_adapter(lambda old: {k: v for k, v in old.items() if "layers.0.self_attn.q" not in k}),
        "it lacks model.layers.0",
    ),
    "half a layer": (
        *change_adapter(lambda old: {k: v for k, v in old.items() if k != QUERY}),
        "it lacks model.layers.0.self_attn.q_proj.lora_A",
    ),
    "another rank": (*change_adapter(lambda old: old | {QUERY: old[QUERY][:4].clone()}), "has shape"),
    "B is zero": (
        *change_adapter(lambda old: {k: v * 0 if "lora_B" in k else v for k, v in old.items()}),
        "changes no weight",
    ),
    "B is not a number": (
        *change_adapter(lambda old: {k: v * torch.nan if "lora_B" in k else v for k, v in old.items()}),
        "differ by nan",
    ),
    "rank 0 in the configuration": (
        *change_json("adapter_config.json", lambda old: old | {"r": 0}),
        "r is 0, by the training's record 16",
    ),
    "no alpha": (
        *change_json("adapter_config.json", lambda old: {k: v for k, v in old.items() if k != "lora_alpha"}),
        "lora_alpha is None",
    ),
    "another scaling": (
        *change_json("adapter_config.json", lambda old: old | {"use_rslora": True}),
        "use_rslora is True",
    ),
    "no configuration": (
        *change_json("adapter_config.json", lambda old: []),
        "adapter_config.json is not a JSON object",
    ),
    "another image size": (
        *change_json("config.json", lambda old: old | {"image_size_aux": 256}),
        "config.json is not of the model",
    ),
}


@pytest.mark.parametrize(("name", "damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_not_the_trained_one_is_refused_by_its_hash_and_by_its_content(
    name, damage, problem, finetuned, parts, capsys
):
    damage(finetuned)
    assert merge(parts, finetuned) == 1
    assert f"{name} is not the file that {finetuned}/run.json lists (sha256)" in capsys.readouterr().err
    relist(finetuned, name)
    assert merge(parts, finetuned) == 1
    said = capsys.readouterr().err
    assert problem in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (finetuned / "merge.json").exists()


RECORDS = {
    "no list": (lambda old: {k: v for k, v in old.items() if k != "outputs"}, "outputs: Field required"),
    "not in the list": (lambda old: old | {"outputs": {}}, "is not among the files that"),
    "no base": (lambda old: old | {"inputs": {}}, "was trained on another base"),
    "another stage": (lambda old: old | {"stage": "pretrain"}, "is the record of the stage 'pretrain'"),
    "no division": (
        lambda old: old | {"settings": {"scale": "tiny"}},
        "settings lack the scale or the division",
    ),
    "no adapter's settings": (
        lambda old: old | {"settings": {"scale": "tiny", "division": "open"}},
        "settings.lora lacks",
    ),
    "rank 0": (
        lambda old: old | {"settings": old["settings"] | {"lora": {"rank": 0, "alpha": 32, "dropout": 0.1}}},
        "settings.lora",
    ),
    "no object": (lambda old: [7], "is not a record of a stage"),
}


@pytest.mark.parametrize(("change", "problem"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_lacks_something_is_named(change, problem, finetuned, parts, capsys):
    change_json("run.json", change)[1](finetuned)
    assert merge(parts, finetuned) == 1
    said = capsys.readouterr().err
    assert problem in said and said.startswith("error: ") and said.count("\n") == 1


def test_the_proof_sees_what_the_loader_forgets(finetuned, parts, monkeypatch, capsys):
    """Neither a tensor that is left out nor one that is made anew passes, whatever `fill` lets through."""
    load_others = module.load_others

    def zeros(model, *rest):
        load_others(model, *rest)
        torch.nn.init.zeros_(model.model.mm_projector[0].bias)

    monkeypatch.setattr(module, "load_others", zeros)
    assert merge(parts, finetuned) == 1
    assert "model.mm_projector.0.bias is not the tensor that was trained" in capsys.readouterr().err
    monkeypatch.setattr(module, "assert_trained", lambda *_: None)
    assert merge(parts, finetuned) == 1
    assert "logits of adapter model and merged model differ" in capsys.readouterr().err
    monkeypatch.setattr(module, "load_others", lambda *_: None)  # nothing fresh is there to take their place
    assert merge(parts, finetuned) == 1
    assert "logits of adapter model and merged model differ by nan" in capsys.readouterr().err
    assert not (finetuned / "merge.json").exists()


def test_merge_refuses_another_base(finetuned, parts, tmp_path, capsys):
    for name in ("llm", "clip", "convnext"):
        for file in getattr(parts, name).iterdir():
            folders = {part: getattr(parts, part) for part in ("llm", "clip", "convnext")}
            folders[name] = shutil.copytree(getattr(parts, name), tmp_path / file.name / name)
            if file.suffix == ".json":
                (folders[name] / file.name).write_bytes(file.read_bytes() + b"\n")
            else:
                weights = load_file(file)
                save_file(
                    weights | {min(weights): weights[min(weights)] + 0.01},
                    folders[name] / file.name,
                    metadata={"format": "pt"},
                )
            with pytest.raises(
                UserError, match=f"was trained on another base: .*{file.name} has changed since"
            ):
                module.merge(finetuned, BaseModels(**folders), finetuned / "merge.json", [])


def test_a_checkpoint_is_evaluated_only_as_it_was_proved(proved, tmp_path):
    listed = json.loads((proved / "merge.json").read_text())["outputs"]
    assert listed.keys() == {path.name for path in (proved / "merged").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= listed.keys()
    assert Checkpoint(proved).path == proved / "merged"
    for name in listed:
        folder = shutil.copytree(proved, tmp_path / name)
        file = folder / "merged" / name
        content = file.read_bytes()
        file.write_bytes(content[:-2] + b" " + content[-1:])
        with pytest.raises(UserError, match=f"{name} is not the file that .*merge.json lists"):
            Checkpoint(folder)
        file.unlink()
        with pytest.raises(UserError, match=f"{name} does not exist, .*merge.json lists it"):
            Checkpoint(folder)
    (folder / "merged" / "added_tokens.json").write_text("{}")
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"added_tokens.json is not among the files that .*merge.json lists"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [lambda old: [], lambda old: old | {"outputs": 3}, lambda old: old | {"results": {}}, lambda old: {}],
)
def test_a_proof_that_lacks_something_is_named(change, proved, tmp_path):
    folder = shutil.copytree(proved, tmp_path / "f")
    change_json("merge.json", change)[1](folder)
    with pytest.raises(UserError, match=r"merge.json (is not a record|names no checkpoint)"):
        Checkpoint(folder)


def test_only_a_checkpoint_of_this_program_is_replaced(finetuned, parts, capsys):
    assert merge(parts, finetuned) == 0
    proof = sha256(finetuned / "merge.json")
    (finetuned / "merged" / "notes.txt").write_text("mine")
    (finetuned / "merged" / "model-00009-of-00009.safetensors").write_text("of a larger merge")
    assert merge(parts, finetuned) == 0
    assert (finetuned / "merged" / "notes.txt").read_text() == "mine"
    assert (
        not (finetuned / "merged" / "model-00009-of-00009.safetensors").exists()
        and sha256(finetuned / "merge.json") == proof
    )
    shutil.rmtree(finetuned / "merged")
    (finetuned / "merged").mkdir()
    (finetuned / "merged" / "config.json").write_text('{"mine": 1}')
    assert merge(parts, finetuned) == 1
    assert (
        "merged/config.json is not a file of a checkpoint that this program wrote" in capsys.readouterr().err
    )
    (finetuned / "merge.json").write_text('{"mine": 1}')
    assert merge(parts, finetuned) == 1
    assert "merge.json is not a record of a stage" in capsys.readouterr().err
    assert (
        (finetuned / "merged" / "config.json").read_text()
        == (finetuned / "merge.json").read_text()
        == '{"mine": 1}'
    )
