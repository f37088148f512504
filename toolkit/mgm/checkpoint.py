"""Checkpoints in the official layout, in and out: sharded safetensors with index, base models in parts, the
stage-1 projector file.

Whatever is read has to hold every tensor of its kind, in the model's shapes, and no other.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json
from toolkit.mgm.config import (
    MGMConfig,
    clip_settings,
    clip_sizes,
    convnext_sizes,
    from_official,
)
from toolkit.mgm.folder import INDEX
from toolkit.mgm.language import language_model
from toolkit.mgm.model import MODELS, TRAINED_NAMES, MGMForCausalLM
from toolkit.mgm.weights import Weights

CLIP_PREFIX = "model.vision_tower.vision_tower.vision_model."
AUX_PREFIX = "model.vision_tower_aux.vision_"
TOWERS = (CLIP_PREFIX, AUX_PREFIX)
TRAINED = tuple(f"model.{name}" for name in TRAINED_NAMES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHARD_BYTES = 5_000_000_000  # as the official checkpoint was cut
CONVNEXT = {  # timm's models that open_clip's CLIPs have: blocks and channels of the stages
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xxlarge": ((3, 4, 30, 3), (384, 768, 1536, 3072)),
}


def empty(config: MGMConfig, attention: str = "sdpa") -> MGMForCausalLM:
    """A model whose parameters take no memory yet; `fill` gives them."""
    with init_empty_weights(include_buffers=False):
        return MODELS[type(config.language)](config, attention)


def fill(
    model: MGMForCausalLM,
    tensors: Mapping[str, Tensor],
    source: Path | str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Assign `tensors` (official names) to the model in `dtype` on `device`, one after the other: the host
    holds no second copy.

    UserError, naming `source`, unless they are all the parameters whose name is `wanted`, in the model's
    shapes and floating point.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    problems = []
    for name, tensor in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):  # follows from rope_theta; files of older versions have it
            continue
        if name in tied:  # the duplicate the official checkpoint carries
            if not torch.equal(tensor, tensors.get("model.embed_tokens.weight", torch.empty(0))):
                problems.append(f"{name} is not model.embed_tokens.weight, which this model has in its place")
        elif name not in parameters or not wanted(name):
            problems.append(f"unexpected tensor {name}")
        elif parameters[name].shape != tensor.shape:
            problems.append(
                f"{name} has shape {list(tensor.shape)}, the model needs {list(parameters[name].shape)}"
            )
        elif tensor.dtype not in DTYPES:
            problems.append(
                f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}, weights are float32, "
                "bfloat16 or float16"
            )
        else:
            module = model.get_submodule(name.rpartition(".")[0])
            old = parameters[name]
            value = tensor.to(device, dtype)
            if value.data_ptr() == tensor.data_ptr():
                value = tensor.clone()  # a copy of its own: not a view of the mapped file
            setattr(module, name.rpartition(".")[2], nn.Parameter(value, requires_grad=old.requires_grad))
    absent = sorted(name for name in parameters.keys() - tensors.keys() - tied if wanted(name))
    problems += [f"it lacks {name}" for name in absent]
    if problems:
        suffix = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{source} does not fit the model: {'; '.join(problems[:5])}{suffix}")
    model.tie_weights()


def read_config(folder: Path | str) -> dict:
    """config.json of a folder; UserError when it is missing or no object."""
    raw = read_json(Path(folder) / "config.json")
    if not isinstance(raw, dict):
        raise UserError(f"{folder}/config.json is not a JSON object")
    return raw


def load_checkpoint(
    folder: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
) -> MGMForCausalLM:
    """The model of a full checkpoint in the official layout, whatever the folder is called, in eval mode."""
    weights = Weights(folder)
    config = from_official(read_config(folder), weights.shapes(), f"{folder}/config.json")
    model = empty(config, attention)
    fill(model, weights, folder, dtype, device)
    return model.to(device).eval()


def read_clip_config(folder: Path | str) -> dict:
    """Vision settings of a CLIP folder, which may hold a whole CLIP or its vision half."""
    raw = read_config(folder)
    raw = raw.get("vision_config", raw)
    # CLIPVisionConfig's defaults stand in for keys that a published config leaves out
    defaults = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    return clip_settings(defaults | raw if isinstance(raw, dict) else raw, f"{folder}/config.json")


def read_convnext(folder: Path | str) -> tuple[dict[str, Tensor], tuple[int, ...], tuple[int, ...]]:
    """(tensors under official names, depths, dims) of an open_clip folder; UserError when its configuration
    states another size."""
    weights = Weights(folder)
    tensors = weights.renamed("visual.trunk.stem.", f"{AUX_PREFIX}stem.") | weights.renamed(
        "visual.trunk.stages.", f"{AUX_PREFIX}stages."
    )
    sizes = convnext_sizes(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, f"{AUX_PREFIX}stages."
    )
    configured = open_clip_sizes(folder)
    if configured not in (None, sizes):
        raise UserError(
            f"{folder} holds a ConvNeXt of (blocks, channels) {sizes}, its open_clip_config.json describes "
            f"{configured}"
        )
    return tensors, *sizes


def open_clip_sizes(folder: Path | str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(depths, dims) that open_clip_config.json states, by numbers or by timm's name; None where there is no
    such file or name."""
    path = Path(folder) / "open_clip_config.json"
    if not path.is_file():
        return None
    raw = read_json(path)
    try:
        vision = raw["model_cfg"]["vision_cfg"]
        arguments = vision.get("timm_model_args", {})
        published = CONVNEXT.get(vision["timm_model_name"])
        return (tuple(arguments["depths"]), tuple(arguments["dims"])) if "depths" in arguments else published
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} describes no ConvNeXt tower of timm") from None


def build(
    llm: Path | str,
    clip: Path | str,
    convnext: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int | None = 0,
    **settings: Any,
) -> MGMForCausalLM:
    """A model from its parts on `device`, the mining modules and projector fresh from `seed`, the same on
    every device.

    llm, clip: Hugging Face folders. convnext: an open_clip folder. settings: fields of MGMConfig. An MGM in
    llm's place, made with these towers, is trained further: its projector and mining modules are not fresh.
    Without a seed what is between the parts is not a number, so that it shows where no tensor was put in its
    place.
    """
    clip_weights = Weights(clip)
    clip_tensors = {
        CLIP_PREFIX + name.removeprefix("vision_model."): clip_weights[name]
        for name in clip_weights
        if not name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))
        and not name.endswith("position_ids")
    }
    aux_tensors, depths, dims = read_convnext(convnext)
    clip_sizes(
        {name: tuple(tensor.shape) for name, tensor in clip_tensors.items()}, CLIP_PREFIX
    )  # says so when the folder holds no vision tower
    config = MGMConfig(
        language=language_model(read_config(llm), f"{llm}/config.json"),
        clip=read_clip_config(clip),
        depths=depths,
        dims=dims,
        **settings,
    )
    model = empty(config)
    weights = Weights(llm)
    parts = (*TOWERS, *TRAINED)
    further = any(name.startswith(TRAINED) for name in weights)
    language = {name: weights[name] for name in weights if not name.startswith(parts)} if further else weights
    fill(model, language, llm, dtype, device, wanted=lambda name: not name.startswith(parts))
    fill(model, clip_tensors, clip, dtype, device, wanted=lambda name: name.startswith(CLIP_PREFIX))
    fill(model, aux_tensors, convnext, dtype, device, wanted=lambda name: name.startswith(AUX_PREFIX))
    if seed is not None:
        torch.manual_seed(seed)
    for name, module in model.model.named_children():
        if name.startswith(TRAINED_NAMES):
            module.to_empty(device="cpu")
            for layer in module.modules():
                if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                    layer.reset_parameters()
            if seed is None:
                for parameter in module.parameters():
                    nn.init.constant_(parameter, math.nan)
    if further:
        assert_same_towers(model, weights, llm)
    if further and seed is not None:
        between = {name: weights[name] for name in weights if name.startswith(TRAINED)}
        fill(model, between, llm, torch.float32, wanted=lambda name: name.startswith(TRAINED))
    return model.to(device)


def official_state(model: MGMForCausalLM) -> dict[str, Tensor]:
    """All tensors under the official names in the official order, the output layer last; a copy of the
    embeddings where it is tied to them."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    order = (
        "model.embed_tokens",
        "model.layers",
        "model.norm",
        "model.vision_tower.",
        "model.vision_tower_aux",
        "model.mm_projector",
        "model.vlm_uni",
    )
    state = {name: tensor for prefix in order for name, tensor in state.items() if name.startswith(prefix)}
    head = model.lm_head.weight.detach()
    return state | {"lm_head.weight": head.clone() if model.config.tie_word_embeddings else head}


def save_checkpoint(
    model: MGMForCausalLM,
    folder: Path | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write a full checkpoint in the official layout; config.json, by which `discard_checkpoint` knows it,
    comes first, the index last. Returns the shards."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = official_state(model)
    plan = split_torch_state_dict_into_shards(state, max_shard_size=shard_bytes)
    total = len(plan.filename_to_tensors)
    shards = []
    weight_map: dict[str, str] = {}
    write_json(
        folder / "config.json", model.mgm.to_json() | {"torch_dtype": str(model.dtype).removeprefix("torch.")}
    )
    for number, names in enumerate(plan.filename_to_tensors.values(), start=1):
        shard = folder / f"model-{number:05d}-of-{total:05d}.safetensors"
        with atomic(shard) as temporary:
            save_file(
                {name: state[name].contiguous() for name in names}, temporary, metadata={"format": "pt"}
            )
        weight_map |= dict.fromkeys(names, shard.name)
        shards.append(shard)
    write_json(
        folder / "generation_config.json",
        {key: getattr(model.mgm.language, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with atomic(folder / INDEX) as temporary:  # the official file's form: sorted names, two spaces
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return shards


def save_bin(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """torch.save of a flat dict, atomically; saving to a handle keeps the temporary name out of the bytes."""
    with atomic(path) as temporary, temporary.open("wb") as handle:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, handle)


def save_projector(model: MGMForCausalLM, path: Path | str) -> None:
    """The stage-1 file mm_projector.bin: projector, mining modules and, as in the official code, both
    towers."""
    parts = re.compile("mm_projector|vlm_uni|vision_tower")
    state = {name: tensor for name, tensor in official_state(model).items() if parts.search(name)}
    save_bin(path, state)


def load_projector(model: MGMForCausalLM, path: Path | str, dtype: torch.dtype) -> None:
    """Take projector and mining modules from a stage-1 file. The official code takes the CLIP tower too,
    which therefore has to be the model's own, as well as the other one."""
    tensors = Weights(path)
    if not any(name.startswith(TRAINED[0]) for name in tensors):
        raise UserError(f"{path} holds no mm_projector: it is not the result of pretraining")
    between = {name: tensors[name] for name in tensors if not name.startswith(TOWERS)}
    fill(model, between, path, dtype, model.device, wanted=lambda name: name.startswith(TRAINED))
    assert_same_towers(model, tensors, path)


def assert_same_towers(model: MGMForCausalLM, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """UserError, naming `path`, unless `tensors` has the model's own towers, up to the rounding of the
    coarser of their types."""
    for name, parameter in model.named_parameters():
        if not name.startswith(TOWERS):
            continue
        if name not in tensors:
            raise UserError(f"{path} does not fit the model: it lacks {name}")
        tensor = tensors[name].to(parameter.device)
        coarser = min(tensor.dtype, parameter.dtype, key=lambda dtype: dtype.itemsize)
        if not torch.equal(tensor.to(coarser), parameter.to(coarser)):
            raise UserError(f"{path} was trained with another tower than the given tower: {name} differs")
