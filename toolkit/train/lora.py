"""LoRA (arXiv 2106.09685) on the seven linear layers of every decoder block, with PEFT."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json
from toolkit.mgm.checkpoint import DTYPES, save_bin
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.weights import Weights
from toolkit.train import gated
from toolkit.train.dropout import Dropout

# CLIP has layers called q_proj too, so the targets are named from the decoder down.
TARGETS = r"model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
PREFIX = "base_model.model."
# settings of PEFT's that change nothing once the adapter is trained, or that its tensors tell
WITHOUT_EFFECT = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "auto_mapping",
    "revision",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
)
# in the order in which they are written
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin")


def attach(model: MGMForCausalLM, rank: int, alpha: int, dropout: float, seed: int) -> None:
    """Wrap the decoder's linear layers in place, A drawn from `seed`, B zero; UserError for a number out of
    range."""
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        problem = "rank and alpha are at least 1, the dropout from 0 to below 1"
        raise UserError(f"LoRA rank is {rank}, alpha {alpha}, dropout {dropout}: {problem}")
    # seconds of importing, which the first stage does without
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=TARGETS,
        bias="none",
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, settings)
    for module in model.modules():
        if dropout and isinstance(module, LoraLayer):
            module.lora_dropout["default"] = Dropout(dropout)
    gated.fuse(model)


def configuration(rank: int, alpha: int, dropout: float, base: str) -> dict[str, Any]:
    """adapter_config.json as PEFT reads it; base: the language model's folder."""
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
    }
    return fields | {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": TARGETS}


def save_adapter(model: MGMForCausalLM, folder: Path, base: str) -> list[Path]:
    """ADAPTER, named and keyed as PEFT and the kit do; the configuration, by which `discard_adapter` knows
    it, comes first."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    settings = model.peft_config["default"]
    assert isinstance(settings, LoraConfig)
    write_json(
        folder / "adapter_config.json",
        configuration(settings.r, settings.lora_alpha, settings.lora_dropout, base),
    )
    adapter = {
        PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    with atomic(folder / "adapter_model.safetensors") as temporary:
        save_file(dict(sorted(adapter.items())), temporary, metadata={"format": "pt"})
    others = {
        PREFIX + name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name
    }
    save_bin(folder / "non_lora_trainables.bin", others)
    return [folder / name for name in ADAPTER]


def discard_adapter(folder: Path) -> None:
    """Delete what `save_adapter` wrote, if there is a configuration that it wrote."""
    path = folder / "adapter_config.json"
    if (
        path.is_file()
        and isinstance(value := read_json(path), dict)
        and value.get("target_modules") == TARGETS
    ):
        for name in reversed(ADAPTER):  # the configuration last
            (folder / name).unlink(missing_ok=True)


def load_adapter(
    folder: Path, model: MGMForCausalLM, lora: dict[str, Any]
) -> tuple[dict[str, Tensor], float]:
    """(lora_A and lora_B by decoder layer name, scaling alpha / r) of a saved adapter of `model`.

    lora: the record's rank, alpha and dropout. UserError unless the configuration states the same, and every
    layer that is adapted has both halves in its shapes and no other tensor is there.
    """
    settings, expected = (
        read_json(folder / "adapter_config.json"),
        configuration(lora["rank"], lora["alpha"], lora["dropout"], ""),
    )
    if not isinstance(settings, dict):
        raise UserError(f"{folder}/adapter_config.json is not a JSON object")
    for key in sorted({*expected, *settings} - {"base_model_name_or_path"}):
        if settings.get(key) != expected.get(key):
            raise UserError(
                f"{folder}/adapter_config.json: {key} is {settings.get(key)!r}, by the training's record "
                f"{expected.get(key)!r}"
            )
    return adapter_tensors(folder, model, lora["rank"]), lora["alpha"] / lora["rank"]


def stated_settings(folder: Path) -> dict[str, Any]:
    """Rank and alpha by adapter_config.json of a LoRA folder of any PEFT; UserError for a LoRA of another
    kind than `fold` can fold."""
    path = folder / "adapter_config.json"
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a JSON object")
    expected: dict[str, list[Any]] = {
        "peft_type": ["LORA"],
        "bias": ["none"],
        "init_lora_weights": [None, True, "gaussian"],
    }
    strange = [key for key in expected if settings.get(key) not in expected[key]]
    strange += [key for key in settings if settings[key] and key not in (*expected, *WITHOUT_EFFECT)]
    if strange:
        raise UserError(f"{path}: {strange[0]} is {settings.get(strange[0])!r}: only plain LoRA is read")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not (isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0 and alpha > 0):
        raise UserError(f"{path}: r is {rank!r}, lora_alpha {alpha!r}: both are numbers above 0")
    return {"rank": rank, "alpha": alpha}


def adapter_file(folder: Path) -> Path:
    """The weights of a PEFT folder; where there are none, the safetensors file that is missing."""
    paths = [folder / "adapter_model.safetensors", folder / "adapter_model.bin"]
    return next((path for path in paths if path.is_file()), paths[0])


def adapter_tensors(folder: Path, model: MGMForCausalLM, rank: int) -> dict[str, Tensor]:
    """lora_A and lora_B by decoder layer name; UserError unless every layer has both halves in its shapes and
    no other tensor is there."""
    path = adapter_file(folder)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in Weights(path).items()}
    shapes = {}
    for name, layer in model.named_modules():
        if re.fullmatch(TARGETS, name):
            shapes[f"{name}.lora_A.weight"] = [rank, layer.in_features]
            shapes[f"{name}.lora_B.weight"] = [layer.out_features, rank]
    problems = [f"unexpected tensor {name}" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        if name not in tensors:
            problems.append(f"it lacks {name}")
        elif list(tensors[name].shape) != shape or tensors[name].dtype not in DTYPES:
            problems.append(
                f"{name} has shape {list(tensors[name].shape)} and type {tensors[name].dtype}, the model "
                f"needs {shape}"
            )
    if problems:
        raise UserError(f"{path} does not fit the model: {'; '.join(problems[:5])}")
    return tensors
