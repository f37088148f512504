"""Floating-point operations of a training sample, by part, and the rate that the device reaches in a matrix
product.

A product of [m, k] and [k, n] counts 2mkn; normalisation, activation, softmax and interpolation count
nothing. The backward pass of a product takes one such product for each operand that needs a gradient. What a
result needs is counted once, however it is computed ("model FLOPs", PaLM, arXiv 2204.02311, appendix B):
attention over the full square, as there, without the causal half; nothing for activations that are computed
again. Sizes are those of the leanest known form of the same function: mining as in toolkit/mgm/mining.py,
CLIP to the selected layer, in the last decoder layer the MLP, and after it the logits, at labelled positions
only.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from toolkit.mgm.config import MGMConfig
from toolkit.mgm.processor import views


@dataclass(frozen=True)
class Flops:
    """Operations of one part in one direction each."""

    forward: float
    backward: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> float:
        """Both directions."""
        return self.forward + self.backward


def clip(config: MGMConfig) -> Flops:
    """Of each view: patch embedding 2 T 3p^2 d; a layer over n = T + 1 tokens: four projections 8 n d^2,
    attention 4 n^2 d, MLP 4 n d m. Frozen."""
    d, m, p = config.clip["hidden_size"], config.clip["intermediate_size"], config.clip["patch_size"]
    tokens = patches(config)
    n = tokens + 1
    layers = config.clip["num_hidden_layers"] + 1 + config.select_layer
    view = 2 * tokens * 3 * p**2 * d + layers * (8 * n * d**2 + 4 * n**2 * d + 4 * n * d * m)
    return Flops(views(config) * view)


def convnext(config: MGMConfig) -> Flops:
    """Stem 2 s^2 48 c; from the second stage 2 s^2 4c' c for the downsampling from c'; a block 2 s^2 (49 c +
    8 c^2). Frozen."""
    side = config.image_size_aux // 4
    total = 2 * side**2 * 48 * config.dims[0]
    for number, (depth, c) in enumerate(zip(config.depths, config.dims, strict=True)):
        if number:
            side //= 2
            total += 2 * side**2 * 4 * config.dims[number - 1] * c
        total += depth * 2 * side**2 * (49 * c + 8 * c**2)
    return Flops(total)


def mining(config: MGMConfig) -> Flops:
    """T queries, J candidates each, of C channels: linear layers 2 T (d^2 + 2 d C), scores and their mean 4 T
    J C.

    Backward: two products for each linear layer; one for scores and mean, since the candidates are frozen.
    """
    d, channels, tokens = config.clip["hidden_size"], sum(config.dims), image_tokens(config)
    candidates = (config.image_size_aux // 4 // config.image_grid) ** 2 // patches(config)
    linear, attention = 2 * tokens * (d**2 + 2 * d * channels), 4 * tokens * candidates * channels
    return Flops(linear + attention, 2 * linear + attention)


def projector(config: MGMConfig) -> Flops:
    """Two linear layers, 2 T (d D + D^2), trained in every stage."""
    d, width = config.clip["hidden_size"], config.language.hidden_size
    forward = 2 * image_tokens(config) * (d * width + width**2)
    return Flops(forward, 2 * forward)


def decoder(config: MGMConfig, stage: str, length: int, labelled: int, rank: int) -> Flops:
    """Linear layers: 2 n w for w weights at n positions, backward the same again for the inputs and, when
    trained, for the weights.

    LoRA (stage lora) adds 2 n r (in + out) a layer, trained.
    """
    g = config.language.transformers()
    d, m, layers = g.hidden_size, g.intermediate_size, g.num_hidden_layers
    queries, keys = g.num_attention_heads * g.head_dim, g.num_key_value_heads * g.head_dim
    attention, mlp = [(d, queries), (d, keys), (d, keys), (queries, d)], [(d, m), (d, m), (m, d)]

    def of(weights: int) -> Flops:
        forward = 2 * weights
        return Flops(forward, 2 * forward if stage == "full" else forward)

    positions = {"attention": layers * length, "mlp": (layers - 1) * length + labelled}
    shapes = {"attention": attention, "mlp": mlp}
    total = Flops(0)
    for name, count in positions.items():
        total += of(count * sum(a * b for a, b in shapes[name]))
        if stage == "lora":
            adapters = 2 * count * rank * sum(a + b for a, b in shapes[name])
            total += Flops(adapters, 2 * adapters)
    return total


def attention(config: MGMConfig, length: int) -> Flops:
    """Scores and values of the decoder: 4 n^2 h k a layer for h heads of k channels; backward twice that."""
    g = config.language.transformers()
    forward = g.num_hidden_layers * 4 * length**2 * g.num_attention_heads * g.head_dim
    return Flops(forward, 2 * forward)


def logits(config: MGMConfig, stage: str, labelled: int) -> Flops:
    """2 n D V at n labelled positions; backward the same for the hidden states and, when trained, for the
    weights."""
    forward = 2 * labelled * config.language.hidden_size * config.language.vocab_size
    return Flops(forward, 2 * forward if stage == "full" else forward)


def sample(config: MGMConfig, stage: str, text: int, labelled: int, rank: int = 16) -> dict[str, Flops]:
    """All parts of one sample with one image: `text` tokens beside its own, `labelled` of them with a
    label."""
    length = image_tokens(config) + text
    return {
        "CLIP": clip(config),
        "ConvNeXt": convnext(config),
        "mining": mining(config),
        "projector": projector(config),
        "decoder": decoder(config, stage, length, labelled, rank),
        "attention": attention(config, length),
        "logits": logits(config, stage, labelled),
    }


def recomputed(config: MGMConfig, stage: str, text: int, checkpointed: int, rank: int = 16) -> float:
    """What gradient checkpointing of the first `checkpointed` decoder layers adds; with it, "hardware FLOPs".

    A layer's forward pass but for its last product, which nothing in the backward pass reads.
    """
    g, length = config.language.transformers(), image_tokens(config) + text
    total = decoder(config, stage, length, length, rank) + attention(config, length)
    last = 2 * length * g.hidden_size * (rank if stage == "lora" else g.intermediate_size)
    return checkpointed * (total.forward / g.num_hidden_layers - last)


def patches(config: MGMConfig) -> int:
    """Tokens of a view."""
    return (config.clip["image_size"] // config.clip["patch_size"]) ** 2


def image_tokens(config: MGMConfig) -> int:
    """Tokens of an image."""
    return views(config) * patches(config)


def peak(device: torch.device) -> float:
    """FLOP/s of a square matrix product, median of five series of ten: 8192 in bf16 on a GPU, 1024 in float32
    on the CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out, seconds = torch.empty_like(a), []
    for _ in range(6):  # the first series warms up
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b, out=out)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 10 * 2 * size**3 / statistics.median(seconds[1:])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
