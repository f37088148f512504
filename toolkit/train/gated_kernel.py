"""The kernel of `toolkit.train.gated`."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from toolkit.train.dropout import FIRST, SECOND, least_kept

ROWS, COLUMNS = 32, 128  # of a tile
LEAST = 16  # terms of a product that tensor cores sum


@triton.jit
def _product(low, b, row, column, count, WIDTH: tl.constexpr, RANK: tl.constexpr, TERMS: tl.constexpr):
    """A tile of low [count, RANK] times b.T [RANK, WIDTH]."""
    at = tl.arange(0, TERMS)
    left = tl.load(
        low + row[:, None] * RANK + at[None, :], (row < count)[:, None] & (at < RANK)[None, :], 0.0
    )
    right = tl.load(
        b + column[None, :] * RANK + at[:, None], (column < WIDTH)[None, :] & (at < RANK)[:, None], 0.0
    )
    return tl.dot(left, right)


@triton.jit
def _gated(
    gate,
    up,
    gate_low,
    up_low,
    gate_b,
    up_b,
    seed,
    gate_sum,
    up_sum,
    out,
    dropped,
    limit,
    factor,
    count,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    TERMS: tl.constexpr,
    SILU: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program a tile of [count, WIDTH], row by row of tiles."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < count)[:, None] & (column < WIDTH)[None, :]
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    kind = out.dtype.element_ty

    value = tl.load(gate + place, inside, 0.0).to(tl.float32)
    value += _product(gate_low, gate_b, row, column, count, WIDTH, RANK, TERMS)
    rounded = value.to(kind)
    tl.store(gate_sum + place, rounded, inside)
    value = rounded.to(tl.float32)
    share = tl.sigmoid(value) if SILU else 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
    active = value * share

    value = tl.load(up + place, inside, 0.0).to(tl.float32)
    value += _product(up_low, up_b, row, column, count, WIDTH, RANK, TERMS)
    rounded = value.to(kind)
    tl.store(up_sum + place, rounded, inside)
    rounded = (active * rounded.to(tl.float32)).to(kind)
    tl.store(out + place, rounded, inside)

    # `toolkit.train.dropout.hashed` of the place
    hashed = place.to(tl.int32) + tl.load(seed)
    hashed = ((hashed ^ (hashed >> 16)) * FIRST) ^ tl.load(seed + 1)
    hashed = (hashed ^ (hashed >> 15)) * SECOND
    kept = tl.where(hashed >= limit, rounded.to(tl.float32) * factor, 0.0)
    tl.store(dropped + place, kept.to(kind), inside)


@triton_op("mgm::gated", mutates_args={})
def gated(
    gate: Tensor,
    up: Tensor,
    gate_low: Tensor,
    up_low: Tensor,
    gate_b: Tensor,
    up_b: Tensor,
    seed: Tensor,
    probability: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(gate + gate_low @ gate_b.T, the same of up, activation of the first times the second, this after
    dropout), all [n, w]: low [n, r], b [w, r]."""
    count, width = gate.shape
    rank = gate_low.shape[1]
    gate_sum, up_sum, out, dropped = (torch.empty_like(gate) for _ in range(4))
    wrap_triton(_gated)[(-(-width // COLUMNS), -(-count // ROWS))](
        gate,
        up,
        gate_low,
        up_low,
        gate_b,
        up_b,
        seed,
        gate_sum,
        up_sum,
        out,
        dropped,
        least_kept(probability),
        1 / (1 - probability),
        count,
        width,
        rank,
        max(LEAST, triton.next_power_of_2(rank)),
        silu,
        FIRST,
        SECOND,
        ROWS,
        COLUMNS,
        num_warps=4,
    )
    return gate_sum, up_sum, out, dropped
