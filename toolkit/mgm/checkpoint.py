"""Checkpoints in the official layout, in and out: sharded safetensors with index, base models in parts, the stage-1 projector file.

Tensors are read from memory-mapped files one by one; `.bin` files are opened with `weights_only=True`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from toolkit.errors import UserError
from toolkit.files import atomic, read_json, write_json
from toolkit.mgm.config import CLIP_KEYS, MGMConfig, clip_sizes, convnext_sizes, from_official
from toolkit.mgm.model import TRAINED_NAMES, MGMForCausalLM

CLIP_PREFIX = "model.vision_tower.vision_tower.vision_model."
AUX_PREFIX = "model.vision_tower_aux.vision_"
SHARD_BYTES = 5_000_000_000  # as the official checkpoint was cut


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder or file by name, read when asked for.

    A folder holds one of model.safetensors(.index.json), open_clip_model.safetensors, pytorch_model.bin(.index.json),
    open_clip_pytorch_model.bin. UserError when it holds none or a shard is missing or damaged.
    """

    NAMES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._bins: dict[Path, dict[str, Tensor]] = {}
        self._opened: dict[Path, safe_open] = {}
        self._files: dict[str, Path] = {}
        for file in self._list():
            self._files.update(dict.fromkeys(self._keys(file), file))

    def _list(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist")
        for name in self.NAMES:
            if (self.path / f"{name}.index.json").is_file():
                index = read_json(self.path / f"{name}.index.json")
                if not isinstance(index, dict) or not index.get("weight_map"):
                    raise UserError(f"{self.path / name}.index.json has no weight_map")
                shards = sorted(set(index["weight_map"].values()))
                missing = [shard for shard in shards if not (self.path / shard).is_file()]
                if missing:
                    raise UserError(f"{self.path / name}.index.json names shards that are missing: {', '.join(missing)}")
                return [self.path / shard for shard in shards]
            if (self.path / name).is_file():
                return [self.path / name]
        raise UserError(f"{self.path} holds no weights: expected one of {', '.join(self.NAMES)} or their index")

    def _keys(self, file: Path) -> list[str]:
        if file.suffix == ".bin":
            try:
                self._bins[file] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:
                raise UserError(f"{file} is not a readable PyTorch weights file: {str(error).splitlines()[0]}") from None
            return list(self._bins[file])
        try:
            self._opened[file] = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a readable safetensors file: {error}") from None
        return list(self._opened[file].keys())

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        return self._bins[file][name] if file in self._bins else self._opened[file].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._files.values()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name, without reading the data."""
        found = {}
        for name, file in self._files.items():
            shape = self._bins[file][name].shape if file in self._bins else self._opened[file].get_slice(name).get_shape()
            found[name] = tuple(shape)
        return found

    def renamed(self, old: str, new: str) -> dict[str, Tensor]:
        """The tensors whose names start with `old`, under names that start with `new`."""
        return {new + name[len(old) :]: self[name] for name in self if name.startswith(old)}


def empty(config: MGMConfig, attention: str = "sdpa") -> MGMForCausalLM:
    """A model whose parameters take no memory yet; `fill` gives them."""
    with init_empty_weights(include_buffers=False):
        return MGMForCausalLM(config, attention)


def fill(
    model: MGMForCausalLM,
    tensors: Mapping[str, Tensor],
    source: Path | str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    partial: bool = False,
) -> None:
    """Assign `tensors` (official names) to the model in `dtype` on `device`, one after the other: the host holds no second copy.

    UserError, naming `source`, lists unexpected names, wrong shapes and, unless `partial`, parameters that got no tensor.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    problems = []
    for name, tensor in tensors.items():
        if name == "lm_head.weight":  # tied: the duplicate the official checkpoint carries
            continue
        if name not in own:
            problems.append(f"unexpected tensor {name}")
        elif own[name].shape != tensor.shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, the model needs {list(own[name].shape)}")
        else:
            module = model.get_submodule(name.rpartition(".")[0])
            old = own[name]
            value = tensor.to(device, dtype)
            if value.data_ptr() == tensor.data_ptr():
                value = tensor.clone()  # a copy of its own: not a view of the mapped file
            setattr(module, name.rpartition(".")[2], nn.Parameter(value, requires_grad=old.requires_grad))
    if not partial:
        absent = sorted(set(own) - set(tensors) - {"lm_head.weight"})
        problems += [f"no tensor {name}" for name in absent]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{source} does not fit the model: {'; '.join(problems[:5])}{more}")
    model.tie_weights()


def read_config(folder: Path | str) -> dict:
    """config.json of a folder; UserError when it is missing or no object."""
    raw = read_json(Path(folder) / "config.json")
    if not isinstance(raw, dict):
        raise UserError(f"{folder}/config.json is not a JSON object")
    return raw


def load_checkpoint(
    folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", attention: str = "sdpa"
) -> MGMForCausalLM:
    """The model of a full checkpoint in the official layout, whatever the folder is called, in eval mode."""
    weights = Weights(folder)
    config = from_official(read_config(folder), weights.shapes())
    model = empty(config, attention)
    fill(model, weights, folder, dtype, device)
    return model.to(device).eval()


def read_clip_config(folder: Path | str) -> dict:
    """Vision settings of a CLIP folder, which may hold a whole CLIP or its vision half."""
    raw = read_config(folder)
    raw = raw.get("vision_config", raw)
    if absent := [key for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size") if key not in raw]:
        raise UserError(f"{folder}/config.json describes no CLIP vision tower: {', '.join(absent)} is missing")
    # CLIPVisionConfig's defaults stand in for keys that a published config leaves out
    defaults = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    return {key: raw.get(key, defaults.get(key)) for key in CLIP_KEYS if key in raw or key in defaults}


def build(
    llm: Path | str,
    clip: Path | str,
    convnext: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **settings,
) -> MGMForCausalLM:
    """A model from its parts on `device`, the mining modules and projector fresh from `seed`, the same on every device.

    llm, clip: Hugging Face folders. convnext: an open_clip folder. settings: fields of MGMConfig.
    """
    clip_weights, convnext_weights = Weights(clip), Weights(convnext)
    clip_tensors = {
        CLIP_PREFIX + name.removeprefix("vision_model."): clip_weights[name]
        for name in clip_weights
        if not name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))
        and not name.endswith("position_ids")
    }
    aux_tensors = convnext_weights.renamed("visual.trunk.stem.", f"{AUX_PREFIX}stem.") | convnext_weights.renamed(
        "visual.trunk.stages.", f"{AUX_PREFIX}stages."
    )
    depths, dims = convnext_sizes({name: tuple(tensor.shape) for name, tensor in aux_tensors.items()}, f"{AUX_PREFIX}stages.")
    clip_sizes(
        {name: tuple(tensor.shape) for name, tensor in clip_tensors.items()}, CLIP_PREFIX
    )  # says so when the folder holds no vision tower
    config = MGMConfig(gemma=read_config(llm), clip=read_clip_config(clip), depths=depths, dims=dims, **settings)
    model = empty(config)
    fill(model, Weights(llm), llm, dtype, device, partial=True)
    fill(model, clip_tensors, clip, dtype, device, partial=True)
    fill(model, aux_tensors, convnext, dtype, device, partial=True)
    torch.manual_seed(seed)
    for name, module in model.model.named_children():
        if name.startswith(TRAINED_NAMES):
            module.to_empty(device="cpu")
            for layer in module.modules():
                if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                    layer.reset_parameters()
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise UserError(f"{llm}, {clip} and {convnext} together lack {len(absent)} tensors, {absent[0]} among them")
    return model.to(device)


def load_tokenizer(folder: Path | str, max_length: int) -> PreTrainedTokenizerBase:
    """Tokenizer of a Gemma or MGM folder, set up as in training: padding on the right, `max_length` tokens at most."""
    if not (Path(folder) / "tokenizer.json").is_file():
        raise UserError(f"{folder} holds no tokenizer.json")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, padding_side="right", model_max_length=max_length)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"{folder} holds a tokenizer that cannot be read: {error}") from None


def official_state(model: MGMForCausalLM) -> dict[str, Tensor]:
    """All tensors under the official names in the official order, lm_head's duplicate last."""
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
    return state | {"lm_head.weight": model.lm_head.weight.detach().clone()}


def save_checkpoint(
    model: MGMForCausalLM, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write a full checkpoint in the official layout; the index comes last. Returns the shards."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = official_state(model)
    plan = split_torch_state_dict_into_shards(state, max_shard_size=shard_bytes)
    total = len(plan.filename_to_tensors)
    shards = []
    weight_map = {}
    for number, names in enumerate(plan.filename_to_tensors.values(), start=1):
        shard = folder / f"model-{number:05d}-of-{total:05d}.safetensors"
        with atomic(shard) as temporary:
            save_file({name: state[name].contiguous() for name in names}, temporary, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, shard.name)
        shards.append(shard)
    write_json(folder / "config.json", model.mgm.to_json() | {"torch_dtype": str(model.dtype).removeprefix("torch.")})
    write_json(
        folder / "generation_config.json", {key: model.mgm.gemma.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with atomic(folder / "model.safetensors.index.json") as temporary:  # the official file's form: sorted names, two spaces
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return shards


def save_bin(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """torch.save of a flat dict, atomically; saving to a handle keeps the temporary name out of the bytes."""
    with atomic(path) as temporary, temporary.open("wb") as handle:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, handle)


def save_projector(model: MGMForCausalLM, path: Path | str) -> None:
    """The stage-1 file mm_projector.bin: projector, mining modules and, as in the official code, both towers."""
    state = official_state(model)
    save_bin(
        path, {name: tensor for name, tensor in state.items() if any(part in name for part in ("mm_projector", "vlm_uni", "vision_tower"))}
    )


def load_projector(model: MGMForCausalLM, path: Path | str, dtype: torch.dtype) -> None:
    """Take projector and mining modules (and the CLIP tower, as the official code does) from a stage-1 file."""
    tensors = Weights(path)
    wanted = {name: tensors[name] for name in tensors if any(part in name for part in (*TRAINED_NAMES, "vision_tower.vision_tower"))}
    if not any(TRAINED_NAMES[0] in name for name in wanted):
        raise UserError(f"{path} holds no mm_projector: it is not the result of pretraining")
    fill(model, wanted, path, dtype, model.device, partial=True)
