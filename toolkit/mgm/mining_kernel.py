"""Patch-info mining on a GPU without the upsampled map: Triton kernels that read every stage map at its own
resolution.

With U the bilinear upsampling of a stage (corners not aligned, edges repeated) and f its pixels, a candidate
is x_j = sum_q U_jq f_q. Everything that the attention needs of it is linear or quadratic in f:

    x_j . k = sum_q U_jq (f_q . k)                        products at the stage's resolution, upsampled
    `project` sum_j b_j x_j = sum_q (sum_j U_jq b_j) f_q            weights brought down to the stage's
    resolution             `gather` the means of x_j and x_j^2 over the channels          from sums and
    products of neighbouring pixels              `statistics`

LayerNorm, (x_j - mean_j) rstd_j, is folded into the first two, which are then adjoint: each is the other's
gradient. A program serves one token, whose window of W x W candidates needs (W - 1) // factor + 3 pixels a
side: 8, 6, 4 and 3 at the real sizes. Sums are in float32 (float64 for float64 maps), in a fixed order and
without atomics: two runs give the same bits.
"""

from collections.abc import Iterator, Sequence
from math import isqrt
from typing import Any

import torch
import triton
from torch import Tensor

from toolkit.mgm.mining_triton import gather_kernel, moments_kernel, project_kernel, statistics_kernel

LARGEST_WINDOW = 16  # candidates a side; more would not stay in registers
# numbers in a tile of map values and warps a program
MOMENTS, PROJECT, GATHER = (1024, 4), (4096, 4), (1024, 1)


def supports(maps: Sequence[Tensor], tokens: int) -> bool:
    """Whether the kernels can serve these maps [B, C_i, h_i, w_i]: square, sides that divide the first,
    windows of at most 16 x 16."""
    grid, side = isqrt(tokens), maps[0].shape[-1]
    square = all(
        m.shape[-1] == m.shape[-2] and side % m.shape[-1] == 0 and m.is_floating_point() for m in maps
    )
    return square and grid * grid == tokens and side % grid == 0 and side // grid <= LARGEST_WINDOW


def _constants(maps: Sequence[Tensor], tokens: int) -> Iterator[tuple[Tensor, int, dict[str, int]]]:
    """Every stage's map, its first channel in the concatenation, and the constants of its kernels."""
    grid, side, total = isqrt(tokens), maps[0].shape[-1], sum(m.shape[1] for m in maps)
    window, offset = side // grid, 0
    for features in maps:
        factor = side // features.shape[-1]
        reach = window if factor == 1 else (window - 1) // factor + 3
        yield (
            features,
            offset,
            {
                "TOTAL": total,
                "CHANNELS": features.shape[1],
                "SIDE": features.shape[-1],
                "GRID": grid,
                "FACTOR": factor,
                "WINDOW": window,
                "PADDED": triton.next_power_of_2(window),
                "REACH": reach,
                "SPAN": triton.next_power_of_2(reach),
            },
        )
        offset += features.shape[1]


def _block(channels: int, rows: int, tile: int) -> int:
    """Channels a step, so that `rows` of them make about `tile` numbers."""
    return min(triton.next_power_of_2(channels), max(tile // rows, 16))


def _real(maps: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if maps[0].dtype == torch.float64 else torch.float32


def _window_shape(maps: Sequence[Tensor], tokens: int) -> tuple[int, int, int]:
    return len(maps[0]), tokens, maps[0].shape[-1] ** 2 // tokens


@torch.library.custom_op("mgm::statistics", mutates_args=())
def statistics(maps: Sequence[Tensor], tokens: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation over the channels of every candidate, [B, T, W * W] each."""
    mean = maps[0].new_empty(_window_shape(maps, tokens), dtype=_real(maps))
    rstd = torch.empty_like(mean)
    tile, warps = MOMENTS
    for index, (features, _, constants) in enumerate(_constants(maps, tokens)):
        batch, channels, side, _ = features.shape
        pairs = constants["FACTOR"] > 1
        moments = mean.new_empty(batch, 6 if pairs else 2, side, side)
        block = min(triton.next_power_of_2(channels), 64)
        pixels = max(tile // block, 1)
        moments_kernel[triton.cdiv(side * side, pixels), batch](
            features, moments, *features.stride(),
            CHANNELS=channels, SIDE=side, PAIRS=pairs, PIXELS=pixels, BLOCK=block, num_warps=warps,
        )  # fmt: skip
        used = {name: constants[name] for name in ("TOTAL", "SIDE", "GRID", "FACTOR", "WINDOW", "PADDED")}
        statistics_kernel[tokens, batch](
            moments, mean, rstd, eps, **used, FIRST=index == 0, LAST=index == len(maps) - 1, num_warps=2
        )  # fmt: skip
    return mean, rstd


@statistics.register_fake
def _(maps: Sequence[Tensor], tokens: int, eps: float) -> tuple[Tensor, Tensor]:
    mean = maps[0].new_empty(_window_shape(maps, tokens), dtype=_real(maps))
    return mean, torch.empty_like(mean)


@torch.library.custom_op("mgm::project", mutates_args=())
def project(maps: Sequence[Tensor], mean: Tensor, rstd: Tensor, vectors: Tensor) -> Tensor:
    """Products of a vector a token, [B, T, C], with each of its normalised candidates: [B, T, W * W]."""
    out, vectors = torch.empty_like(mean), vectors.contiguous()
    batch, tokens, _ = mean.shape
    tile, warps = PROJECT
    for features, offset, constants in _constants(maps, tokens):
        block = _block(constants["CHANNELS"], constants["SPAN"] ** 2, tile)
        project_kernel[tokens, batch](
            features,
            mean,
            rstd,
            vectors,
            out,
            *features.stride(),
            offset,
            **constants,
            BLOCK=block,
            FIRST=offset == 0,
            num_warps=warps,
        )
    return out


@project.register_fake
def _(maps: Sequence[Tensor], mean: Tensor, rstd: Tensor, vectors: Tensor) -> Tensor:
    return torch.empty_like(mean)


@torch.library.custom_op("mgm::gather", mutates_args=())
def gather(maps: Sequence[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of each token's normalised candidates with the weights [B, T, W * W]: [B, T, C] in `dtype`."""
    batch, tokens, _ = mean.shape
    out, weights = (
        mean.new_empty(batch, tokens, sum(m.shape[1] for m in maps), dtype=dtype),
        weights.contiguous(),
    )
    tile, warps = GATHER
    for features, offset, constants in _constants(maps, tokens):
        block = _block(constants["CHANNELS"], constants["SPAN"] ** 2, tile)
        gather_kernel[tokens, batch](
            features,
            mean,
            rstd,
            weights,
            out,
            *features.stride(),
            offset,
            **constants,
            BLOCK=block,
            num_warps=warps,
        )
    return out


@gather.register_fake
def _(maps: Sequence[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    return mean.new_empty(*mean.shape[:2], sum(m.shape[1] for m in maps), dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, mean, rstd, ctx.dtype = inputs[0], inputs[1], inputs[2], inputs[3].dtype
    ctx.save_for_backward(mean, rstd, *maps)


def _project_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    mean, rstd, *maps = ctx.saved_tensors
    return [None] * len(maps), None, None, gather(maps, mean, rstd, gradient, ctx.dtype)


def _gather_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    mean, rstd, *maps = ctx.saved_tensors
    return [None] * len(maps), None, None, project(maps, mean, rstd, gradient).to(ctx.dtype), None


project.register_autograd(_project_backward, setup_context=_keep)
gather.register_autograd(_gather_backward, setup_context=_keep)


def context(maps: Sequence[Tensor], key: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """key [B, T, C] -> attention-weighted sum of the normalised candidates, [B, T, C] in `dtype`;
    differentiable in `key`.

    Raises ValueError when a map requires a gradient, which the kernels do not have.
    """
    if torch.is_grad_enabled() and any(m.requires_grad for m in maps):
        raise ValueError(
            "the maps of the high-resolution tower require gradients, which the mining kernels do not have: "
            "freeze the tower"
        )
    # values of one pixel side by side are what the kernels read at speed; the tower's maps are stored so
    # already
    maps = [m if m.stride(1) == 1 else m.contiguous(memory_format=torch.channels_last) for m in maps]
    mean, rstd = statistics(maps, key.shape[1], eps)
    attention = torch.nan_to_num(project(maps, mean, rstd, key)).softmax(dim=-1)
    return gather(maps, mean, rstd, attention, dtype)
