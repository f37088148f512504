"""RMSNorm and the gate of an MLP as one kernel each, for answering on a GPU: transformers' modules read and
write the hidden states several times for the same result.

They round where those modules round; sums over a row are in float32 and may differ in their last bit.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP

from toolkit.mgm.model import MGMForCausalLM

BLOCK = 1024  # numbers a program of the gate takes
ACTIVATIONS = ("gelu", "silu")  # gelu: the exact form, by erf


@triton.jit
def _norm(rows, weight, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GEMMA: tl.constexpr):
    """rows and out [n, WIDTH], a program a row; Gemma multiplies by 1 + weight before it rounds, Llama by
    weight after it."""
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    first = tl.program_id(0).to(tl.int64) * WIDTH
    value = tl.load(rows + first + at, inside, 0.0).to(tl.float32)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / WIDTH + epsilon)
    scale = tl.load(weight + at, inside, 0.0).to(tl.float32)
    if GEMMA:
        scale += 1.0
    else:
        value = value.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + first + at, (value * scale).to(out.dtype.element_ty), inside)


@triton.jit
def _gate(gate, up, count, SILU: tl.constexpr, BLOCK: tl.constexpr):
    """gate = activation(gate) * up, in place."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(gate + at, inside, 0.0).to(tl.float32)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    else:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    value = value.to(gate.dtype.element_ty).to(tl.float32) * tl.load(up + at, inside, 0.0).to(tl.float32)
    tl.store(gate + at, value.to(gate.dtype.element_ty), inside)


def rms_norm(norm: nn.Module, epsilon: float, hidden: Tensor) -> Tensor:
    """What the RMSNorm `norm` makes of `hidden` [..., d]; has no gradient."""
    hidden = hidden.contiguous()
    width, out = hidden.shape[-1], torch.empty_like(hidden)
    gemma = isinstance(norm, GemmaRMSNorm)
    _norm[(hidden.numel() // width,)](
        hidden, norm.weight, out, epsilon, width, triton.next_power_of_2(width), gemma, num_warps=8
    )
    return out


def gated_mlp(mlp: GemmaMLP | LlamaMLP, silu: bool, hidden: Tensor) -> Tensor:
    """What the gated MLP `mlp` makes of `hidden` [..., d]; has no gradient."""
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    _gate[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, gate.numel(), silu, BLOCK)
    return mlp.down_proj(gate)


def fuse(model: MGMForCausalLM) -> None:
    """Let the decoder's norms and MLPs run these kernels, where the activation is one of ACTIVATIONS."""
    epsilon, activation = model.mgm.language.rms_norm_eps, model.mgm.language.hidden_act
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.forward = partial(rms_norm, norm, epsilon)
        if activation in ACTIVATIONS:
            layer.mlp.forward = partial(gated_mlp, layer.mlp, activation == "silu")
