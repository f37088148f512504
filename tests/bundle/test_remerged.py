"""The merged model is compared, file by file, with what merging gives again: here a model of two tensors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from toolkit.bundle.checks import remerged
from toolkit.bundle.checks.remerged import STATED, _compared, merged_again
from toolkit.files import sha256, write_json

SHARD = "model-00001-of-00001.safetensors"
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}


def model(folder: Path, tensors: dict = TENSORS, vocabulary: str = "words") -> Path:
    folder.mkdir()
    save_file(tensors, folder / SHARD)
    write_json(folder / "config.json", {"hidden_size": 3})
    write_json(folder / "tokenizer.json", {"vocabulary": vocabulary})
    return folder


def findings(packed: Path, merged: Path) -> list[str]:
    """What is found where the archive holds `packed`, its record fits, and merging gives `merged`."""
    outputs = {
        path.name: SimpleNamespace(path=str(path), sha256=sha256(path)) for path in sorted(packed.iterdir())
    }
    record = SimpleNamespace(outputs=outputs, file="merge.json")
    entry = SimpleNamespace(
        record=lambda _: record, exists=lambda path: Path(path).is_file(), path=lambda path: Path(path)
    )
    return [finding.message for finding in _compared(entry, merged)]


def test_the_same_model(tmp_path):
    rounded = TENSORS | {"a.weight": TENSORS["a.weight"] * (1 + 2e-7)}  # another processor's sums
    merged = model(tmp_path / "merged")
    assert findings(model(tmp_path / "same"), merged) == []
    assert findings(model(tmp_path / "rounded", rounded), merged) == []


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (TENSORS | {"b.weight": torch.ones(4) * 1.001}, "b.weight is not what merging gives"),
        (TENSORS | {"b.weight": torch.full((4,), torch.nan)}, "b.weight is not what merging gives"),
        (TENSORS | {"b.weight": torch.ones(4).half()}, "b.weight has another shape or type"),
        ({"a.weight": TENSORS["a.weight"]}, "holds other tensors"),
    ],
)
def test_a_tensor_of_another_model(tmp_path, tensors, words):
    problems = findings(model(tmp_path / "packed", tensors), model(tmp_path / "merged"))
    assert len(problems) == 1 and words in problems[0]


def test_another_tokenizer(tmp_path):
    problems = findings(model(tmp_path / "packed", vocabulary="answers"), model(tmp_path / "merged"))
    assert problems == ["is not what merging writes"]


def test_a_file_more(tmp_path):
    packed = model(tmp_path / "packed")
    write_json(packed / "added_tokens.json", {})
    assert "not those of the record" in findings(packed, model(tmp_path / "merged"))[0]


@pytest.mark.parametrize("key", ["tolerance", "tensors_total", "tensors_changed", "lora_tensors_left"])
def test_a_record_that_states_another_proof(tmp_path, monkeypatch, key):
    stated = dict.fromkeys(STATED, "as merged") | {"checkpoint": "merged"}
    merged = model(tmp_path / "merged")
    outputs = {
        path.name: SimpleNamespace(path=str(path), sha256=sha256(path)) for path in sorted(merged.iterdir())
    }
    record = SimpleNamespace(file="merge.json", inputs={}, outputs=outputs, results=stated | {key: "other"})
    finetune = SimpleNamespace(outputs={}, inputs={})
    write_json(tmp_path / "run.json", {})
    entry = SimpleNamespace(
        record={"merge": record, "finetune": finetune}.__getitem__,
        finetune="output",
        length=lambda _: 1,
        path=lambda _: tmp_path / "run.json",
    )
    monkeypatch.setattr(remerged, "merge", lambda *_: stated)
    monkeypatch.setattr(remerged, "BaseModels", lambda **_: None)
    folder = tmp_path / "again"
    folder.mkdir()
    merged.rename(folder / "merged")
    problems = [finding.message for finding in merged_again(entry, folder)]
    assert len(problems) == 1 and f"{key} 'other' ('{stated[key]}')" in problems[0]
