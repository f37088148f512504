"""M2: the merge computed again, tensor by tensor: merged = base + (alpha / r) B A within rounding, all else
as it was.

The adapter, the finetuned projector, the first stage's file with the towers and the merged weights are in an
embedded bundle. The language model's own weights are not: they come from --base or an asset at hand, and
their hash has to be as merge.json states it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from toolkit.bundle.findings import Finding
from toolkit.bundle.zip.packed import Packed
from toolkit.contest.records import Record
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.files import sha256
from toolkit.mgm.weights import Weights

PREFIX = "base_model.model."  # PEFT's, in front of the model's own names
REMEDY = "delete merge.json and merge again"


class Tensors:
    """Tensors of several safetensors files by name."""

    def __init__(self, files: list[Path]):
        self._opened = [safe_open(file, framework="pt") for file in files]
        self._at = {name: opened for opened in self._opened for name in opened.keys()}  # noqa: SIM118 - a handle is not a dict

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __getitem__(self, name: str) -> Tensor:
        return self._at[name].get_tensor(name)


def arithmetic(entry: Packed, base: Path | None, remarks: list[str]) -> Iterator[Finding]:
    """Findings about single tensors; `remarks` gets a line of what was compared and a line of what could not
    be."""
    record = entry.record("merge")
    if entry.division != "open":
        remarks.append("M2: a full finetuning has no adapter, there is no sum to compute")
        return
    shards = entry.names(f"{entry.finetune}/{record.results['checkpoint']}/model*.safetensors")
    sources = [
        f"{entry.finetune}/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin")
    ]
    if absent := [name for name in sources if not entry.exists(name)] or (
        [] if shards else ["the merged weights"]
    ):
        remarks.append(f"M2: not proved, the bundle does not hold {', '.join(absent)}")
        return
    settings = entry.json(sources[0])
    merged, adapter = Tensors([entry.path(name) for name in shards]), Tensors([entry.path(sources[1])])
    first = Weights(entry.path(f"{entry.pretrain}/mm_projector.bin"))  # projector and both towers
    projector = {
        name.removeprefix(PREFIX): tensor for name, tensor in Weights(entry.path(sources[2])).items()
    }
    llm = _base(entry, record, base)
    config = f"{entry.finetune}/config.json"
    tied = not entry.exists(config) or entry.json(config).get("tie_word_embeddings") is not False
    halves = {name.removeprefix(PREFIX) for name in adapter}
    layers = {half.split(".lora_")[0] for half in halves}
    lone = sorted(layer for layer in layers if not {f"{layer}.lora_{half}.weight" for half in "AB"} <= halves)
    for name in sorted({f"{layer}.weight" for layer in layers} - set(merged)) + lone:
        yield Finding(
            "M2", sources[1], f"{name} is adapted, but not in the merged model or with one half only", REMEDY
        )
    for name in sorted(set(projector) - set(merged)) + sorted(set(llm or ()) - set(merged)):
        yield Finding("M2", shards[0], f"{name} is missing in the merged model", REMEDY)
    changed = 0
    counts = dict.fromkeys(
        ("base + scaled BA", "the base", "the finetuned projector", "the towers", "nothing"), 0
    )
    for name in merged:
        layer = name.removesuffix(".weight")
        source, expected, bound = "nothing", None, None
        if layer in layers and layer not in lone:
            a, b = (adapter[f"{PREFIX}{layer}.lora_{half}.weight"].float() for half in "AB")
            if len(a) != settings["r"]:
                message = f"{layer} has rank {len(a)}, adapter_config.json says {settings['r']}"
                yield Finding("M2", sources[1], message, REMEDY)
            scaling = settings["lora_alpha"] / settings["r"]
            if llm:
                weight = llm[name].to(merged[name].dtype).float()  # as it was trained
                source, expected = "base + scaled BA", weight + scaling * b @ a
                bound = weight.abs() + abs(scaling) * b.abs() @ a.abs()
                changed += not torch.equal(merged[name], llm[name].to(merged[name].dtype))
        elif name in projector:
            source, expected = "the finetuned projector", projector[name]
        elif name == "lm_head.weight" and tied:
            source, expected = "the base", merged["model.embed_tokens.weight"]
        elif llm and name in llm:
            source, expected = "the base", llm[name]
        elif "vision_tower" in name and name in first:
            source, expected = "the towers", first[name]
        counts[source] += 1
        if expected is not None and (problem := _differs(merged[name], expected, bound)):
            yield Finding("M2", shards[0], f"{name} is not {source}: {problem}", REMEDY)
    if llm and (changed == 0 or changed != record.results["tensors_changed"]):
        message = (
            f"{record.file} states {record.results['tensors_changed']} tensors that the adapter changed, "
            f"there are {changed}"
        )
        yield Finding("M2", sources[1], message, REMEDY)
    compared = ", ".join(
        f"{count} with {source}" for source, count in counts.items() if count and source != "nothing"
    )
    remarks.append(f"M2: tensors compared: {compared or 'none'}")
    if counts["nothing"]:
        remarks.append(
            f"M2: {counted(counts['nothing'], 'tensor')} not proved: their base weights are not at "
            f"hand{'' if llm else ' (--base)'}"
        )


def _differs(actual: Tensor, expected: Tensor, bound: Tensor | None) -> str | None:
    """How two tensors differ, None if they are equal: to the bit without `bound`, else within one rounding to
    the stored type.

    bound: size of the summands of each element; the sum itself is rounded in float32, in an order that
    depends on the machine.
    """
    if actual.shape != expected.shape:
        return f"its shape is {list(actual.shape)}, {list(expected.shape)} is expected"
    if bound is None:
        differing = actual != expected.to(actual.dtype)
    else:
        limit = torch.finfo(actual.dtype).eps * expected.abs() + 8 * torch.finfo(torch.float32).eps * bound
        differing = ~((actual.float() - expected).abs() <= limit)  # not a number is wrong too
    if not differing.any():
        return None
    largest = (actual.float() - expected.float()).abs().max().item()
    return f"{int(differing.sum())} of {actual.numel()} values differ, by at most {largest:.3g}"


def _base(entry: Packed, record: Record, base: Path | None) -> Tensors | None:
    """The language model's tensors: from `base`, from the asset that merge.json names, or None. UserError for
    another model than that."""
    recorded = {
        item.sha256: item.path
        for name, item in record.inputs.items()
        if name == "llm" or name.startswith("llm-")
    }
    if base is None:
        path = next(iter(recorded.values()))
        if entry.outside(path):
            return None
        base = entry.path(path).parent
    files = sorted(base.glob("*.safetensors"))
    unknown = [file for file in files if sha256(file) not in recorded]
    if not files or unknown:
        reason = (
            f"{unknown[0]} is not the file that {record.file} names"
            if unknown
            else f"{base} holds no safetensors"
        )
        raise UserError(f"{reason}: give the folder of the base model {', '.join(recorded.values())}")
    return Tensors(files)
