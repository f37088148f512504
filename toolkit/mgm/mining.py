"""Patch-info mining (arXiv 2403.18814, section 3.2): each low-resolution token attends to the high-resolution
patch beneath it.

The official code projects every candidate to a key and a value. The same result comes from fewer operations:
with x^ the normalised candidates, which need no gradient because the towers are frozen,

    score_j = x^_j . (gamma_k * (W_k^T q)) / sqrt(d)      (terms equal for all candidates drop out of the
    softmax) output  = W_v (gamma_v * sum_j a_j x^_j + beta_v) + b_v   (the a_j sum to one)

so that no [tokens x candidates x d] tensor is ever made. beta_k and b_k cannot change the output: their
gradient is exactly zero. On a GPU the candidates themselves are not made either: `toolkit.mgm.mining_kernel`
reads each stage at its own resolution.
"""

from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.mgm.convnext import concatenate, resize

try:
    from toolkit.mgm import mining_kernel
except ImportError:  # Triton comes with the CUDA builds of PyTorch only
    mining_kernel = None  # type: ignore[assignment]

CHANNELS = 128  # that are resized at a time


def projector(dim_in: int, dim_out: int) -> nn.Sequential:
    """LayerNorm and linear layer, the form of the three mining modules."""
    return nn.Sequential(nn.LayerNorm(dim_in), nn.Linear(dim_in, dim_out))


def candidates(high: Tensor, tokens: int) -> Tensor:
    """Cut [B, C, S, S] into one window of candidates a token: [B, tokens, window**2, C], row-major; `tokens`
    is a square number."""
    batch, channels, side, _ = high.shape
    grid = int(tokens**0.5)
    window = side // grid
    high = high.permute(0, 2, 3, 1).reshape(batch, grid, window, grid, window, channels)
    return high.permute(0, 1, 3, 2, 4, 5).reshape(batch, tokens, window * window, channels)


def together(crops: Tensor, grid: int) -> Tensor:
    """Tokens of `grid` x `grid` crops, [B grid**2, T, d], in the order of the whole image's rows: [B, grid**2
    T, d]."""
    side, width = isqrt(crops.shape[1]), crops.shape[2]
    blocks = crops.reshape(-1, grid, grid, side, side, width)
    return blocks.transpose(2, 3).reshape(len(blocks), -1, width)


def apart(tokens: Tensor, grid: int) -> Tensor:
    """The reverse of `together`, the crops one after the other: [B, grid**2 T, d]."""
    batch, count, width = tokens.shape
    side = isqrt(count) // grid
    return tokens.reshape(batch, grid, side, grid, side, width).transpose(2, 3).reshape(tokens.shape)


def reduced(maps: list[Tensor], grid: int) -> Tensor:
    """What `concatenate` gives, resized to 1 / `grid` of its side in float32 (bilinear, corners not aligned).

    The full size is made of a few channels at a time: all of an image of 1,536 pixels take 1.7 GB.
    """
    size = maps[0].shape[-2:]
    small = []
    for channels in (part for features in maps for part in features.split(CHANNELS, dim=1)):
        full = resize(channels, size=size) if channels.shape[-2:] != size else channels
        small.append(resize(full, scale_factor=1 / grid))
    return torch.cat(small, dim=1)


def context(maps: list[Tensor], key: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """key [B, T, C] -> sum_j softmax_j(x^_j . key) x^_j, [B, T, C]; the candidates x^ of type `dtype` are
    made in full."""
    windows = candidates(concatenate(maps), key.shape[1])
    normalised = F.layer_norm(windows, windows.shape[-1:], eps=eps).to(dtype)
    scores = torch.einsum("btc,btjc->btj", key, normalised)
    attention = torch.nan_to_num(scores).softmax(dim=-1)
    return torch.einsum("btj,btjc->btc", attention, normalised)


def mine(
    low: Tensor, maps: list[Tensor], query: nn.Sequential, aux: nn.Sequential, val: nn.Sequential
) -> Tensor:
    """low [B, T, d] and maps [B, C_i, h_i, w_i], the first the largest -> mined [B, T, d], to be added to
    `low`.

    The maps are constants: on a GPU a map that requires a gradient is a ValueError.
    """
    question = query(low)
    (key_norm, key_linear), (norm, linear) = _layers(aux), _layers(val)
    key = (question @ key_linear.weight) * key_norm.weight / question.shape[-1] ** 0.5  # [B, T, C]
    fused = low.is_cuda and mining_kernel is not None and mining_kernel.supports(maps, low.shape[1])
    mined = (mining_kernel.context if fused else context)(maps, key, key_norm.eps, question.dtype)
    return F.linear(mined * norm.weight + norm.bias, linear.weight, linear.bias)


def _layers(module: nn.Sequential) -> tuple[nn.LayerNorm, nn.Linear]:
    norm, linear = module
    return cast(nn.LayerNorm, norm), cast(nn.Linear, linear)
