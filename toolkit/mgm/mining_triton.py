"""The Triton kernels of `toolkit.mgm.mining_kernel`, which says what they compute.

`features` is a stage's map [B, CHANNELS, SIDE, SIDE] in any memory order; a program of the last three serves
one of the GRID x GRID tokens, whose WINDOW x WINDOW candidates lie FACTOR times finer than the stage's
pixels, REACH of which it reads a side. PADDED and SPAN are WINDOW and REACH as powers of two, BLOCK the
channels a step; `offset` is the stage's first of the TOTAL channels.
"""

import triton
import triton.language as tl


@triton.jit
def _first(position, FACTOR: tl.constexpr):
    """The native pixel left of (or above) the high-resolution one, floor((position + 1/2) / factor - 1/2): -1
    at the border."""
    return position if FACTOR == 1 else (2 * position + 1 + FACTOR) // (2 * FACTOR) - 1


@triton.jit
def _bilinear(position, first, WINDOW: tl.constexpr, REACH: tl.constexpr, FACTOR: tl.constexpr):
    """[WINDOW, REACH]: weights of the native pixels from `first` on for the high-resolution pixels from
    `position` on."""
    # no division: the GPU's is not exact
    centre = (position + tl.arange(0, WINDOW) + 0.5) * (1 / FACTOR) - 0.5
    distance = tl.abs(centre[:, None] - (first + tl.arange(0, REACH))[None, :])
    return tl.maximum(1 - distance, 0)


@triton.jit
def _pixels(stride_y, stride_x, y, x, SIDE: tl.constexpr, REACH: tl.constexpr, SPAN: tl.constexpr):
    """[SPAN * SPAN] offsets of the native pixels from (y, x) on, those beyond the border on it, and which of
    them are used."""
    q = tl.arange(0, SPAN * SPAN)
    rows = tl.minimum(tl.maximum(y + q // SPAN, 0), SIDE - 1)
    columns = tl.minimum(tl.maximum(x + q % SPAN, 0), SIDE - 1)
    return rows * stride_y + columns * stride_x, (q // SPAN < REACH) & (q % SPAN < REACH)


@triton.jit
def _window(row, WINDOW: tl.constexpr, PADDED: tl.constexpr):
    """[PADDED, PADDED] offsets of a token's candidates in [B, T, W * W], and which of them exist."""
    j = tl.arange(0, PADDED)
    exists = j < WINDOW
    offsets = row * (WINDOW * WINDOW) + j[:, None] * WINDOW + j[None, :]
    return offsets, exists[:, None] & exists[None, :]


@triton.jit
def moments_kernel(
    features, out, stride_b, stride_c, stride_y, stride_x, CHANNELS: tl.constexpr, SIDE: tl.constexpr,
    PAIRS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over the channels, sum of squares and, with PAIRS, products with the right, lower, diagonal and of
    the antidiagonal pixels."""
    real: tl.constexpr = out.dtype.element_ty
    batch = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < SIDE * SIDE
    y, x = pixel // SIDE, pixel % SIDE
    right, below = tl.minimum(x + 1, SIDE - 1) * stride_x, tl.minimum(y + 1, SIDE - 1) * stride_y
    base = features + batch * stride_b
    total = tl.zeros([PIXELS, BLOCK], real)
    square, across, down, diagonal, anti = total, total, total, total, total
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = inside[:, None] & (channel < CHANNELS)[None, :]
        at = (channel * stride_c)[None, :]
        f = tl.load(base + (y * stride_y + x * stride_x)[:, None] + at, mask, 0.0).to(real)
        total += f
        square += f * f
        if PAIRS:
            r = tl.load(base + (y * stride_y + right)[:, None] + at, mask, 0.0).to(real)
            b = tl.load(base + (below + x * stride_x)[:, None] + at, mask, 0.0).to(real)
            d = tl.load(base + (below + right)[:, None] + at, mask, 0.0).to(real)
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
def statistics_kernel(
    moments, mean, rstd, eps, TOTAL: tl.constexpr, SIDE: tl.constexpr, GRID: tl.constexpr,
    FACTOR: tl.constexpr, WINDOW: tl.constexpr, PADDED: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Add a stage's part to the candidates' sums (in `mean`) and sums of squares (in `rstd`); the last stage
    turns both into statistics."""
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
        w00, w01, w10, w11 = (
            (1 - lower) * (1 - right),
            (1 - lower) * right,
            lower * (1 - right),
            lower * right,
        )
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
def project_kernel(
    features, mean, rstd, vectors, out, stride_b, stride_c, stride_y, stride_x, offset,
    TOTAL: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, GRID: tl.constexpr, FACTOR: tl.constexpr,
    WINDOW: tl.constexpr, PADDED: tl.constexpr, REACH: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """A stage's part of the products of the token's normalised candidates with its vector, written (first
    stage) or added."""
    real: tl.constexpr = out.dtype.element_ty
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = batch * (GRID * GRID) + token
    y, x = token // GRID * WINDOW, token % GRID * WINDOW
    first_y, first_x = _first(y, FACTOR), _first(x, FACTOR)
    pixels, used = _pixels(stride_y, stride_x, first_y, first_x, SIDE, REACH, SPAN)
    base = features + batch * stride_b + pixels
    products, total = tl.zeros([SPAN * SPAN, BLOCK], real), tl.zeros([BLOCK], real)
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        inside = channel < CHANNELS
        vector = tl.load(vectors + row * TOTAL + offset + channel, inside, 0.0).to(real)
        f = tl.load(base[:, None] + (channel * stride_c)[None, :], used[:, None] & inside[None, :], 0.0).to(
            real
        )
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
def gather_kernel(
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
    base = features + batch * stride_b + pixels
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        inside = channel < CHANNELS
        f = tl.load(base[:, None] + (channel * stride_c)[None, :], used[:, None] & inside[None, :], 0.0).to(
            real
        )
        result = tl.sum(f * weight[:, None], 0) - shift
        tl.store(out + row * TOTAL + offset + channel, result.to(out.dtype.element_ty), inside)
