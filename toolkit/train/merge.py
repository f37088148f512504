"""Fold a LoRA adapter into its base and prove it.

    python -m toolkit train merge --finetuned DIR --llm DIR --clip DIR --convnext DIR --output DIR/merge.json

Proof: the adapter model (PEFT's forward pass), put together from the trained files by itself, and the merged
checkpoint, read back from disk, give the same logits on fixed inputs; every trained tensor is in the
checkpoint to the bit, the adapted ones changed by the adapter, and nothing else differs from the base; none
named `lora_` is left. The arithmetic of the fold is ours, the adapter's forward pass PEFT's.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.contest.records import Record, read_record, write_record
from toolkit.errors import UserError
from toolkit.files import read_json, sha256
from toolkit.mgm.checkpoint import TRAINED, build, fill, load_checkpoint, read_config, save_checkpoint
from toolkit.mgm.config import from_official
from toolkit.mgm.device import CPU_THREADS, choose_device
from toolkit.mgm.folder import checkpoint_files, discard_checkpoint
from toolkit.mgm.layout import IMAGE_TOKEN_INDEX
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.mgm.processor import blank
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.mgm.weights import Weights
from toolkit.scales import load
from toolkit.train.inputs import BaseModels, assert_same_base
from toolkit.train.lora import ADAPTER, PREFIX, adapter_tensors, attach, load_adapter, stated_settings
from toolkit.train.memory import GIB, RESERVE, SIZES
from toolkit.train.stages import PACKAGES, portable

# largest logit difference; a bf16 fold rounds each weight to 8 bits
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}


def fixed_inputs(model: MGMForCausalLM, count: int = 4, length: int = 24) -> dict[str, Tensor]:
    """Random prompts with one image each, the same for every model of these sizes."""
    generator = torch.Generator().manual_seed(20240724)
    ids = torch.randint(0, model.config.vocab_size, (count, length), generator=generator)
    ids[:, 4] = IMAGE_TOKEN_INDEX
    shapes = zip(("images", "images_aux"), (image.shape for image in blank(model.mgm)), strict=True)
    return {"input_ids": ids} | {
        name: torch.randn((count, *shape), generator=generator) for name, shape in shapes
    }


@torch.inference_mode()
def logits(model: MGMForCausalLM, inputs: dict[str, Tensor]) -> Tensor:
    """Logits on the fixed inputs, float32 on the CPU, one prompt at a time."""
    device, rows = model.device, []
    for row in range(len(inputs["input_ids"])):
        prompt = {key: value[row : row + 1].to(device) for key, value in inputs.items()}
        images = [prompt[key].to(model.dtype) for key in ("images", "images_aux")]
        rows.append(model.logits(model.splice(prompt["input_ids"], None, None, *images)))
    return torch.cat(rows).cpu()


def adapter_model(base: MGMForCausalLM, finetuned: Path, lora: dict[str, Any]) -> MGMForCausalLM:
    """The base with the trained tensors and the adapter as PEFT attaches it, in eval mode.

    Every tensor that was trained is looked up in the files under the name that training wrote: what
    `load_adapter`, `load_others` and `fill` leave out or put in another place shows in the proof.
    """
    adapter, others = (
        Weights(finetuned / "adapter_model.safetensors"),
        Weights(finetuned / "non_lora_trainables.bin"),
    )
    attach(base, lora["rank"], lora["alpha"], lora["dropout"], seed=0)
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            parameter.data = adapter[PREFIX + name.replace(".default.", ".")].to(base.device, torch.float32)
        elif name.startswith(TRAINED):
            parameter.data = others[PREFIX + name].to(base.device, base.dtype)
    return base.eval()


def load_others(model: MGMForCausalLM, finetuned: Path, dtype: torch.dtype) -> None:
    """Projector and mining modules as finetuned."""
    path = finetuned / "non_lora_trainables.bin"
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in Weights(path).items()}
    fill(model, tensors, path, dtype, model.device, wanted=lambda name: name.startswith(TRAINED))


def fold(model: MGMForCausalLM, adapter: dict[str, Tensor], scaling: float) -> list[str]:
    """Add scaling B A to each adapted weight, in float32; return the names of the weights it changed."""
    changed = []
    for layer in sorted({name.split(".lora_")[0] for name in adapter}):
        weight = model.get_parameter(f"{layer}.weight")
        a, b = (adapter[f"{layer}.lora_{half}.weight"].to(weight.device, torch.float32) for half in "AB")
        folded = (weight.data.float() + scaling * b @ a).to(weight.dtype)
        if not torch.equal(folded, weight.data):
            changed.append(f"{layer}.weight")
        weight.data = folded
    return changed


def changed_tensors(model: MGMForCausalLM, base: MGMForCausalLM) -> list[str]:
    """Names of parameters in which two models differ, but for projector and mining modules, which the base
    models do not have.

    The base may have adapters attached, which do not count.
    """
    other = {
        name.replace(".base_layer.", "."): p for name, p in base.named_parameters() if "lora_" not in name
    }
    own = {name: p for name, p in model.named_parameters() if not any(part in name for part in TRAINED_NAMES)}
    return [
        name
        for name, parameter in own.items()
        if not torch.equal(parameter.data, other[name].data.to(parameter.dtype))
    ]


def assert_trained(folder: Path, finetuned: Path) -> None:
    """UserError unless the checkpoint on disk holds projector and mining modules to the bit, rounded to its
    type, as they were trained."""
    merged, others = Weights(folder), Weights(finetuned / "non_lora_trainables.bin")
    for name in merged:
        if name.startswith(TRAINED):
            expected = others[PREFIX + name].to(merged[name].dtype) if PREFIX + name in others else None
            if expected is None or not torch.equal(
                merged[name].view(torch.uint8), expected.view(torch.uint8)
            ):
                raise UserError(f"{folder}: {name} is not the tensor that was trained")


def lora_settings(record: Record) -> dict[str, Any]:
    """Rank, alpha and dropout of a finetuning; UserError when its record lacks one."""
    lora = record.settings.get("lora")
    kinds = {"rank": int, "alpha": int, "dropout": int | float}
    if (
        not isinstance(lora, dict)
        or not all(isinstance(lora.get(key), kind) for key, kind in kinds.items())
        or lora["rank"] < 1
        or lora["alpha"] < 1
        or not 0 <= lora["dropout"] < 1
    ):
        raise UserError(
            f"{record.file}: settings.lora lacks rank, alpha or dropout, or one of them is out of range"
        )
    return lora


def read_training(finetuned: Path) -> Record:
    """The record of a finetuning; UserError when it does not say in which division and at which scale."""
    record = read_record(finetuned / "run.json", "finetune")
    known = record.settings.get("division") in ("open", "closed")
    if not known or not isinstance(record.settings.get("scale"), str):
        raise UserError(f"{record.file}: settings lack the scale or the division")
    return record


def merge_adapter(
    original: MGMForCausalLM, merged: MGMForCausalLM, finetuned: Path, record: Record, tokenizer: Any
) -> tuple[MGMForCausalLM, list[str], float]:
    """Fold the adapter into `merged`, write it to merged/ and read it back: the model, the names of the
    weights that changed, and the largest difference of its logits from the adapter model's.

    original, merged: two copies of the base model. UserError when the adapter changes nothing, a trained
    tensor is not in the checkpoint, or the logits differ by more than the tolerance.
    """
    folder, lora, dtype = finetuned / "merged", lora_settings(record), original.dtype
    if read_json(finetuned / "config.json") != original.mgm.to_json():
        raise UserError(
            f"{finetuned}/config.json is not of the model that {record.file} and the base models describe"
        )
    load_others(merged, finetuned, dtype)
    changed = fold(merged, *load_adapter(finetuned, merged, lora))
    if not changed:
        raise UserError(
            f"{finetuned}: the adapter changes no weight of the language model: it was not trained, or its B "
            "matrices are zero"
        )
    discard_checkpoint(folder)
    save_checkpoint(merged, folder, tokenizer)
    merged = load_checkpoint(folder, dtype, original.device)
    assert_trained(folder, finetuned)
    inputs = fixed_inputs(original)
    expected = logits(adapter_model(original, finetuned, lora), inputs)
    difference = (logits(merged, inputs) - expected).abs().max().item()
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"{folder}: logits of adapter model and merged model differ by {difference:.3g}, more than "
            f"{TOLERANCE[dtype]:g}"
        )
    return merged, changed, difference


def read_adapted(
    folder: Path, dtype: torch.dtype, device: torch.device, base: BaseModels
) -> tuple[MGMForCausalLM, PreTrainedTokenizerBase]:
    """Model and tokenizer of a LoRA folder, ours or the kit's, folded into its base as `merge` does, then in
    `dtype`. UserError where the folder's record, which the kit's has not, names another base."""
    embedded = False
    if (folder / "run.json").is_file():
        record, parts = read_training(folder), base.files()
        assert_same_base(record, parts, {path: sha256(path) for path in parts.values()})
        embedded = load(record.settings["scale"]).embedded
    model = build(
        base.llm, base.clip, base.convnext, dtype=fold_dtype(base, embedded), device=device, seed=None
    ).eval()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.mgm = from_official(read_config(folder), shapes, f"{folder}/config.json")
    load_others(model, folder, model.dtype)
    lora = stated_settings(folder)
    fold(model, adapter_tensors(folder, model, lora["rank"]), lora["alpha"] / lora["rank"])
    return model.to(dtype), load_tokenizer(base.llm, model.mgm.model_max_length)


def fold_dtype(base: BaseModels, embedded: bool) -> torch.dtype:
    """The type in which an adapter is folded into its base, that of its training. Vicuna's files are float16
    and trained in bfloat16; so are the embedded world's, trained in float32."""
    stored = Weights(base.llm)["model.embed_tokens.weight"].dtype
    half = stored == torch.bfloat16 or (stored == torch.float16 and not embedded)
    return torch.bfloat16 if half else torch.float32


def load_finetuned(
    folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[MGMForCausalLM, list[str]]:
    """A fully finetuned checkpoint and the names of the parameters that were trained; UserError when its
    logits are not finite."""
    model = load_checkpoint(folder, dtype, device)
    if not torch.isfinite(logits(model, fixed_inputs(model))).all():
        raise UserError(f"{folder}: the checkpoint gives logits that are not finite")
    return model, [name for name, _ in model.named_parameters() if "vision_tower" not in name]


def assert_only_trained(folder: Path, changed: list[str], trainable: list[str], weights: Weights) -> None:
    """UserError unless something changed, nothing that was not trained did, and no adapter tensor remains."""
    if not changed:
        raise UserError(f"{folder}: no tensor differs from the base models: nothing was trained")
    if strange := sorted(set(changed) - set(trainable)):
        raise UserError(f"{folder}: {strange[0]} differs from the base models and was not trained")
    if adapters := [name for name in weights if "lora_" in name]:
        raise UserError(f"{folder}: {len(adapters)} adapter tensors are left, {adapters[0]} among them")


def where(size: int) -> torch.device:
    """The GPU if `size` bytes, of both models, fit into its free memory, otherwise the CPU, which is said."""
    device = choose_device()
    if device.type == "cuda" and size > (free := torch.cuda.mem_get_info()[0]) * (1 - RESERVE):
        print(
            f"merge: on the CPU, for two models of {size / 2 / GIB:.1f} GiB do not fit the GPU's "
            f"{free / GIB:.1f}",
            file=sys.stderr,
            flush=True,
        )
        return torch.device("cpu")
    return device


def merge(finetuned: Path, base: BaseModels, output: Path, command: list[str]) -> dict[str, Any]:
    """Write the merged checkpoint (LoRA) and `output`, the proof; return the proof's results.

    A fully finetuned checkpoint has nothing to fold: its proof is that it loads, holds no adapter and differs
    from the base. UserError when the base is not the one trained on, a file is not the one that training
    wrote, nothing changed or something did that was not trained, an adapter tensor remains, or the logits
    differ by more than the tolerance.
    """
    if output.exists():
        read_record(output, "merge")
        output.unlink()
    record = read_training(finetuned)
    division, scale = record.settings["division"], load(record.settings["scale"])
    parts = base.files()
    known = {path: sha256(path) for path in parts.values()}
    assert_same_base(record, parts, known)
    trained = {name: finetuned / name for name in (*ADAPTER, "config.json")} if division == "open" else {}
    listed = (finetuned / name for name in record.outputs if not name.endswith(".log"))
    taken = {*listed, *(trained.values() if division == "open" else checkpoint_files(finetuned))}
    known |= {path: record.output(path) for path in sorted(taken)}

    dtype = fold_dtype(base, scale.embedded)
    device = where(2 * dtype.itemsize * SIZES[scale.size].parameters)
    torch.set_num_threads(CPU_THREADS)

    def base_model() -> MGMForCausalLM:
        return build(
            base.llm,
            base.clip,
            base.convnext,
            dtype=dtype,
            device=device,
            seed=None,
            image_aspect_ratio=scale.finetune[division].image_aspect_ratio,
            **scale.settings(),
        ).eval()

    original, difference = base_model(), None
    if division == "open":
        folder, tokenizer = finetuned / "merged", load_tokenizer(base.llm, scale.model_max_length)
        merged, trainable, difference = merge_adapter(original, base_model(), finetuned, record, tokenizer)
    else:
        folder = finetuned
        merged, trainable = load_finetuned(folder, dtype, device)
    changed, weights = changed_tensors(merged, original), Weights(folder)
    assert_only_trained(folder, changed, trainable, weights)
    files = checkpoint_files(folder)
    known |= {path: sha256(path) for path in files if path not in known}
    results = {
        "checkpoint": folder.relative_to(finetuned).as_posix(),
        "division": division,
        "max_logit_difference": difference,
        "tolerance": TOLERANCE[dtype],
        "tensors_total": len(weights),
        "tensors_changed": len(changed),
        "lora_tensors_left": 0,
        "shards": {path.name: known[path] for path in weights.files()},
    }
    write_record(
        output,
        "merge",
        inputs={**parts, "finetune": finetuned / "run.json", **trained},
        outputs={path.name: path for path in files},
        settings={"scale": scale.name, "division": division, "command": portable(command)},
        results=results,
        packages=PACKAGES,
        known=known,
    )
    return results
