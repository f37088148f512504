"""What a training stage takes of a GPU's and of the host's memory, computed from the model's sizes alone: no
torch, no GPU.

The planner chooses by it where full finetuning keeps its optimizer, and then measures; `toolkit doctor` says
by it beforehand whether a machine can train at all.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

GIB = 2**30
RESERVE = 0.06  # of the free memory: fragmentation, other libraries' buffers
STEP = 0.25  # of the budget, for activations and what an optimizer step takes for a while
PROCESS = 4 * GIB  # of the host, allowed for: the interpreter, CUDA's context, processes that prepare images
LOGITS = 512  # rows of logits at a time (toolkit/mgm/loss.py)
NF4 = 4.13 / 8  # bytes of a weight (toolkit/train/nf4.py)

Kind = Literal["pretrain", "lora", "nf4", "full"]
# of full finetuning's optimizer, the fastest first: shared among GPUs as by ZeRO's stages 2 and 3, where one
# GPU holds all; or float32 values and moments in the host's memory (toolkit/train/masters.py)
SETTINGS = ("zero2", "zero3", "offload")
DEEPSPEED = ("zero2", "zero2_offload", "zero3")  # the kit's settings of it


@dataclass(frozen=True)
class Sizes:
    """Numbers (parameters) of a model and of its parts; a test compares them with the model itself.

    linear: in the decoder's linear layers, which LoRA adapts and nf4 quantises; adapter: in a LoRA of rank 1.
    connector: projector and mining modules. largest: in the largest trained tensor. cached: keys and values
    of a token, of all layers. tied: whether the output layer is the table of embeddings, which the official
    checkpoint has twice.
    """

    parameters: int
    towers: int
    connector: int
    linear: int
    adapter: int
    largest: int
    cached: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool = True

    @property
    def saved(self) -> int:
        """Numbers in a checkpoint."""
        return self.parameters + self.tied * self.vocabulary * self.hidden


# by `size` of a scale
SIZES = {
    "2B": Sizes(
        parameters=3_019_166_144,
        towers=499_734_720,
        connector=13_259_008,
        linear=1_981_808_640,
        adapter=1_225_728,
        largest=524_288_000,
        cached=9_216,
        layers=18,
        hidden=2048,
        intermediate=16_384,
        vocabulary=256_000,
    ),
    "7B": Sizes(
        parameters=7_266_093_504,
        towers=499_734_720,
        connector=27_943_168,
        linear=6_476_005_376,
        adapter=2_498_560,
        largest=131_072_000,
        cached=262_144,
        layers=32,
        hidden=4096,
        intermediate=11_008,
        vocabulary=32_000,
        tied=False,
    ),
    "8B": Sizes(
        parameters=8_557_939_136,
        towers=499_734_720,
        connector=27_943_168,
        linear=6_979_321_856,
        adapter=2_621_440,
        largest=525_336_576,
        cached=65_536,
        layers=32,
        hidden=4096,
        intermediate=14_336,
        vocabulary=128_256,
        tied=False,
    ),
    "13B": Sizes(
        parameters=13_554_030_016,
        towers=499_734_720,
        connector=38_430_976,
        linear=12_687_769_600,
        adapter=3_911_680,
        largest=163_840_000,
        cached=409_600,
        layers=40,
        hidden=5120,
        intermediate=13_824,
        vocabulary=32_000,
        tied=False,
    ),
    "Tiny": Sizes(
        parameters=1_434_352,
        towers=733_392,
        connector=85_664,
        linear=565_248,
        adapter=7104,
        largest=49_152,
        cached=192,
        layers=3,
        hidden=128,
        intermediate=384,
        vocabulary=384,
    ),
    "TinyLlama": Sizes(
        parameters=1_508_080,
        towers=733_392,
        connector=85_664,
        linear=589_824,
        adapter=7296,
        largest=49_152,
        cached=384,
        layers=3,
        hidden=128,
        intermediate=384,
        vocabulary=384,
        tied=False,
    ),
}


@dataclass(frozen=True)
class Parts:
    """Bytes on each GPU."""

    weights: int
    gradients: int
    masters: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def trained(sizes: Sizes, kind: Kind, rank: int) -> int:
    """Numbers that a stage trains; rank: of LoRA's update."""
    if kind == "full":
        return sizes.parameters - sizes.towers
    return sizes.connector + (sizes.adapter * rank if kind in ("lora", "nf4") else 0)


def state(setting: str, parameters: int, trained: int, processes: int) -> int:
    """Bytes of weights, gradients and optimizer state on each GPU, of `parameters` of which `trained` are
    trained, with one of SETTINGS.

    Table 1 of arXiv 1910.02054 with K = 12 (float32 weight and two moments), but with gradients summed in
    float32, 4 bytes and not 2. Beside it a step needs, for its largest matrix alone, up to 8 bytes a number,
    and the activations.
    """
    if setting == "offload":
        return 2 * parameters + 4 * trained
    if setting == "zero2":
        return 2 * parameters + 16 * trained // processes
    return (2 * parameters + 16 * trained) // processes


def fastest(parameters: int, trained: int, processes: int, budget: int) -> str:
    """The first of SETTINGS whose weights and optimizer state leave STEP of `budget` bytes free; offload
    where none does."""
    # zero3 of one process has nobody to share with
    for setting in SETTINGS:
        fits = state(setting, parameters, trained, processes) <= budget * (1 - STEP)
        if fits and (setting != "zero3" or processes > 1):
            return setting
    return "offload"


def activations(sizes: Sizes, tokens: int, labelled: int) -> int:
    """Bytes of a pass over `tokens` tokens, `labelled` of them with a label, with every layer checkpointed.

    In bf16: each layer's input; of the layer that is computed again eight rows of the MLP's width a token,
    gate, up, activation and product with their gradients; logits and their gradient, LOGITS rows at a time.
    """
    layer = sizes.layers * sizes.hidden + 8 * sizes.intermediate
    return 2 * layer * tokens + 4 * min(labelled, LOGITS) * sizes.vocabulary


def device(
    sizes: Sizes, kind: Kind, *, tokens: int, rank: int = 0, setting: str = "zero2", processes: int = 1
) -> Parts:
    """The least that a stage takes of each GPU: passes of one row of `tokens` tokens, every layer
    checkpointed.

    setting: one of SETTINGS, for `full` alone. What is trained otherwise is float32: weights, gradients, two
    moments.
    """
    count, step = trained(sizes, kind, rank), activations(sizes, tokens, tokens)
    if kind == "full":
        # what the step takes for its largest matrix
        step += 8 * sizes.largest
        if setting == "offload":
            return Parts(2 * sizes.parameters, 4 * count, 0, 0, step)
        each, share = 4 * count // processes, processes if setting == "zero3" else 1
        return Parts(2 * sizes.parameters // share, each, each, 2 * each, step)
    # the connector is among `parameters`, adapters come on top
    frozen = sizes.parameters - sizes.connector
    quantised = sizes.linear if kind == "nf4" else 0
    weights = 2 * (frozen - quantised) + int(NF4 * quantised)
    return Parts(weights, 4 * count, 4 * count, 8 * count, step)


def least(sizes: Sizes, kind: Kind, **how: Any) -> int:
    """Bytes of each GPU that a stage needs at least; arguments as of `device`."""
    # nf4 is quantised layer by layer from the host's memory; all else is loaded whole
    return max(device(sizes, kind, **how).total, 0 if kind == "nf4" else 2 * sizes.parameters)


def host(
    sizes: Sizes,
    kind: Kind,
    *,
    rank: int = 0,
    setting: str = "zero2",
    processes: int = 1,
    checkpoint: bool = True,
) -> int:
    """Bytes of the host's memory that a stage takes at its peak, all processes together.

    With offload it holds, of what is trained, float32 values and two moments, page-locked. While a checkpoint
    is written, if one is (every `save_steps` of the scale), 12 bytes a trained number lie beside; at the end
    the trained numbers in float32; then the model in bf16. What one process has offloaded is written as it
    lies there.
    """
    count = trained(sizes, kind, rank)
    offloaded = 12 * count if setting == "offload" and kind == "full" else 0
    gathered = 0 if offloaded and processes == 1 else (12 if checkpoint else 4) * count
    return processes * PROCESS + offloaded + max(gathered, 2 * sizes.parameters)
