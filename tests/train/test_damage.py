"""Whatever happens to the files of a finished training, the next stage ends in one sentence or with the right
result."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_training import merge, relist

from toolkit.errors import UserError
from toolkit.evaluate.answer_file import Checkpoint
from toolkit.files import sha256
from toolkit.mgm.checkpoint import load_checkpoint, official_state
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.train.inputs import BaseModels
from toolkit.train.merge import merge as merged

TRAINED = [
    "run.json",
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "non_lora_trainables.bin",
]
TINY = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.sampled_from([None, 0, -1, 7, 1e300, "", "x", [], {}, [[]], True, "9" * 50])


@pytest.fixture(scope="module")
def whole(trained, parts, tmp_path_factory):
    """A finetuning's folder with its merged checkpoint."""
    folder = tmp_path_factory.mktemp("whole") / "f"
    shutil.copytree(trained / "finetune", folder, ignore=shutil.ignore_patterns("merge*"))
    assert merge(parts, folder) == 0
    return folder


def damage_bytes(file: Path, data: st.DataObject) -> None:
    """Some bytes flipped, cut off, added, or put at another place."""
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "swap", "empty"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "add":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    elif kind == "swap":
        content = content[place:] + content[:place]
    else:
        content.clear()
    file.write_bytes(content)


def damage_json(file: Path, data: st.DataObject) -> None:
    """A key of any depth taken away or with another value."""
    value = inner = json.loads(file.read_text())
    key = data.draw(st.sampled_from(sorted(inner)))
    while isinstance(inner[key], dict) and inner[key] and data.draw(st.booleans()):
        inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner)))
    if data.draw(st.booleans()):
        del inner[key]
    else:
        inner[key] = data.draw(VALUES)
    file.write_text(json.dumps(value))


def damage_tensors(file: Path, data: st.DataObject) -> None:
    """Tensors taken away, renamed, of another shape or type."""
    tensors = torch.load(file, weights_only=True) if file.suffix == ".bin" else load_file(file)
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from(["less", "renamed", "flat", "shorter", "whole", "double", "more"]))
    tensor = tensors[name] if kind == "more" else tensors.pop(name)
    if kind != "less":
        shape = {
            "flat": lambda t: t[None],
            "shorter": lambda t: t[:-1],
            "whole": lambda t: t.int(),
            "double": lambda t: t.double(),
        }
        new = f"{name}x" if kind in ("renamed", "more") else name
        tensors[new] = shape.get(kind, lambda t: t)(tensor).clone()
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})


def damaged(file: Path, data: st.DataObject) -> None:
    kinds = (
        [damage_bytes]
        + [damage_json] * (file.suffix == ".json")
        + [damage_tensors] * (file.suffix in (".bin", ".safetensors"))
    )
    data.draw(st.sampled_from(kinds))(file, data)


def same_shards(folder: Path, whole: Path) -> bool:
    return all(
        sha256(path) == sha256(folder / "merged" / path.name)
        for path in (whole / "merged").glob("*.safetensors")
    )


@given(data=st.data())
@TINY
def test_a_merge_of_damaged_files(data, whole, parts, tmp_path):
    folder = tmp_path / "f"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("merge*"))
    name = data.draw(st.sampled_from(TRAINED))
    # the record is made to fit, so that the loaders have to see it
    if name != "run.json" and data.draw(st.booleans()):
        (damage_json if name.endswith(".json") else damage_tensors)(folder / name, data)
        relist(folder, name)
    else:
        damaged(folder / name, data)
    try:
        base = BaseModels(parts.llm, parts.clip, parts.convnext)
        merged(folder, base, folder / "merge.json", [])
    except UserError as error:
        assert "\n" not in str(error) and not (folder / "merge.json").exists()
    else:
        assert same_shards(folder, whole)


@given(data=st.data())
@TINY
def test_an_evaluation_of_damaged_files(data, whole, tmp_path):
    folder = tmp_path / "f"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    files = [folder / "merge.json", *sorted((folder / "merged").iterdir())]
    damaged(data.draw(st.sampled_from(files)), data)
    try:
        path = Checkpoint(folder).path
        model, tokenizer = load_checkpoint(path), load_tokenizer(path, 256)
    except UserError as error:
        assert "\n" not in str(error)
        return
    right = official_state(load_checkpoint(whole / "merged"))
    assert all(torch.equal(tensor, right[name]) for name, tensor in official_state(model).items())
    assert tokenizer("what is this?") == load_tokenizer(whole / "merged", 256)("what is this?")


@given(data=st.data())
@TINY
def test_a_checkpoint_whose_files_are_damaged_and_not_compared(data, whole, tmp_path):
    """Without the proof a changed number cannot be seen, everything else can."""
    folder = tmp_path / "m"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / "merged", folder)
    file = data.draw(
        st.sampled_from(sorted(path for path in folder.iterdir() if path.name != "generation_config.json"))
    )
    damaged(file, data)
    try:
        load_checkpoint(folder)
        load_tokenizer(folder, 256)
    except UserError:
        return
