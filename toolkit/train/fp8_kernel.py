"""Rounding to 8-bit floating-point numbers on a GPU, each row read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

WARP = 1024  # numbers of a row that one warp takes, at most 16 warps a row


@triton.jit
def _rounded(
    values, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr
):
    """values and out [n, WIDTH], scales [n]; a program a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(values + row * WIDTH + at, inside, 0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), LEAST) / LARGEST
    scale += tl.sum(value * 0.0, 0)  # not a number where one of the row is not, which a maximum passes over
    tl.store(out + row * WIDTH + at, (value / scale).to(out.dtype.element_ty), inside)
    tl.store(scales + row, scale)


@triton_op("mgm::rounded", mutates_args={})
def rounded(values: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """What `toolkit.train.fp8.rounded` makes of `values` [n, d]."""
    values = values.contiguous()
    count, width = values.shape
    out = torch.empty_like(values, dtype=torch.float8_e4m3fn)
    scales = torch.empty((count, 1), dtype=torch.float32, device=values.device)
    block = triton.next_power_of_2(width)
    largest = torch.finfo(out.dtype).max
    warps = min(16, max(1, block // WARP))
    wrap_triton(_rounded)[(count,)](values, out, scales, width, block, largest, least, num_warps=warps)
    return out, scales
