"""Files of weights that other people wrote: what they hold is read, or one sentence says why not."""

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit import assets
from toolkit.errors import UserError
from toolkit.mgm import checkpoint, pickled
from toolkit.mgm.weights import HEADER, Weights

X = torch.arange(12.0).view(3, 4)


def rezipped(path: Path, change, method: int = zipfile.ZIP_STORED) -> None:
    """The .bin file with each member's content changed: change(name, content) -> content, None for no such
    member."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            if (new := change(name, content)) is not None:
                archive.writestr(name, new)


def pickle_of(path: Path, content: bytes) -> None:
    rezipped(path, lambda name, old: content if name.endswith("data.pkl") else old)


GOOD = {
    "a parameter": {"a": torch.nn.Parameter(X)},
    "a module's state": torch.nn.Linear(3, 2).state_dict(),
    "one storage": {"a": X, "b": X[1:], "c": X.T},
    "several types": {"a": X.to(torch.bfloat16), "b": X.half(), "c": X.long()},
}


@pytest.mark.parametrize("tensors", GOOD.values(), ids=GOOD)
def test_what_torch_saved_is_read(tensors, tmp_path):
    torch.save(tensors, tmp_path / "a.bin")
    weights = Weights(tmp_path / "a.bin")
    assert weights.shapes() == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(
        torch.equal(weights[name], tensor) and weights[name].is_contiguous()
        for name, tensor in tensors.items()
    )


STRANGE = {
    "a list": ([X], "holds no dict of tensors"),
    "a number": ({"a": 3}, "an entry is not a tensor"),
    "a number as a name": ({3: X}, "an entry is not a tensor"),
    "dicts in dicts": ({"a": {"b": X}}, "an entry is not a tensor"),
    "one number a trillion times": (
        {"a": torch.zeros(1).expand(10**12)},
        "not a tensor with all its numbers",
    ),
    "sparse": ({"a": X.to_sparse()}, "_rebuild_sparse_tensor"),
    "without numbers": ({"a": torch.empty(3, device="meta")}, "_rebuild_meta_tensor_no_storage"),
    "8 bits": ({"a": X.to(torch.float8_e4m3fn)}, "_rebuild_tensor_v3"),
    "complex": ({"a": X.to(torch.complex64)}, "ComplexFloatStorage"),
    "bytes": ({"a": bytearray(9)}, "bytearray"),
    "a whole module": (torch.nn.Linear(2, 2), "torch.nn.modules.linear Linear"),
}


@pytest.mark.parametrize(("content", "problem"), STRANGE.values(), ids=STRANGE)
def test_what_is_no_dict_of_tensors_is_refused(content, problem, tmp_path):
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(UserError, match=f"a.bin is not a readable PyTorch weights file: [^\n]*{problem}"):
        Weights(tmp_path / "a.bin")


def old_format(path: Path) -> None:
    torch.save({"a": X}, path, _use_new_zipfile_serialization=False)


HOSTILE = {
    "the old format": (old_format, "not a readable zip archive"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not a readable zip archive"),
    "compressed": (
        lambda path: rezipped(path, lambda _, content: content, zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "too few numbers": (
        lambda path: rezipped(path, lambda name, old: old[:8] if "/data/" in name else old),
        "does not match",
    ),
    "no numbers": (
        lambda path: rezipped(path, lambda name, old: None if "/data/" in name else old),
        "file not found",
    ),
    "code beside": (
        lambda path: zipfile.ZipFile(path, "a").writestr("a/code/x.py", "1"),
        "not an archive of one list",
    ),
    "two lists": (
        lambda path: zipfile.ZipFile(path, "a").writestr("b/data.pkl", "1"),
        "not an archive of one list",
    ),
    "a long list": (
        lambda path: pickle_of(path, b"\x80\x02" + b"]0" * (8 << 20) + b"}."),
        "at most 1048576 are read",
    ),
    "a bytearray of 100 GB": (
        lambda path: pickle_of(path, b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x17\x85R."),
        "bytearray",
    ),
    "an end before its time": (lambda path: pickle_of(path, b"\x80\x02}"), "damaged pickle"),
    "dicts 100,000 deep": (
        lambda path: pickle_of(path, b"\x80\x02" + b"}X\x01\0\0\0a" * 100_000 + b"}" + b"s" * 100_000 + b"."),
        "not a tensor",
    ),
    "memory by doubling": (
        lambda path: pickle_of(path, b"\x80\x02]q\x00" + b"(h\x00h\x00lq\x00" * 60_000 + b"."),
        "its pickle does not put tensors together",
    ),
}


@pytest.mark.parametrize(("damage", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(damage, problem, tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": X}, path)
    damage(path)
    with pytest.raises(UserError, match=f"a.bin is not a readable PyTorch weights file: [^\n]*{problem}"):
        Weights(path)


def test_a_pickle_that_calls_is_not_run(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": X}, path)

    class Call:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    pickle_of(path, pickle.dumps({"a": Call()}, protocol=2))
    with pytest.raises(UserError, match="would run"):
        Weights(path)
    assert not (tmp_path / "owned").exists()
    assert pickled.foreign(pickle.dumps({"a": (1, 2.5, "x")}, protocol=2)) is None


def header(value) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


HEADERS = {
    "empty": b"",
    "short": b"\1\2\3",
    "longer than the file": struct.pack("<Q", 1000) + b"{}",
    "longer than is read": struct.pack("<Q", HEADER + 1) + b" " * 10,
    "deep": header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "no offsets": header({"a": {"dtype": "F32", "shape": [1]}}),
    "offsets outside": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "a huge shape": header({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}}),
    "twice the same bytes": header({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"})
    + bytes(4),
    "no object": header([1]),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_strange_safetensors_header_is_refused(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a.safetensors is not a readable safetensors file"):
        Weights(tmp_path / "a.safetensors")


INDICES = {
    "no object": ([], "has no weight_map"),
    "no map": ({"weight_map": [1]}, "has no weight_map"),
    "numbers": ({"weight_map": {"a": 7, "b": "1.safetensors"}}, "names shards that are missing: 7"),
    "outside": (
        {"weight_map": {"a": "../x/1.safetensors", "b": "1.safetensors"}},
        r"names shards that are missing: \.\./x",
    ),
    "a name too many": (
        {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}},
        "place c in different files",
    ),
    "a name too few": ({"weight_map": {"a": "1.safetensors"}}, "place b in different files"),
    "another place": (
        {"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}},
        "place a in different files",
    ),
}


@pytest.mark.parametrize(("index", "problem"), INDICES.values(), ids=INDICES)
def test_index_and_shards_have_to_agree(index, problem, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    good = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    save_file({"a": X}, folder / "1.safetensors")
    save_file({"b": X}, folder / "2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(good))
    assert set(Weights(folder)) == {"a", "b"}
    if problem.startswith("place b"):
        save_file({"a": X, "b": X.clone()}, folder / "1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=problem):
        Weights(folder)


def copied(parts, tmp_path, name: str) -> dict[str, Path]:
    """The parts' folders, that of `name` a copy."""
    folders = {part: getattr(parts, part) for part in ("llm", "clip", "convnext")}
    folders[name] = shutil.copytree(folders[name], tmp_path / name)
    return folders


PARTS = {
    "llm": ("model.safetensors", "model.layers.0.mlp.up_proj.weight"),
    "clip": ("model.safetensors", "vision_model.post_layernorm.weight"),
    "convnext": ("open_clip_model.safetensors", "visual.trunk.stages.1.downsample.0.weight"),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_of_a_base_model_is_demanded(part, parts, tmp_path):
    folders, (file, name) = copied(parts, tmp_path, part), PARTS[part]
    path = folders[part] / file
    good = load_file(path)
    assert name in good
    extra = name.replace("weight", "other")
    for tensors, problem in [
        ({k: v for k, v in good.items() if k != name}, "it lacks model"),
        (good | {name: good[name][:-1].clone()}, "has shape"),
        (good | {name: good[name].int()}, "is of type int32"),
        (good | {extra: good[name].clone()}, "unexpected tensor"),
    ]:
        save_file(tensors, path)
        with pytest.raises(UserError, match=f"{part} does not fit the model: [^\n]*{problem}"):
            checkpoint.build(**folders)


def test_a_tied_head_that_differs_is_refused(parts, tmp_path):
    folders = copied(parts, tmp_path, "llm")
    path = folders["llm"] / "model.safetensors"
    good = load_file(path)
    save_file(good | {"lm_head.weight": good["model.embed_tokens.weight"].clone()}, path)
    checkpoint.build(**folders)
    save_file(good | {"lm_head.weight": good["model.embed_tokens.weight"] + 1}, path)
    with pytest.raises(UserError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        checkpoint.build(**folders)


def test_a_smaller_convnext_is_not_taken_for_the_one_that_is_described(parts, tmp_path):
    folders = copied(parts, tmp_path, "convnext")
    path, config = (
        folders["convnext"] / "open_clip_model.safetensors",
        folders["convnext"] / "open_clip_config.json",
    )
    good = load_file(path)
    blocks = sorted(
        {name.rpartition(".gamma")[0] for name in good if name.endswith(".gamma") and ".stages.2." in name}
    )
    save_file({name: tensor for name, tensor in good.items() if not name.startswith(f"{blocks[-1]}.")}, path)
    described = json.loads(config.read_text())
    for vision in (
        {"timm_model_name": "convnext_large"},
        {"timm_model_args": {"depths": [1, 1, len(blocks), 1], "dims": [8, 16, 32, 64]}},
    ):
        described["model_cfg"]["vision_cfg"] |= vision
        config.write_text(json.dumps(described))
        with pytest.raises(UserError, match=r"open_clip_config.json describes"):
            checkpoint.build(**folders)
    save_file({name: tensor for name, tensor in good.items() if ".stages.3." not in name}, path)
    with pytest.raises(UserError, match="a ConvNeXt has 0 to 3"):
        checkpoint.build(**folders)
    config.write_text("[]")
    with pytest.raises(UserError, match="has 0 to 3"):
        checkpoint.build(**folders)


CONFIGS = [
    ("hidden_size", None),
    ("hidden_size", "64"),
    ("hidden_size", 0),
    ("num_hidden_layers", 10**9),
    ("num_attention_heads", True),
    ("hidden_act", "none"),
    ("rms_norm_eps", None),
    ("rms_norm_eps", -1.0),
    ("vocab_size", 10**18),
    ("num_key_value_heads", 3),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("rope_parameters", {"rope_theta": 1e6, "rope_type": "default"}),
    ("eos_token_id", None),
]


@pytest.mark.parametrize(("key", "value"), CONFIGS)
def test_a_configuration_that_lacks_something_is_named(key, value, parts, tmp_path):
    folders = copied(parts, tmp_path, "llm")
    path = folders["llm"] / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: v for k, v in raw.items() if k != key} if value is None else raw | {key: value})
    )
    with pytest.raises(UserError, match=f"llm/config.json: .*{key}"):
        checkpoint.build(**folders)


MERGED = [
    ("image_size_aux", 100, "image_size_aux"),
    ("image_size_aux", "128", "image_size_aux"),
    ("image_grid", 0, "image_grid"),
    ("mm_vision_select_layer", -9, "has no layer -9"),
    ("tokenizer_model_max_length", None, "model_max_length"),
    ("tokenizer_padding_side", "middle", "padding_side"),
    ("mm_vision_tower_config", [1], "Clip"),
    ("mm_vision_tower_config", {"hidden_size": 32}, "Field required"),
    ("mm_hidden_size_aux", 7, "mm_hidden_size_aux is 7"),
    ("architectures", "MGM", "names the architecture"),
    ("architectures", ["LlamaForCausalLM"], "names the architecture"),
]


@pytest.mark.parametrize(("key", "value", "problem"), MERGED)
def test_a_checkpoint_s_configuration_that_lacks_something_is_named(key, value, problem, parts, tmp_path):
    model = checkpoint.build(parts.llm, parts.clip, parts.convnext, image_size_aux=128)
    checkpoint.save_checkpoint(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=problem):
        checkpoint.load_checkpoint(tmp_path)


def test_the_files_that_the_registry_fetches_of_a_model_are_read(parts, tmp_path):
    """Published CLIP and ConvNeXt are .bin files; Gemma's shards have an index."""
    weights = {}
    for name, entry in assets.registry().items():
        if isinstance(entry, assets.Hub) and entry.serves in ("llm", "clip", "convnext"):
            (file,) = {file.name for file in entry.downloads} & {
                *Weights.NAMES,
                *(f"{name}.index.json" for name in Weights.NAMES),
            }
            weights[entry.serves] = file
            config = "open_clip_config.json" if entry.serves == "convnext" else "config.json"
            assert config in {file.name for file in entry.downloads}, name
    assert weights == {
        "llm": "model.safetensors.index.json",
        "clip": "pytorch_model.bin",
        "convnext": "open_clip_pytorch_model.bin",
    }
    folders = {"llm": parts.llm}
    for role, old in {"clip": "model.safetensors", "convnext": "open_clip_model.safetensors"}.items():
        folders[role] = tmp_path / role
        shutil.copytree(getattr(parts, role), folders[role])
        torch.save(load_file(folders[role] / old), folders[role] / weights[role])
        (folders[role] / old).unlink()
    fetched = checkpoint.build(**folders).state_dict()
    shipped = checkpoint.build(parts.llm, parts.clip, parts.convnext).state_dict()
    assert fetched.keys() == shipped.keys()
    towers = [name for name in fetched if "vision_tower" in name]
    assert towers and all(torch.equal(fetched[name], shipped[name]) for name in towers)
