"""Patch-info mining on a GPU without the upsampled map: Triton kernels that read every stage map at its own resolution.

With U the bilinear upsampling of a stage (corners not aligned, edges repeated) and f its pixels, a candidate is x_j = sum_q U_jq f_q.
Everything that the attention needs of it is linear or quadratic in f:

    x_j . k = sum_q U_jq (f_q . k)                        products at the stage's resolution, upsampled              `project`
    sum_j b_j x_j = sum_q (sum_j U_jq b_j) f_q            weights brought down to the stage's resolution             `gather`
    the means of x_j and x_j^2 over the channels          from sums and products of neighbouring pixels              `statistics`

LayerNorm, (x_j - mean_j) rstd_j, is folded into the first two, which are then adjoint: each is the other's gradient. A program serves one
token, whose window of W x W candidates needs (W - 1) // factor + 3 pixels a side: 8, 6, 4 and 3 at the real sizes. Sums are in float32
(float64 for float64 maps), in a fixed order and without atomics: two runs give the same bits.
"""

from collections.abc import Iterator, Sequence
from math import isqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_WINDOW = 16  # candidates a side; more would not stay in registers
# numbers in a tile of map values and warps a program
MOMENTS, PROJECT, GATHER = (1024, 4), (4096, 4), (4096, 4)


@triton.jit
def _first(position, FACTOR: tl.constexpr):
    """The native pixel left of (or above) the high-resolution one, floor((position + 1/2) / factor - 1/2): -1 at the border."""
    return position if FACTOR == 1 else (2 * position + 1 + FACTOR) // (2 * FACTOR) - 1


@triton.jit
def _bilinear(position, first, WINDOW: tl.constexpr, REACH: tl.constexpr, FACTOR: tl.constexpr):
    """[WINDOW, REACH]: weights of the native pixels from `first` on for the high-resolution ones from `position` on."""
    centre = (position + tl.arange(0, WINDOW) + 0.5) * (1 / FACTOR) - 0.5  # no division: the GPU's is not exact
    distance = tl.abs(centre[:, None] - (first + tl.arange(0, REACH))[None, :])
    return tl.maximum(1 - distance, 0)


@triton.jit
def _pixels(stride_y, stride_x, y, x, SIDE: tl.constexpr, REACH: tl.constexpr, SPAN: tl.constexpr):
    """[SPAN * SPAN] offsets of the native pixels from (y, x) on, those beyond the border on it, and which of them are used."""
    q = tl.arange(0, SPAN * SPAN)
    rows = tl.minimum(tl.maximum(y + q // SPAN, 0), SIDE - 1)
    columns = tl.minimum(tl.maximum(x + q % SPAN, 0), SIDE - 1)
    return rows * stride_y + columns * stride_x, (q // SPAN < REACH) & (q % SPAN < REACH)


@triton.jit
def _window(row, WINDOW: tl.constexpr, PADDED: tl.constexpr):
    """[PADDED, PADDED] offsets of a token's candidates in [B, T, W * W], and which of them exist."""
    j = tl.arange(0, PADDED)
    return row * (WINDOW * WINDOW) + j[:, None] * WINDOW + j[None, :], (j < WINDOW)[:, None] & (j < WINDOW)[None, :]


@triton.jit
def _moments_kernel(
    features, out, stride_b, stride_c, stride_y, stride_x,
    CHANNELS: tl.constexpr, SIDE: tl.constexpr, PAIRS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over the channels, sum of squares and, with PAIRS, products with the right, lower, diagonal and of the antidiagonal pixels."""
    real: tl.constexpr = out.dtype.element_ty
    batch = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < SIDE * SIDE
    y, x = pixel // SIDE, pixel % SIDE
    right, below = tl.minimum(x + 1, SIDE - 1) * stride_x, tl.minimum(y + 1, SIDE - 1) * stride_y
    here = features + batch * stride_b
    total = tl.zeros([PIXELS, BLOCK], real)
    square, across, down, diagonal, anti = total, total, total, total, total
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = inside[:, None] & (channel < CHANNELS)[None, :]
        at = (channel * stride_c)[None, :]
        f = tl.load(here + (y * stride_y + x * stride_x)[:, None] + at, mask, 0.0).to(real)
        total += f
        square += f * f
        if PAIRS:
            r = tl.load(here + (y * stride_y + right)[:, None] + at, mask, 0.0).to(real)
            b = tl.load(here + (below + x * stride_x)[:, None] + at, mask, 0.0).to(real)
            d = tl.load(here + (below + right)[:, None] + at, mask, 0.0).to(real)
            across += f * r
            down += f * b
            diagonal += f * d
            anti += r * b
    plane = SIDE * SIDE
    to = out + batch * (plane * (6 if PAIRS else 2)) + pixel
    tl.store(to, tl.sum(total, 1), inside)
    tl.store(to + plane, tl.sum(square, 1), inside)
    if PAIRS:
        tl.store(to + 2 * plane, tl.sum(across, 1), inside)
        tl.store(to + 3 * plane, tl.sum(down, 1), inside)
        tl.store(to + 4 * plane, tl.sum(diagonal, 1), inside)
        tl.store(to + 5 * plane, tl.sum(anti, 1), inside)


@triton.jit
def _statistics_kernel(
    moments, mean, rstd, eps,
    TOTAL: tl.constexpr, SIDE: tl.constexpr, GRID: tl.constexpr, FACTOR: tl.constexpr,
    WINDOW: tl.constexpr, PADDED: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Add a stage's part to the candidates' sums (in `mean`) and sums of squares (in `rstd`); the last stage turns both into statistics."""
    real: tl.constexpr = mean.dtype.element_ty
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    to, mask = _window(batch * (GRID * GRID) + token, WINDOW, PADDED)
    y, x = token // GRID * WINDOW + tl.arange(0, PADDED), token % GRID * WINDOW + tl.arange(0, PADDED)
    plane = SIDE * SIDE
    if FACTOR == 1:
        at = moments + batch * (plane * 2) + y[:, None] * SIDE + x[None, :]
        total, square = tl.load(at, mask, 0.0), tl.load(at + plane, mask, 0.0)
    else:
        y, x = tl.maximum((y + 0.5) * (1 / FACTOR) - 0.5, 0), tl.maximum((x + 0.5) * (1 / FACTOR) - 0.5, 0)
        y0, x0 = tl.minimum(y.to(tl.int32), SIDE - 1), tl.minimum(x.to(tl.int32), SIDE - 1)
        y1, x1 = tl.minimum(y0 + 1, SIDE - 1), tl.minimum(x0 + 1, SIDE - 1)
        lower, right = (y - y0)[:, None].to(real), (x - x0)[None, :].to(real)
        w00, w01, w10, w11 = (1 - lower) * (1 - right), (1 - lower) * right, lower * (1 - right), lower * right
        at = moments + batch * (plane * 6)
        p00, p01 = at + y0[:, None] * SIDE + x0[None, :], at + y0[:, None] * SIDE + x1[None, :]
        p10, p11 = at + y1[:, None] * SIDE + x0[None, :], at + y1[:, None] * SIDE + x1[None, :]
        total = w00 * tl.load(p00) + w01 * tl.load(p01) + w10 * tl.load(p10) + w11 * tl.load(p11)
        square = w00 * w00 * tl.load(p00 + plane) + w01 * w01 * tl.load(p01 + plane)
        square += w10 * w10 * tl.load(p10 + plane) + w11 * w11 * tl.load(p11 + plane)
        square += 2 * (w00 * w01 * tl.load(p00 + 2 * plane) + w10 * w11 * tl.load(p10 + 2 * plane))
        square += 2 * (w00 * w10 * tl.load(p00 + 3 * plane) + w01 * w11 * tl.load(p01 + 3 * plane))
        square += 2 * (w00 * w11 * tl.load(p00 + 4 * plane) + w01 * w10 * tl.load(p00 + 5 * plane))
    if not FIRST:
        total += tl.load(mean + to, mask, 0.0)
        square += tl.load(rstd + to, mask, 0.0)
    if LAST:
        total /= TOTAL
        square = 1 / tl.sqrt(tl.maximum(square / TOTAL - total * total, 0.0) + eps)
    tl.store(mean + to, total, mask)
    tl.store(rstd + to, square, mask)


@triton.jit
def _project_kernel(
    features, mean, rstd, vectors, out, stride_b, stride_c, stride_y, stride_x, offset,
    TOTAL: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, GRID: tl.constexpr, FACTOR: tl.constexpr,
    WINDOW: tl.constexpr, PADDED: tl.constexpr, REACH: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """A stage's part of the products of the token's normalised candidates with its vector, written (first stage) or added."""
    real: tl.constexpr = out.dtype.element_ty
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = batch * (GRID * GRID) + token
    y, x = token // GRID * WINDOW, token % GRID * WINDOW
    first_y, first_x = _first(y, FACTOR), _first(x, FACTOR)
    pixels, used = _pixels(stride_y, stride_x, first_y, first_x, SIDE, REACH, SPAN)
    here = features + batch * stride_b + pixels
    products, total = tl.zeros([SPAN * SPAN, BLOCK], real), tl.zeros([BLOCK], real)
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        inside = channel < CHANNELS
        vector = tl.load(vectors + row * TOTAL + offset + channel, inside, 0.0).to(real)
        f = tl.load(here[:, None] + (channel * stride_c)[None, :], used[:, None] & inside[None, :], 0.0).to(real)
        products += f * vector[None, :]
        total += vector
    result = tl.reshape(tl.sum(products, 1), [SPAN, SPAN])
    if FACTOR > 1:
        columns = _bilinear(x, first_x, PADDED, SPAN, FACTOR).to(real)
        rows = _bilinear(y, first_y, PADDED, SPAN, FACTOR).to(real)
        result = tl.sum(result[:, None, :] * columns[None, :, :], 2)  # [native y, x]
        result = tl.sum(rows[:, :, None] * result[None, :, :], 1)  # [y, x]
    to, mask = _window(row, WINDOW, PADDED)
    result = (result - tl.load(mean + to, mask, 0.0) * tl.sum(total, 0)) * tl.load(rstd + to, mask, 0.0)
    if not FIRST:
        result += tl.load(out + to, mask, 0.0)
    tl.store(out + to, result, mask)


@triton.jit
def _gather_kernel(
    features, mean, rstd, weights, out, stride_b, stride_c, stride_y, stride_x, offset,
    TOTAL: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, GRID: tl.constexpr, FACTOR: tl.constexpr,
    WINDOW: tl.constexpr, PADDED: tl.constexpr, REACH: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A stage's channels of the weighted sum of the token's normalised candidates."""
    real: tl.constexpr = mean.dtype.element_ty
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = batch * (GRID * GRID) + token
    y, x = token // GRID * WINDOW, token % GRID * WINDOW
    first_y, first_x = _first(y, FACTOR), _first(x, FACTOR)
    at, mask = _window(row, WINDOW, PADDED)
    weight = tl.load(weights + at, mask, 0.0).to(real) * tl.load(rstd + at, mask, 0.0)
    shift = tl.sum(tl.sum(weight * tl.load(mean + at, mask, 0.0), 1), 0)
    if FACTOR > 1:
        columns = _bilinear(x, first_x, PADDED, SPAN, FACTOR).to(real)
        rows = _bilinear(y, first_y, PADDED, SPAN, FACTOR).to(real)
        weight = tl.sum(weight[:, :, None] * columns[None, :, :], 1)  # [y, native x]
        weight = tl.sum(rows[:, :, None] * weight[:, None, :], 0)  # [native y, native x]
    weight = tl.reshape(weight, [SPAN * SPAN])
    pixels, used = _pixels(stride_y, stride_x, first_y, first_x, SIDE, REACH, SPAN)
    here = features + batch * stride_b + pixels
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        inside = channel < CHANNELS
        f = tl.load(here[:, None] + (channel * stride_c)[None, :], used[:, None] & inside[None, :], 0.0).to(real)
        result = tl.sum(f * weight[:, None], 0) - shift
        tl.store(out + row * TOTAL + offset + channel, result.to(out.dtype.element_ty), inside)


def supports(maps: Sequence[Tensor], tokens: int) -> bool:
    """Whether the kernels can serve these maps [B, C_i, h_i, w_i]: square, sides that divide the first, windows of at most 16 x 16."""
    grid, side = isqrt(tokens), maps[0].shape[-1]
    square = all(m.shape[-1] == m.shape[-2] and side % m.shape[-1] == 0 and m.is_floating_point() for m in maps)
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
        _moments_kernel[triton.cdiv(side * side, pixels), batch](
            features, moments, *features.stride(),
            CHANNELS=channels, SIDE=side, PAIRS=pairs, PIXELS=pixels, BLOCK=block, num_warps=warps,
        )  # fmt: skip
        used = {name: constants[name] for name in ("TOTAL", "SIDE", "GRID", "FACTOR", "WINDOW", "PADDED")}
        _statistics_kernel[tokens, batch](
            moments, mean, rstd, eps, **used, FIRST=index == 0, LAST=index == len(maps) - 1, num_warps=2
        )  # fmt: skip
    return mean, rstd


@statistics.register_fake
def _(maps, tokens, eps):
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
        _project_kernel[tokens, batch](
            features, mean, rstd, vectors, out, *features.stride(), offset, **constants, BLOCK=block, FIRST=offset == 0, num_warps=warps
        )
    return out


@project.register_fake
def _(maps, mean, rstd, vectors):
    return torch.empty_like(mean)


@torch.library.custom_op("mgm::gather", mutates_args=())
def gather(maps: Sequence[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of each token's normalised candidates with the weights [B, T, W * W]: [B, T, C] in `dtype`."""
    batch, tokens, _ = mean.shape
    out, weights = mean.new_empty(batch, tokens, sum(m.shape[1] for m in maps), dtype=dtype), weights.contiguous()
    tile, warps = GATHER
    for features, offset, constants in _constants(maps, tokens):
        block = _block(constants["CHANNELS"], constants["SPAN"] ** 2, tile)
        _gather_kernel[tokens, batch](
            features, mean, rstd, weights, out, *features.stride(), offset, **constants, BLOCK=block, num_warps=warps
        )
    return out


@gather.register_fake
def _(maps, mean, rstd, weights, dtype):
    return mean.new_empty(*mean.shape[:2], sum(m.shape[1] for m in maps), dtype=dtype)


def _keep(ctx, inputs, output):
    maps, mean, rstd, ctx.dtype = inputs[0], inputs[1], inputs[2], inputs[3].dtype
    ctx.save_for_backward(mean, rstd, *maps)


def _project_backward(ctx, gradient):
    mean, rstd, *maps = ctx.saved_tensors
    return [None] * len(maps), None, None, gather(maps, mean, rstd, gradient, ctx.dtype)


def _gather_backward(ctx, gradient):
    mean, rstd, *maps = ctx.saved_tensors
    return [None] * len(maps), None, None, project(maps, mean, rstd, gradient).to(ctx.dtype), None


project.register_autograd(_project_backward, setup_context=_keep)
gather.register_autograd(_gather_backward, setup_context=_keep)


def context(maps: Sequence[Tensor], key: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """key [B, T, C] -> attention-weighted sum of the normalised candidates, [B, T, C] in `dtype`; differentiable in `key`.

    Raises ValueError when a map requires a gradient, which the kernels do not have.
    """
    if torch.is_grad_enabled() and any(m.requires_grad for m in maps):
        raise ValueError("the maps of the high-resolution tower require gradients, which the mining kernels do not have: freeze the tower")
    # values of one pixel side by side are what the kernels read at speed; the tower's maps are stored so already
    maps = [m if m.stride(1) == 1 else m.contiguous(memory_format=torch.channels_last) for m in maps]
    mean, rstd = statistics(maps, key.shape[1], eps)
    attention = torch.nan_to_num(project(maps, mean, rstd, key)).softmax(dim=-1)
    return gather(maps, mean, rstd, attention, dtype)
