"""The inner loops of a step on a GPU, in Triton; `kernels_cuda` says what their arguments are.

sums_kernel          the sums and sums of squares that batch norm needs, of parts of the images
affine_kernel        batch norm as a factor and a summand of each channel, from these sums
norm_conv_kernel     batch norm, activation, and the next block's convolution
norm_max_kernel      the first two, and each channel's maximum over the picture
add_channels_kernel  base + the convolution of some input channels, of all together or of each APART
rows_conv_kernel     some output channels of a convolution, from planes, and variants that differ in one tap
norm_changes_kernel  batch norm and activation of such channels, and the difference of pairs of them

A program computes B values of each output channel; m numbers the pixels of all images of a group.
"""

import triton
import triton.language as tl

INTEGERS = [
    *("images", "height", "width", "pixels", "columns", "channels", "taps", "rows", "moved", "size", "pitch", "count"),
    *("parts", "image_step", "row_step", "pixel_step", "channel_step"),
]
"""Arguments that vary from layer to layer: no kernel is compiled anew for them."""


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Apply an activation; NaN stays NaN."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "sign":
        z = tl.where(z < 0, -1.0, tl.where(z >= 0, 1.0, z))
    elif ACTIVATION == "step":
        z = tl.where(z < 0, 0.0, tl.where(z >= 0, 1.0, z))
    return z


@triton.jit(do_not_specialize=INTEGERS)
def sums_kernel(
    z, sums, images, pixels, channels, image_step, pixel_step, channel_step, C: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    part, parts, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    c = tl.arange(0, C)
    total, squares = tl.zeros([C], tl.float64), tl.zeros([C], tl.float64)
    for first in range(part * B, images * pixels, parts * B):
        m = first + tl.arange(0, B)
        image = group.to(tl.int64) * images + m // pixels
        place = (image * image_step + m % pixels * pixel_step)[:, None] + c[None, :] * channel_step
        here = (m < images * pixels)[:, None] & (c < channels)[None, :]
        values = tl.load(z + place, mask=here, other=0.0)
        total += tl.sum(values, 0).to(tl.float64)
        squares += tl.sum(values * values, 0).to(tl.float64)
    to = sums + (group * parts + part) * 2 * channels + c
    tl.store(to, total, mask=c < channels)
    tl.store(to + channels, squares, mask=c < channels)


@triton.jit(do_not_specialize=INTEGERS)
def affine_kernel(
    sums, scale, shift, out, parts, channels, count, EPS: tl.constexpr, P: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    part, c, group = tl.arange(0, P), tl.arange(0, C), tl.program_id(0)
    there = c < channels
    place, mask = (group * parts + part)[:, None] * 2 * channels + c[None, :], (part < parts)[:, None] & there[None, :]
    mean = tl.sum(tl.load(sums + place, mask=mask, other=0.0), 0) / count
    square = tl.sum(tl.load(sums + place + channels, mask=mask, other=0.0), 0) / count
    variance = tl.maximum(square - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
    a = tl.load(scale + c, mask=there, other=0.0) / tl.sqrt(variance + EPS)
    to = out + group * 2 * channels + c
    tl.store(to, a.to(scale.dtype.element_ty), mask=there)
    tl.store(to + channels, (tl.load(shift + c, mask=there) - mean * a).to(scale.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=INTEGERS)
def norm_conv_kernel(
    z, norm, kernel, base, out, images, height, width, pixels, columns,
    CI: tl.constexpr, CO: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr, ACTIVATION: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    m, ci, co = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, CI), tl.arange(0, CO)
    a, b = tl.load(norm + group * 2 * CI + ci), tl.load(norm + group * 2 * CI + CI + ci)
    image = z + (group * images + m // pixels) * height * width * CI
    y, x = m % pixels // columns * STRIDE - 1, m % columns * STRIDE - 1
    within = m < images * pixels
    place = (group * images * pixels + m)[:, None] * CO + co[None, :]
    acc = tl.zeros([B, CO], z.dtype.element_ty)
    if base is not None:
        acc = tl.load(base + place, mask=within[:, None], other=0.0)
    for tap in range(SIDE * SIDE):
        line, column = y + tap // SIDE, x + tap % SIDE
        there = within & (line >= 0) & (line < height) & (column >= 0) & (column < width)
        at = image[:, None] + (line * width + column)[:, None] * CI + ci[None, :]
        u = activate(tl.load(at, mask=there[:, None], other=0.0) * a[None, :] + b[None, :], ACTIVATION)
        weights = tl.load(kernel + (tap * CI + ci)[:, None] * CO + co[None, :])
        acc = tl.dot(tl.where(there[:, None], u, 0.0), weights, acc, input_precision="ieee")
    tl.store(out + place, acc, mask=within[:, None])


@triton.jit(do_not_specialize=INTEGERS)
def norm_max_kernel(
    z, norm, out, images, pixels, C: tl.constexpr, ACTIVATION: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    n, c = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, C)
    a, b = tl.load(norm + group * 2 * C + c), tl.load(norm + group * 2 * C + C + c)
    within = (n < images)[:, None]
    first = z + (group * images + n)[:, None] * pixels * C + c[None, :]
    most = tl.full([B, C], float("-inf"), z.dtype.element_ty)
    for p in range(pixels):
        u = activate(tl.load(first + p * C, mask=within, other=0.0) * a[None, :] + b[None, :], ACTIVATION)
        most = tl.maximum(most, u, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + (group * images + n)[:, None] * C + c[None, :], most, mask=within)


@triton.jit(do_not_specialize=INTEGERS)
def add_channels_kernel(
    base, planes, kernel, out, images, height, width, pixels, columns, channels,
    CO: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr, APART: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    m, co = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, CO)
    y, x = m % pixels // columns * STRIDE - 1, m % columns * STRIDE - 1
    within, wide = m < images * pixels, m.to(tl.int64)
    place = wide[:, None] * CO + co[None, :]
    total = tl.load(base + place, mask=within[:, None], other=0.0)
    if APART:
        tl.store(out + place, total, mask=within[:, None])
    for k in range(channels):
        image = planes + (wide // pixels + k * images) * height * width
        added = tl.zeros([B, CO], base.dtype.element_ty)
        for tap in tl.static_range(SIDE * SIDE):
            line, column = y + tap // SIDE, x + tap % SIDE
            there = within & (line >= 0) & (line < height) & (column >= 0) & (column < width)
            u = tl.load(image + line * width + column, mask=there, other=0.0)
            added += u[:, None] * tl.load(kernel + (k * SIDE * SIDE + tap) * CO + co)[None, :]
        if APART:
            to = (wide + (k + 1) * images * pixels)[:, None] * CO + co[None, :]
            tl.store(out + to, total + added, mask=within[:, None])
        else:
            total += added
    if not APART:
        tl.store(out + place, total, mask=within[:, None])


@triton.jit(do_not_specialize=INTEGERS)
def rows_conv_kernel(
    x, shifts, weights, like, changed, out, images, size, taps, rows, moved, pixels, columns, pitch,
    image_step, row_step, pixel_step, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    m, r = tl.program_id(0) * B + tl.arange(0, B), tl.arange(0, R)
    within = m < images * pixels
    image, pixel = (m // pixels).to(tl.int64), m % pixels
    first = x + image * size + pixel // columns * pitch + pixel % columns
    acc = tl.zeros([R, B], x.dtype.element_ty)
    for t in range(taps):
        u = tl.load(first + tl.load(shifts + t), mask=within, other=0.0)
        acc += tl.load(weights + r * taps + t, mask=r < rows, other=0.0)[:, None] * u[None, :]
    to = out + image * image_step + pixel * pixel_step
    tl.store(to[None, :] + r[:, None] * row_step, acc, mask=within[None, :] & (r < rows)[:, None])
    for k in range(moved):
        row, tap, own = tl.load(like + k), tl.load(changed + k), weights + (rows + k) * taps
        move = tl.load(own + tap) - tl.load(weights + row * taps + tap)
        u = tl.load(first + tl.load(shifts + tap), mask=within, other=0.0)
        same = tl.sum(tl.where(r[:, None] == row, acc, 0.0), 0)
        tl.store(to + (rows + k) * row_step, same + move * u, mask=within)


@triton.jit(do_not_specialize=INTEGERS)
def norm_changes_kernel(
    z, norm, pairs, out, images, rows, pixels, ACTIVATION: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    m, k = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(1)
    within = m < images * pixels
    image, pixel = (m // pixels).to(tl.int64), m % pixels
    was, now = tl.load(pairs + 2 * k), tl.load(pairs + 2 * k + 1)
    before = tl.load(z + (image * rows + was) * pixels + pixel, mask=within)
    after = tl.load(z + (image * rows + now) * pixels + pixel, mask=within)
    old = activate(before * tl.load(norm + was) + tl.load(norm + rows + was), ACTIVATION)
    new = activate(after * tl.load(norm + now) + tl.load(norm + rows + now), ACTIVATION)
    tl.store(out + k.to(tl.int64) * images * pixels + m, new - old, mask=within)
