"""A LoRA folder as PEFT writes it: which tensors of the base it changes, and what each becomes."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.mgm.weights import Weights
from toolkit.train.lora import PREFIX, adapter_file

PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
SAVED = re.compile(r"(?P<module>.+?)\.(?:modules_to_save(?:\.default)?\.|base_layer\.)?(?P<kind>weight|bias)")
# of ranks and alphas, a stranger's: without repetition, so that none takes hours to match
PATTERN = re.compile(r"(?:[\w.|-]|\\\.|\^|\$)+")
# settings by which PEFT trains or computes otherwise than `Update.of` does
OTHERWISE = (
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
INITIAL = (None, True, False, "gaussian", "orthogonal")  # others may change the base: PiSSA, OLoRA, LoftQ
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # their linear layers are [in, out]


@dataclass
class Update:
    """What a module's weight becomes: `parts` by their names in the file; scale: alpha by rank."""

    scale: float
    transposed: bool
    parts: dict[str, Tensor] = field(default_factory=dict)

    def of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(the merged weight, the most that the sums of its update can be), in float32.

        LoRA (arXiv 2106.09685), and DoRA (arXiv 2402.09353), whose magnitudes belong to the rows.
        UserError where the parts do not fit the weight.
        """
        parts = {name: part.float() for name, part in self.parts.items()}
        embedding = "lora_embedding_A" in parts
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if not set(names) <= parts.keys():
            raise UserError(f"the adapter has only {', '.join(parts)} of it")
        a, b = (parts[name] for name in names)
        turned = embedding or (self.transposed and a.dim() == 2)
        assert_fitting(a, b, weight.T if turned else weight)
        delta, bound = (self.scale * product(*pair) for pair in ((a, b), (a.abs(), b.abs())))
        if turned:
            delta, bound = delta.T, bound.T
        merged = weight.float() + delta
        if (magnitudes := parts.get("lora_magnitude_vector")) is not None:
            rows = merged.T if self.transposed else merged
            if rows.dim() != 2 or embedding:
                raise UserError("DoRA is checked for linear layers only")
            if magnitudes.numel() != len(rows):
                raise UserError(f"the adapter has {magnitudes.numel()} magnitudes of its {len(rows)} rows")
            factor = (magnitudes.flatten() / rows.norm(dim=1))[:, None]
            factor = factor.T if self.transposed else factor
            merged, bound = factor * merged, factor.abs() * (bound + weight.float().abs())
        return merged, bound


def assert_fitting(a: Tensor, b: Tensor, weight: Tensor) -> None:
    """UserError unless A and B are those of a weight [out, in] or, of a convolution, [out, in, h, w]."""
    if weight.dim() not in (2, 4):
        raise UserError("only linear layers, embeddings and convolutions of two dimensions are checked")
    rank = a.shape[0] if a.dim() else 0
    ones = [1] * (weight.dim() - 2)
    if list(a.shape) != [rank, *weight.shape[1:]] or list(b.shape) != [weight.shape[0], rank, *ones]:
        raise UserError(f"the adapter's parts of it have shapes {list(a.shape)} and {list(b.shape)}")


def product(a: Tensor, b: Tensor) -> Tensor:
    """B A of linear layers, and of convolutions, whose A has the kernel."""
    return b @ a if a.dim() == 2 else F.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3)


@dataclass
class Adapter:
    """updates: by the module whose weight they change. saved: tensors that replace the base's, by name."""

    updates: dict[str, Update]
    saved: dict[str, Tensor]


def read(folder: Path, model_type: str) -> Adapter:
    """The adapter in a folder; model_type: of the base. UserError for one that is not LoRA, or LoRA of a kind
    that is not checked."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no adapter_config.json: name the folder of a PEFT adapter")
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise UserError(f"{path} is not that of a LoRA: no other adapter is checked")
    strange = [name for name in OTHERWISE if settings.get(name)]
    if settings.get("init_lora_weights") not in INITIAL:
        strange.append("init_lora_weights")
    if strange:
        raise UserError(f"{path}: {strange[0]} is {settings[strange[0]]!r}, which is not checked")
    transposed = bool(settings.get("fan_in_fan_out")) or model_type in CONV1D
    adapter = Adapter({}, {})
    file = adapter_file(folder)
    for name, tensor in Weights(file).items():
        plain = name.removeprefix(PREFIX)
        if match := PART.fullmatch(plain):
            module = match["module"]
            if module not in adapter.updates:
                adapter.updates[module] = Update(scale(settings, module, path), transposed)
            adapter.updates[module].parts[match["part"]] = tensor
        elif match := SAVED.fullmatch(plain):
            adapter.saved[f"{match['module']}.{match['kind']}"] = tensor
        else:
            raise UserError(f"{file}: {name} is no part of a LoRA that is checked")
    if not adapter.updates and not adapter.saved:
        raise UserError(f"{file} holds no tensor")
    return adapter


def scale(settings: dict[str, Any], module: str, path: Path) -> float:
    """Alpha by rank, or by its root (rsLoRA, arXiv 2312.03732), of one module."""

    def of(key: str, patterns: str) -> Any:
        given = settings.get(patterns) or {}
        if strange := [name for name in given if not PATTERN.fullmatch(name)]:
            raise UserError(f"{path}: {patterns} has {strange[0]!r}, which is not checked")
        own = [value for name, value in given.items() if re.match(rf"(.*\.)?({name})$", module)]
        return own[0] if own else settings.get(key)

    rank, alpha = of("r", "rank_pattern"), of("lora_alpha", "alpha_pattern")
    if not (isinstance(rank, int) and isinstance(alpha, int | float) and rank > 0):
        raise UserError(f"{path}: r is {rank!r}, lora_alpha {alpha!r}: both are numbers, r above 0")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def rounding(*tensors: Tensor) -> float:
    """The coarsest relative rounding of these tensors' types."""
    return max(torch.finfo(tensor.dtype).eps for tensor in tensors)
