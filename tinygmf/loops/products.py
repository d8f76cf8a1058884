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
    Index,
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
from tinygmf.loops.pieces import MOST
from tinygmf.loops.tiles import PRODUCT, TOKENS, best_tile, divisor, lanes
from tinygmf.loops.values import ZERO

CACHED = 1 << 17  # numbers, 0.5 MB of them
FEW_ROWS = 64  # fewer rows are not summed on their own
COLUMNS, COPY = 64, 1 << 15  # at most, of a weight that is copied, and its numbers
ROWS = 8  # at most, that share the copy


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

    x has zeros around it for the windows, k // 2 on every side (`padding.pad_loops`). A weight
    (S, K, E) means S products side by side, of K channels each; (B, S, 1, K, E) the same for each
    picture. The parts of `channels` share the weight. With `back` it is the gradient of the input:
    x is that of the result, spread as in `Taps`, and the weight's last two axes are swapped.
    """
    parts, channel = channels.parts, channels.read
    blocks = {3: 0, 5: 1}.get(len(weight.shape))  # the axis of S
    size = weight.shape[0] if blocks is None else 1
    depth, columns = weight.shape[-2:]
    full = whole_vectors(size * size * depth, columns)
    if size == stride == 1:
        cut = 1 if full == columns else MOST
        out, x = (rows(t, weight, parts, cut) for t in (out, x))
        factors, plus = (t if t is None else rows(t, weight, parts, cut) for t in (factors, plus))
    groups = 1 if blocks is None else weight.shape[blocks]
    batch, height, width, _ = out.shape
    taps = Taps(size, stride, back, (height, width))
    step, phases = taps.step, taps.phases
    down, across = height // phases, width // phases
    if full != columns:
        m, c = divisor(across, TOKENS), full
    else:
        m, c, _ = best_tile(PRODUCT, across, columns, exact=True)

    def weigh(ky: UOp, kx: UOp, k: UOp, j: UOp) -> UOp:
        e, known = (c0 * c + j).minimum(columns - 1), c0 * c + j < columns
        if blocks is not None:
            value = load(weight, *((s,) if blocks == 0 else (b, s, 0)), k, e)
        else:
            (tap_y, one_y), (tap_x, one_x) = taps.find(phase_y, ky), taps.find(phase_x, kx)
            value, known = load(weight, tap_y, tap_x, k, e), known & one_y & one_x
        return known.where(value, ZERO)

    nest, copied = Nest(), None
    if full != columns or phases > 1:  # copy the phase's taps, up to whole vectors, for some rows
        together = divisor(down, ROWS)
        sizes = batch, down // together, phases, phases, groups, full // c
        first = b, y0, phase_y, phase_x, s, c0 = nest.loops(*sizes)
        copied = nest.fill(first, (taps.count, taps.count, depth, c), weigh)
        y1, x0 = nest.loops(together, across // m)
        around, y = [*first, y1, x0], y0 * together + y1
    else:
        around = b, y, x0, s, c0 = nest.loops(batch, down, across // m, groups, full // c)
        phase_y = phase_x = 0

    def term(i: UOp, j: UOp) -> UOp:
        ky, kx, k = over
        place = b, y * step + taps.first + ky, (x0 * m + i) * step + taps.first + kx
        one = weigh(ky, kx, k, j) if copied is None else copied[ky, kx, k, j].load()
        return load(x, *place, channel + s * depth + k) * one

    def shift(i: UOp, j: UOp) -> UOp:
        return ZERO if bias is None else load(bias, (c0 * c + j).minimum(columns - 1))

    acc = nest.fill(around, (m, c), shift)
    over = nest.loops(taps.count, taps.count, depth)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(m, min(c, columns))
    place = b, y * phases + phase_y, (x0 * m + i) * phases + phase_x
    e = s * columns + c0 * c + j
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

    def find(self, phase: Index, number: UOp) -> tuple[UOp, UOp]:
        """The tap of this number, and whether it exists."""
        if not self.back:
            return number, number >= 0
        tap = phase + self.size // 2 - self.phases * (number - self.before)
        return tap.maximum(0).minimum(self.size - 1), (tap >= 0) & (tap < self.size)


def whole_vectors(terms: int, columns: int) -> int:
    """The columns of a product of so many terms, filled up to whole vectors where a copy of the
    weight, with zeros in the others, is small."""
    full = -(-columns // lanes()) * lanes()
    return full if full <= COLUMNS and terms * full <= COPY else columns


def rows(x: UOp, weight: UOp, parts: int, most: int = 1) -> UOp:
    """(B, H, W, parts * C) as rows of C channels, for a product: (1, n, rows, C), or (B, n, rows,
    C) if each picture has its own weight; n is at most `most`."""
    batch = x.shape[0] if len(weight.shape) == 5 else 1
    channels = x.shape[3] // parts
    count = math.prod(x.shape) // batch // channels
    n = divisor(count, most)
    return seen_as(x, (batch, n, count // n, channels))


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
    depth, columns = out.shape[-2:]
    if size == stride == 1:
        x, g = (blocks(rows(t, out, parts), depth, columns) for t in (x, g))
    batch, height, width, _ = g.shape
    plain = best_tile(PRODUCT, depth, columns, exact=True)
    turned = best_tile(PRODUCT, columns, depth, exact=True)
    over_x = turned.rate > plain.rate  # neighbors in a vector are channels of x, not of g
    shape = turned[:2] if over_x else plain[:2]
    k_each, e_each = shape[::-1] if over_x else shape
    nest = Nest()
    at_once = 1 if height * width >= FEW_ROWS else batch
    around = ky, kx, s, b0, k0, e0 = nest.loops(
        size, size, groups, batch // at_once, depth // k_each, columns // e_each
    )

    def cell(i: UOp, j: UOp) -> tuple[UOp, UOp]:
        k, e = (j, i) if over_x else (i, j)
        return k0 * k_each + k, e0 * e_each + e

    def term(i: UOp, j: UOp) -> UOp:
        (turn, h, w), (k, e) = over, cell(i, j)
        b = b0 * at_once + turn
        seen = load(x, b, h * stride + ky, w * stride + kx, channel + s * depth + k)
        return seen * load(g, b, h, w, at + s * columns + e)

    acc = nest.fill(around, shape, lambda i, j: ZERO)
    over = nest.loops(at_once, height, width)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(*shape)
    place = *((s,) if matrices else (ky, kx)), *cell(i, j)
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
