"""Kernels for answering on a GPU, one for what transformers and torch compute in several that each read and
write the hidden states: norms, gates, rotary positions, layer scale.

They round where the modules that they replace round; sums over a row are in float32 and may differ in their
last bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import CausalBias
from transformers.activations import QuickGELUActivation
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP

from toolkit.mgm.convnext import Block, LayerNorm2d
from toolkit.mgm.depthwise import depthwise
from toolkit.mgm.language import GATES
from toolkit.mgm.model import MGMForCausalLM

BLOCK = 1024  # numbers a program takes of what is computed number by number
TILE = 2048  # numbers a program of a LayerNorm takes, in whole rows


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
def _layer_norm(
    rows, weight, bias, out, count, epsilon, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """rows and out [count, WIDTH], ROWS of them a program."""
    row, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    column = (at < WIDTH)[None, :]
    inside, place = (row < count)[:, None] & column, row[:, None] * WIDTH + at[None, :]
    value = tl.load(rows + place, inside, 0.0).to(tl.float32)
    centred = tl.where(column, value - (tl.sum(value, 1) / WIDTH)[:, None], 0.0)
    value = centred * tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + epsilon)[:, None]
    value = value * tl.load(weight + at, at < WIDTH, 0.0).to(tl.float32)[None, :]
    value += tl.load(bias + at, at < WIDTH, 0.0).to(tl.float32)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), inside)


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


@triton.jit
def _quick_gelu(values, count, BLOCK: tl.constexpr):
    """values = values * sigmoid(1.702 values), in place."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    kind = values.dtype.element_ty
    value = tl.load(values + at, inside, 0.0).to(tl.float32)
    gate = tl.sigmoid((1.702 * value).to(kind).to(tl.float32)).to(kind).to(tl.float32)
    tl.store(values + at, (value * gate).to(kind), inside)


@triton.jit
def _scaled_sum(base, values, scale, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """values = base + values * scale, in place; scale [WIDTH]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    kind = values.dtype.element_ty
    value = tl.load(values + at, inside, 0.0).to(tl.float32)
    value = (value * tl.load(scale + at % WIDTH).to(tl.float32)).to(kind).to(tl.float32)
    value += tl.load(base + at, inside, 0.0).to(tl.float32)
    tl.store(values + at, value.to(kind), inside)


@triton.jit
def _angle(cosines, sines, at, inside):
    return tl.load(cosines + at, inside, 0.0).to(tl.float32), tl.load(sines + at, inside, 0.0).to(tl.float32)


@triton.jit
def _rotate(
    values,
    cosines,
    sines,
    length,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    """values [n, length, HEADS, 2 HALF] turned in place, a program a token; cosines and sines
    [length, 2 HALF], where EACH [n, length, 2 HALF]."""
    token = tl.program_id(0).to(tl.int64)
    kind = values.dtype.element_ty
    head, at = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    row = (token if EACH else token % length) * 2 * HALF + at
    place, inside = values + (token * HEADS + head) * 2 * HALF + at, (head < HEADS) & (at < HALF)
    first = tl.load(place, inside, 0.0).to(tl.float32)
    second = tl.load(place + HALF, inside, 0.0).to(tl.float32)
    cosine, sine = _angle(cosines, sines, row, at < HALF)
    turned = (first * cosine).to(kind).to(tl.float32) - (second * sine).to(kind).to(tl.float32)
    tl.store(place, turned.to(kind), inside)
    cosine, sine = _angle(cosines, sines, row + HALF, at < HALF)
    turned = (second * cosine).to(kind).to(tl.float32) + (first * sine).to(kind).to(tl.float32)
    tl.store(place + HALF, turned.to(kind), inside)


def rms_norm(norm: nn.Module, epsilon: float, hidden: Tensor) -> Tensor:
    """What the RMSNorm `norm` makes of `hidden` [..., d]; has no gradient, as nothing here has."""
    hidden = hidden.contiguous()
    width, out = hidden.shape[-1], torch.empty_like(hidden)
    gemma = isinstance(norm, GemmaRMSNorm)
    _norm[(hidden.numel() // width,)](
        hidden, norm.weight, out, epsilon, width, triton.next_power_of_2(width), gemma, num_warps=8
    )
    return out


def layer_norm(norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    """What `norm` makes of `hidden` [..., d]."""
    hidden = hidden.contiguous()
    width, out = hidden.shape[-1], torch.empty_like(hidden)
    count, block = hidden.numel() // width, triton.next_power_of_2(width)
    rows = max(1, TILE // block)
    _layer_norm[(triton.cdiv(count, rows),)](
        hidden, norm.weight, norm.bias, out, count, norm.eps, width, rows, block
    )
    return out


def layer_norm_2d(norm: LayerNorm2d, maps: Tensor) -> Tensor:
    """What `norm` makes of `maps` [B, C, H, W]."""
    return layer_norm(norm, maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gated_mlp(mlp: GemmaMLP | LlamaMLP, silu: bool, hidden: Tensor) -> Tensor:
    """What the gated MLP `mlp` makes of `hidden` [..., d]."""
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    _gate[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, gate.numel(), silu, BLOCK)
    return mlp.down_proj(gate)


def quick_gelu(_: QuickGELUActivation, values: Tensor) -> Tensor:
    """CLIP's activation of contiguous `values`, in place."""
    _quick_gelu[(triton.cdiv(values.numel(), BLOCK),)](values, values.numel(), BLOCK)
    return values


def convnext_block(block: Block, maps: Tensor) -> Tensor:
    """What `block` makes of `maps` [B, C, H, W], channels-last as the result is."""
    mixed = depthwise(maps, block.conv_dw.weight, block.conv_dw.bias).permute(0, 2, 3, 1)
    values = block.mlp(layer_norm(block.norm, mixed))
    base, count = maps.permute(0, 2, 3, 1).contiguous(), values.numel()
    _scaled_sum[(triton.cdiv(count, BLOCK),)](base, values, block.gamma, count, values.shape[-1], BLOCK)
    return values.permute(0, 3, 1, 2)


def rotate(values: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """Turn contiguous `values` [n, L, heads, d] by their positions, in place; cosines and sines [1 or n, L,
    d]."""
    count, length, heads, width = values.shape
    _rotate[(count * length,)](
        values,
        cosines.contiguous(),
        sines.contiguous(),
        length,
        heads,
        width // 2,
        triton.next_power_of_2(heads),
        triton.next_power_of_2(width // 2),
        len(cosines) > 1,
    )


def attention(
    layer: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    past_key_values: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a decoder's attention `layer` makes of hidden_states [n, L, d] and of the keys and values before
    them; attention_mask [n or 1, 1, L, seen], a `CausalBias`, or None: causal, with nothing before them
    unless L is 1.

    Flash attention, which knows the causal order alone, shares keys between query heads; under another mask
    these become rows of one head, so that keys are not repeated for each.
    """
    shape = *hidden_states.shape[:2], -1, layer.head_dim
    queries, keys, values = (
        project(hidden_states).view(shape) for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    rotate(queries, *position_embeddings)
    rotate(keys, *position_embeddings)
    queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, layer.layer_idx)
    count, heads, length, width = queries.shape
    shared = heads // keys.shape[1]
    if attention_mask is None or isinstance(attention_mask, CausalBias):
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attention_mask,
            is_causal=attention_mask is None and length > 1,
            scale=layer.scaling,
            enable_gqa=shared > 1,
        )
    else:
        rows = queries.reshape(count, keys.shape[1], shared * length, width)
        mask = attention_mask.repeat(1, 1, shared, 1)
        mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=layer.scaling)
        mixed = mixed.reshape(count, heads, length, width)
    return layer.o_proj(mixed.transpose(1, 2).reshape(*shape[:2], -1)), None


# of the towers, by the module that each replaces
KERNELS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.LayerNorm: layer_norm,
    LayerNorm2d: layer_norm_2d,
    QuickGELUActivation: quick_gelu,
    Block: convnext_block,
}


def fuse(model: MGMForCausalLM) -> None:
    """Let decoder and towers run these kernels, each where the model has what it computes."""
    epsilon, activation = model.mgm.language.rms_norm_eps, model.mgm.language.hidden_act
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.forward = partial(rms_norm, norm, epsilon)
        layer.self_attn.forward = partial(attention, layer.self_attn)
        if activation in GATES:
            layer.mlp.forward = partial(gated_mlp, layer.mlp, activation == "silu")
    for part in (*model.clip.modules(), *model.model.vision_tower_aux.modules()):
        if kernel := KERNELS.get(type(part)):
            part.forward = partial(kernel, part)
