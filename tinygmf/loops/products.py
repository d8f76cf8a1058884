"""Loop nests of training: convolutions and products, forward and backward, on the CPU.

Maps have their channels last, (B, H, W, C). Many kernels read or write only some channels of a
wider map (`Channels`). Each function builds one kernel: first come the buffers it writes, then
those it reads; optional ones are keywords. The gradient of a weight, times `share[0]`, is
added to what is there (`training.gradient.GradientProgram`).
"""

from __future__ import annotations

import math

from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import (
    MOST_CHANNELS,
    WHOLE,
    Channels,
    Nest,
    add_gradient,
    flat,
    kernel,
    load,
    name_of,
    put,
    seen_as,
    total,
)
from tinygmf.loops.tiles import PRODUCT, best_tile, divisor
from tinygmf.loops.values import ZERO

CACHED = 1 << 17  # numbers, 0.5 MB of them
FEW_ROWS = 64  # fewer rows are not summed on their own


def dense(
    out: UOp,
    x: UOp,
    weight: UOp,
    *,
    bias: UOp | None = None,
    factors: UOp | None = None,
    plus: UOp | None = None,
    stride: int = 1,
    back: bool = False,
    channels: Channels = WHOLE,
) -> UOp:
    """out (B, H, W, …) = x convolved with weight (k, k, K, E) [+ bias] [+ x * factors] [+ plus].

    x has zeros around it for the windows, k // 2 on every side (`inference.pad_loops`). A weight
    (S, K, E) means S products side by side, of K channels each; (B, S, 1, K, E) the same for each
    picture. The parts of `channels` share the weight. With `back` it is the gradient of the input:
    x is that of the result, spread as in `Taps`, and the weight's last two axes are swapped.
    """
    parts, channel = channels.parts, channels.read
    blocks = {3: 0, 5: 1}.get(len(weight.shape))  # the axis of S
    size = weight.shape[0] if blocks is None else 1
    if size == stride == 1:
        out, x = (rows(t, weight, parts) for t in (out, x))
        factors, plus = (t if t is None else rows(t, weight, parts) for t in (factors, plus))
    groups = 1 if blocks is None else weight.shape[blocks]
    (batch, height, width, _), (depth, columns) = out.shape, weight.shape[-2:]
    taps = Taps(size, stride, back, (height, width))
    step, phases = taps.step, taps.phases
    tile = best_tile(PRODUCT, width // phases, columns, exact=True)
    tiles = width // phases // tile[0], phases, groups, columns // tile[1]
    nest = Nest()
    around = b, y, phase_y, x0, phase_x, s, c0 = nest.loops(batch, height // phases, phases, *tiles)

    def weigh(ky: UOp, kx: UOp, k: UOp, e: UOp) -> UOp:
        if blocks is not None:
            return load(weight, *((s,) if blocks == 0 else (b, s, 0)), k, e)
        (tap_y, one_y), (tap_x, one_x) = taps.find(phase_y, ky), taps.find(phase_x, kx)
        value = load(weight, tap_y, tap_x, k, e)
        return value if phases == 1 else (one_y & one_x).where(value, ZERO)

    def term(i: UOp, j: UOp) -> UOp:
        ky, kx, k = over
        place = b, y * step + taps.first + ky, (x0 * tile[0] + i) * step + taps.first + kx
        return load(x, *place, channel + s * depth + k) * weigh(ky, kx, k, c0 * tile[1] + j)

    acc = nest.fill(
        around, tile, lambda i, j: ZERO if bias is None else load(bias, c0 * tile[1] + j)
    )
    over = nest.loops(taps.count, taps.count, depth)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(*tile)
    place = b, y * phases + phase_y, (x0 * tile[0] + i) * phases + phase_x
    e = s * columns + c0 * tile[1] + j
    value = acc[i, j].load()
    if factors is not None:
        value = value + load(x, *place, channel + e) * load(factors, *place, e)
    if plus is not None:
        value = value + load(plus, *place, e)
    name = name_of("dense", out, weight, numbers=(stride, back, channel, channels.write))
    return kernel(name, put(out, (*place, channels.write + e), value).end(*around, i, j))


class Taps:
    """Which taps of a window of `size` contribute to an output, along either axis.

    With `back` and a stride, few do, and the same ones for every stride-th position: these `phases`
    are loops of their own. If the stride does not divide the map, x is `spread` instead: its
    positions are that far apart, with zeros between.
    """

    def __init__(self, size: int, stride: int, back: bool, out: tuple[int, int]) -> None:
        divides = all(side % stride == 0 for side in out)
        self.size, self.back, rim = size, back, size // 2
        self.step = 1 if back else stride
        self.phases = stride if back and divides else 1
        self.spread = stride if back and not divides else 1
        self.before = (size - 1 - rim) // self.phases  # positions of x before that of the output
        self.first = rim - self.before  # counting the zeros around x
        self.count = self.before + (self.phases - 1 + rim) // self.phases + 1

    def find(self, phase: UOp, number: UOp) -> tuple[UOp, UOp]:
        """The tap of this number, and whether it exists."""
        if not self.back:
            return number, number >= 0
        tap = phase + self.size // 2 - self.phases * (number - self.before)
        return tap.maximum(0).minimum(self.size - 1), (tap >= 0) & (tap < self.size)


def rows(x: UOp, weight: UOp, parts: int) -> UOp:
    """(B, H, W, parts * C) as rows of C channels, for a product: (1, 1, rows, C), or (B, 1, rows,
    C) if each picture has its own weight."""
    batch = x.shape[0] if len(weight.shape) == 5 else 1
    channels = x.shape[3] // parts
    return seen_as(x, (batch, 1, math.prod(x.shape) // batch // channels, channels))


def dense_weight(
    out: UOp,
    x: UOp,
    g: UOp,
    share: UOp,
    *,
    stride: int = 1,
    channels: Channels = WHOLE,
) -> UOp:
    """out (k, k, K, E) or (S, K, E) += the gradient of the weight of `dense`."""
    parts, channel, at = channels.parts, channels.read, channels.write
    matrices = len(out.shape) == 3
    size, groups = (1, out.shape[0]) if matrices else (out.shape[0], 1)
    if size == stride == 1:
        x, g = (blocks(rows(t, out, parts), *out.shape[-2:]) for t in (x, g))
    batch, height, width, _ = g.shape
    depth, columns = out.shape[-2:]
    nest, (m, c) = Nest(), best_tile(PRODUCT, depth, columns, exact=True)
    at_once = 1 if height * width >= FEW_ROWS else batch
    around = ky, kx, s, b0, k0, e0 = nest.loops(
        size, size, groups, batch // at_once, depth // m, columns // c
    )

    def term(i: UOp, j: UOp) -> UOp:
        turn, h, w = over
        b = b0 * at_once + turn
        c_in, c_out = channel + s * depth + k0 * m + i, at + s * columns + e0 * c + j
        return load(x, b, h * stride + ky, w * stride + kx, c_in) * load(g, b, h, w, c_out)

    acc = nest.fill(around, (m, c), lambda i, j: ZERO)
    over = nest.loops(at_once, height, width)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(m, c)
    place = (*((s,) if matrices else (ky, kx)), k0 * m + i, e0 * c + j)
    stored = add_gradient(out, place, acc[i, j].load(), share).end(*around, i, j)
    name = name_of("dense_weight", out, g, numbers=(stride, channel, at))
    return kernel(name, stored, whole=(b0,))


def blocks(x: UOp, depth: int, columns: int) -> UOp:
    """Rows (1, 1, N, C) as (blocks, 1, rows, C): as many rows of both maps of a product, of `depth`
    and `columns` channels, as a core's cache holds while they are read again."""
    _, _, n, channels = x.shape
    size = divisor(n, max(FEW_ROWS, CACHED // (depth + columns)))
    return seen_as(x, (n // size, 1, size, channels)) if size >= FEW_ROWS else x


def column_sum(out: UOp, g: UOp, share: UOp) -> UOp:
    """out (C,) += the sum of g (…, C) over all positions."""
    g = flat(g)
    nest, c = Nest(), divisor(out.shape[0], MOST_CHANNELS)
    around = (c0,) = nest.loops(out.shape[0] // c)
    acc = total(nest, around, g.shape[0], c, lambda r, j: load(g, r, c0 * c + j))
    (j,) = nest.loops(c)
    stored = add_gradient(out, (c0 * c + j,), acc[j].load(), share).end(*around, j)
    return kernel(name_of("column_sum", out, g), stored)


def transpose(out: UOp, x: UOp) -> UOp:
    """Swap the last two axes."""
    *place, i, j = loops = Nest().loops(*out.shape)
    stored = put(out, tuple(loops), load(x, *place, j, i)).end(*loops)
    return kernel(name_of("transpose", out), stored)


def copy(out: UOp, x: UOp, *, count: int, channels: Channels) -> UOp:
    """Copy `count` channels of each part of x to those of out."""
    out, x = flat(out), flat(x)
    wide, x_wide = out.shape[1] // channels.parts, x.shape[1] // channels.parts
    r, s, j = loops = Nest().loops(out.shape[0], channels.parts, count)
    value = load(x, r, s * x_wide + channels.read + j)
    stored = put(out, (r, s * wide + channels.write + j), value).end(*loops)
    return kernel(name_of("copy", out, x), stored)


def product(out: UOp, x: UOp, y: UOp) -> UOp:
    """out (…, C) = the first C channels of x times those of y."""
    out, x, y = flat(out), flat(x), flat(y)
    place = Nest().loops(*out.shape)
    value = load(x, *place) * load(y, *place)
    return kernel(name_of("product", out), put(out, tuple(place), value).end(*place))


def scale(out: UOp, x: UOp, factors: UOp, *, plus: UOp | None = None, row: int) -> UOp:
    """out (B, H, W, C) = x times each picture's factor, a row of (…, B), [+ plus]."""
    b, *place = loops = Nest().loops(*out.shape)
    value = load(x, b, *place) * load(factors, row, b)
    if plus is not None:
        value = value + load(plus, b, *place)
    return kernel(name_of("scale", out), put(out, (b, *place), value).end(*loops))
