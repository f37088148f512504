"""LoRA (arXiv 2106.09685) on the seven linear layers of every Gemma decoder block, with PEFT."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json
from toolkit.mgm.checkpoint import Weights, save_bin
from toolkit.mgm.model import MGMForCausalLM

# CLIP has layers called q_proj too, so the targets are named from the decoder down.
TARGETS = r"model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
PREFIX = "base_model.model."


def attach(model: MGMForCausalLM, rank: int, alpha: int, dropout: float, seed: int) -> None:
    """Wrap the decoder's linear layers in place, A drawn from `seed`, B zero; UserError for a rank or dropout out of range."""
    if rank < 1 or not 0 <= dropout < 1:
        raise UserError(f"LoRA rank is {rank}, dropout {dropout}: the rank is at least 1, the dropout from 0 to below 1")
    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM")
    get_peft_model(model, settings)


def save_adapter(model: MGMForCausalLM, folder: Path, base: str) -> list[Path]:
    """adapter_model.safetensors, adapter_config.json and non_lora_trainables.bin, named and keyed as PEFT and the kit do."""
    adapter = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    with atomic(folder / "adapter_model.safetensors") as temporary:
        save_file(dict(sorted(adapter.items())), temporary, metadata={"format": "pt"})
    others = {PREFIX + name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    save_bin(folder / "non_lora_trainables.bin", others)
    settings = model.peft_config["default"]
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True, "bias": "none"}
    fields |= {"r": settings.r, "lora_alpha": settings.lora_alpha, "lora_dropout": settings.lora_dropout, "target_modules": TARGETS}
    write_json(folder / "adapter_config.json", fields)
    return [folder / name for name in ("adapter_model.safetensors", "non_lora_trainables.bin", "adapter_config.json")]


def load_adapter(folder: Path) -> tuple[dict[str, Tensor], float]:
    """(lora_A and lora_B by decoder layer name, scaling alpha / r) of a saved adapter; UserError when it is incomplete."""
    settings = read_json(folder / "adapter_config.json")
    if not isinstance(settings, dict) or not {"r", "lora_alpha"} <= settings.keys():
        raise UserError(f"{folder}/adapter_config.json lacks r or lora_alpha")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in Weights(folder / "adapter_model.safetensors").items()}
    layers = {name.split(".lora_")[0] for name in tensors}
    absent = [f"{layer}.lora_{half}.weight" for layer in sorted(layers) for half in "AB" if f"{layer}.lora_{half}.weight" not in tensors]
    if absent or not layers:
        raise UserError(f"{folder}/adapter_model.safetensors lacks {absent[0] if absent else 'any adapter'}")
    return tensors, settings["lora_alpha"] / settings["r"]
