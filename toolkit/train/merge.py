"""Fold a LoRA adapter into its base and prove it.

    python -m toolkit train merge --finetuned DIR --llm DIR --clip DIR --convnext DIR --output DIR/merge.json

Proof: the adapter model (PEFT's forward pass) and the merged checkpoint, read back from disk, give the same logits on fixed inputs;
tensors differ from the base; none named `lora_` is left. The arithmetic of the fold is ours, the adapter's forward pass PEFT's.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import read_json, sha256
from toolkit.mgm.answer import CPU_THREADS, choose_device
from toolkit.mgm.checkpoint import Weights, build, fill, load_checkpoint, load_tokenizer, save_checkpoint
from toolkit.mgm.layout import IMAGE_TOKEN_INDEX
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM
from toolkit.record import write_record
from toolkit.scales import load
from toolkit.train.lora import PREFIX, attach, load_adapter
from toolkit.train.stages import PACKAGES, describe_parts, portable

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}  # largest logit difference; a bf16 fold rounds each weight to 8 bits


def fixed_inputs(model: MGMForCausalLM, count: int = 4, length: int = 24) -> dict[str, Tensor]:
    """Random prompts with one image each, the same for every model of these sizes."""
    generator = torch.Generator().manual_seed(20240724)
    ids = torch.randint(0, model.config.vocab_size, (count, length), generator=generator)
    ids[:, 4] = IMAGE_TOKEN_INDEX
    side, views = model.mgm.clip["image_size"], model.mgm.image_grid**2 + model.mgm.image_global
    shape = (count, 3, side, side) if model.mgm.image_grid == 1 else (count, views, 3, side, side)
    size_aux = model.mgm.image_size_aux
    return {
        "input_ids": ids,
        "images": torch.randn(shape, generator=generator),
        "images_aux": torch.randn((count, 3, size_aux, size_aux), generator=generator),
    }


@torch.inference_mode()
def logits(model: MGMForCausalLM, inputs: dict[str, Tensor]) -> Tensor:
    """Logits on the fixed inputs, float32 on the CPU, one prompt at a time."""
    device, rows = model.device, []
    for row in range(len(inputs["input_ids"])):
        one = {key: value[row : row + 1].to(device) for key, value in inputs.items()}
        one["images"], one["images_aux"] = one["images"].to(model.dtype), one["images_aux"].to(model.dtype)
        rows.append(model.logits(model.splice(one["input_ids"], None, None, one["images"], one["images_aux"])))
    return torch.cat(rows).cpu()


def adapter_model(finetuned: Path, base: MGMForCausalLM, lora: dict) -> MGMForCausalLM:
    """The base with the adapter attached by PEFT, in eval mode."""
    tensors, _ = load_adapter(finetuned)
    attach(base, lora["rank"], lora["alpha"], lora["dropout"], seed=0)
    own = dict(base.named_parameters())
    for name, tensor in tensors.items():
        target = name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        if target not in own or own[target].shape != tensor.shape:
            raise UserError(f"{finetuned}/adapter_model.safetensors: {name} does not fit the base model")
        own[target].data = tensor.to(base.device, torch.float32)
    return base.eval()


def load_others(model: MGMForCausalLM, finetuned: Path, dtype: torch.dtype) -> None:
    """Projector and mining modules as finetuned."""
    others = Weights(finetuned / "non_lora_trainables.bin")
    tensors = {name.removeprefix(PREFIX): others[name] for name in others}
    fill(model, tensors, finetuned / "non_lora_trainables.bin", dtype, model.device, partial=True)


def fold(model: MGMForCausalLM, finetuned: Path) -> list[str]:
    """Add (alpha / r) B A to each adapted weight, in float32; return the names of the weights it changed."""
    tensors, scaling = load_adapter(finetuned)
    changed = []
    for layer in sorted({name.split(".lora_")[0] for name in tensors}):
        weight = model.get_submodule(layer).weight
        a, b = (tensors[f"{layer}.lora_{half}.weight"].to(weight.device, torch.float32) for half in "AB")
        delta = scaling * b @ a
        folded = (weight.data.float() + delta).to(weight.dtype)
        if not torch.equal(folded, weight.data):
            changed.append(f"{layer}.weight")
        weight.data = folded
    return changed


def changed_tensors(model: MGMForCausalLM, base: MGMForCausalLM) -> list[str]:
    """Names of parameters in which two models differ, but for projector and mining modules, which the base models do not have.

    The base may have adapters attached, which do not count.
    """
    other = {name.replace(".base_layer.", "."): p for name, p in base.named_parameters() if "lora_" not in name}
    own = {name: p for name, p in model.named_parameters() if not any(part in name for part in TRAINED_NAMES)}
    return [name for name, parameter in own.items() if not torch.equal(parameter.data, other[name].data.to(parameter.dtype))]


def merge(finetuned: Path, llm: Path, clip: Path, convnext: Path, output: Path, command: list[str]) -> dict:
    """Write the merged checkpoint (LoRA) and `output`, the proof; return the proof's results.

    A fully finetuned checkpoint has nothing to fold: its proof is that it loads, holds no adapter and differs from the base.
    UserError when the base is not the one trained on, nothing changed, an adapter tensor is left, or the logits differ by more than
    the tolerance.
    """
    output.unlink(missing_ok=True)
    record = read_json(finetuned / "run.json")
    if not isinstance(record, dict) or record.get("stage") != "finetune" or not {"scale", "division"} <= record.get("settings", {}).keys():
        raise UserError(f"{finetuned}/run.json is not the record of a finetuning")
    parts = describe_parts(llm, clip, convnext)
    others = [name for name, path in parts.items() if name in record["inputs"] and sha256(path) != record["inputs"][name]["sha256"]]
    if others:
        raise UserError(f"{finetuned} was trained on another base: {', '.join(str(parts[name]) for name in others)} has changed since")
    scale, division = load(record["settings"]["scale"]), record["settings"]["division"]
    dtype = torch.bfloat16 if Weights(llm)["model.embed_tokens.weight"].dtype == torch.bfloat16 else torch.float32
    settings = {"image_size_aux": scale.image_size_aux, "image_aspect_ratio": scale.finetune[division].image_aspect_ratio}
    settings |= {"model_max_length": scale.model_max_length}

    device = choose_device()

    def base() -> MGMForCausalLM:
        return build(llm, clip, convnext, dtype=dtype, device=device, **settings).eval()

    torch.set_num_threads(CPU_THREADS)
    original = base()
    difference = None
    if division == "open":
        folder, lora = finetuned / "merged", record["settings"]["lora"]
        inputs = fixed_inputs(original)
        load_others(original, finetuned, dtype)
        expected = logits(adapter_model(finetuned, original, lora), inputs)
        merged = base()
        load_others(merged, finetuned, dtype)
        if not fold(merged, finetuned):
            raise UserError(f"{finetuned}: the adapter changes no weight of {llm}: it was not trained, or its B matrices are zero")
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(merged, folder, load_tokenizer(llm, scale.model_max_length))
        merged = load_checkpoint(folder, dtype, device)
        difference = (logits(merged, inputs) - expected).abs().max().item()
        if not difference <= TOLERANCE[dtype]:
            raise UserError(
                f"{folder}: logits of adapter model and merged model differ by {difference:.3g}, more than {TOLERANCE[dtype]:g}"
            )
    else:
        folder = finetuned
        merged = load_checkpoint(folder, dtype, device)
        if not torch.isfinite(logits(merged, fixed_inputs(merged))).all():
            raise UserError(f"{folder}: the checkpoint gives logits that are not finite")
    changed = changed_tensors(merged, original)
    if not changed:
        raise UserError(f"{folder}: no tensor differs from the base models: nothing was trained")
    weights = Weights(folder)
    left = [name for name in weights if "lora_" in name]
    if left:
        raise UserError(f"{folder}: {len(left)} adapter tensors are left, {left[0]} among them")
    results = {
        "checkpoint": folder.relative_to(finetuned).as_posix(),
        "division": division,
        "max_logit_difference": difference,
        "tolerance": TOLERANCE[dtype],
        "tensors_total": len(weights),
        "tensors_changed": len(changed),
        "lora_tensors_left": 0,
        "shards": {path.name: sha256(path) for path in weights.files()},
    }
    trained = ("adapter_model.safetensors", "non_lora_trainables.bin") if division == "open" else ()
    write_record(
        output,
        "merge",
        inputs={**parts, "finetune": finetuned / "run.json", **{name: finetuned / name for name in trained}},
        outputs={path.name: path for path in [*weights.files(), folder / "model.safetensors.index.json", folder / "config.json"]},
        settings={"scale": scale.name, "division": division, "command": portable(command)},
        results=results,
        packages=PACKAGES,
    )
    return results
