"""M2 where the models are small: the adapter is merged once more, by the toolkit's own command, and every
file of the merged model compared with the packed one. So configuration, tokenizer, adapter and record agree,
and no tensor is another model's.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from toolkit.bundle.checks.inputs import base_folders
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding
from toolkit.files import sha256
from toolkit.mgm.folder import checkpoint_files
from toolkit.mgm.weights import Weights
from toolkit.train.inputs import BaseModels
from toolkit.train.merge import merge

LARGEST = 1 << 26  # bytes of an adapter, or of a full checkpoint, that are merged without being asked for it
REMEDY = "delete merge.json and merge again"
# of the largest value of a tensor: sums of the fold are rounded in an order that depends on the machine
ROUNDED = 8 * torch.finfo(torch.float32).eps
STATED = ("checkpoint", "division", "tolerance", "tensors_total", "tensors_changed", "lora_tensors_left")


def merged_again(entry: Entry, folder: Path) -> Iterator[Finding]:
    """Merge what the finetuning of `entry` left into `folder`, an empty one, and compare with what its record
    and the archive hold. The merged model then lies in `folder`/merged, or for a full finetuning in it."""
    record = entry.record("merge")
    listed = [name for name in entry.record("finetune").outputs if not name.endswith(".log")]
    names = ["run.json", *listed]
    if (size := sum(entry.length(f"{entry.finetune}/{name}") for name in names)) > LARGEST:
        message = f"what was finetuned has {size} bytes, at most {LARGEST} belong to a model of this scale"
        yield Finding("M2", record.file, message, REMEDY)
        return
    for name in names:
        if Path(name).name != name:
            yield Finding(
                "M2", entry.record_files["finetune"], f"{name!r} is not the name of an output", REMEDY
            )
            return
        shutil.copyfile(entry.path(f"{entry.finetune}/{name}"), folder / name)
    with contextlib.redirect_stdout(io.StringIO()):
        base = BaseModels(**base_folders(entry, entry.record("finetune")))
        results = merge(folder, base, folder / "merge.json", [])
    if differing := [key for key in STATED if record.results.get(key) != results[key]]:
        stated = ", ".join(f"{key} {record.results.get(key)!r} ({results[key]!r})" for key in differing)
        yield Finding("M2", record.file, f"states other results than merging gives: {stated}", REMEDY)
    yield from _compared(entry, folder / results["checkpoint"])


def _compared(entry: Entry, merged: Path) -> Iterator[Finding]:
    record = entry.record("merge")
    files = {path.name: path for path in checkpoint_files(merged)}
    if record.outputs.keys() != files.keys():
        message = f"the merged model has the files {', '.join(sorted(files))}, not those of the record"
        yield Finding("M2", record.file, message, REMEDY)
        return
    for name, path in files.items():
        item = record.outputs[name]
        if sha256(path) == item.sha256:
            continue
        if path.suffix != ".safetensors":
            yield Finding("M2", item.path, "is not what merging writes", REMEDY)
        elif entry.exists(item.path):
            for problem in _tensors(Weights(entry.path(item.path)), Weights(path)):
                yield Finding("M2", item.path, problem, REMEDY)


def _tensors(actual: Weights, expected: Weights) -> Iterator[str]:
    """What differs by more than rounding."""
    if actual.keys() != expected.keys():
        yield "holds other tensors than the merged model"
        return
    for name, tensor in expected.items():
        other = actual[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            yield f"{name} has another shape or type than merging gives"
        elif not ((other - tensor).abs().max() <= ROUNDED * tensor.abs().max()):  # not a number is wrong too
            yield f"{name} is not what merging gives"
