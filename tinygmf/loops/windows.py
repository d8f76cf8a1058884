"""Loop nests of training: depthwise convolutions, forward and backward, on the CPU.

The input rows that a few output rows see are first copied, with zeros around them, to a small array
that stays in the core's L1 cache, so no tap has to test whether it is in the map. There the
channels of neighboring positions are adjacent: a few channels of several positions fill a vector.
Maps and channels as in `products`.
"""

from __future__ import annotations

from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import (
    WHOLE,
    Channels,
    Nest,
    add_gradient,
    inside,
    kernel,
    load,
    load_inside,
    name_of,
    put,
)
from tinygmf.loops.tiles import TOKENS, VECTORS, divisor, registers, used, vectors
from tinygmf.loops.values import ZERO

ROWS = 4  # output rows, at most, that share a copy
MOST = 48  # numbers, at most, that a tap multiplies at once
NEIGHBORS = 4  # positions, at most: of 8 clang at times computes each number by itself
SUMS = 8  # vectors of them, at most, that a tap adds to


def depthwise(
    out: UOp,
    x: UOp,
    weight: UOp,
    *,
    bias: UOp | None = None,
    plus: UOp | None = None,
    stride: int = 1,
    back: bool = False,
    channels: Channels = WHOLE,
    adding: bool = False,
) -> UOp:
    """out = x convolved with weight (k, k, C), or (k, k, S, C), channel by channel, [+ the bias of
    the channels written] [+ plus]; `adding` adds that to what is there.

    Both maps consist of the parts S of `channels`, (B, H, W, S * …), which share the weight unless
    it has one for each. With `back` it is the gradient of the input.
    """
    parts, channel, to = channels.parts, channels.read, channels.write
    (batch, height, width, _), size = out.shape, weight.shape[0]
    out_wide, x_wide = out.shape[3] // parts, x.shape[3] // parts
    step, apart = (1, stride) if back else (stride, 1)
    together, c = block(width, weight.shape[-1], step, MOST)
    lanes = VECTORS[registers()].lanes
    places = divisor(width // together, min(TOKENS, max(1, SUMS * lanes // (together * c))))
    rows = divisor(height, ROWS)
    nest = Nest()
    around = b, y0, s, c0 = nest.loops(batch, height // rows, parts, weight.shape[-1] // c)
    own, first = ((s,) if len(weight.shape) == 4 else ()), channel + s * x_wide + c0 * c

    def tap(ky: UOp, kx: UOp, _: UOp, j: UOp) -> UOp:
        ky, kx = (size - 1 - ky, size - 1 - kx) if back else (ky, kx)
        return load(weight, ky, kx, *own, c0 * c + j)

    def seen_at(y: UOp, z: UOp, j: UOp) -> UOp:
        top, left = y0 * (rows * step) - size // 2, -(size // 2)
        return value_or_zero(x, b, top + y, left + z, first + j, apart)

    taps = nest.fill(around, (size, size, together, c), tap)
    shape = ((rows - 1) * step + size, (width - 1) * step + size, c)
    seen = nest.fill(around, shape, seen_at)
    y, x0 = inner = nest.loops(rows, width // (together * places))

    def term(i: UOp, j: UOp) -> UOp:
        ky, kx = over
        place = (x0 * places + i) * (together * step) + kx
        return seen[y * step + ky, place, j].load() * taps[ky, kx, 0, j].load()

    acc = nest.fill([*around, *inner], (places, together * c), lambda i, j: ZERO)
    over = nest.loops(size, size)
    acc = nest.accumulate(acc, over, term)
    i, t, j = tile = nest.loops(places, together, c)
    place = (b, y0 * rows + y, (x0 * places + i) * together + t)
    value = acc[i, t * c + j].load()
    if bias is not None:
        value = value + load(bias, to + c0 * c + j)
    if plus is not None:
        value = value + load(plus, *place, c0 * c + j)
    here = (*place, s * out_wide + to + c0 * c + j)
    name = name_of("depthwise", out, weight, numbers=(stride, back, channel, to))
    return kernel(name, put(out, here, value, adding).end(*around, *inner, *tile))


def depthwise_weight(
    out: UOp,
    x: UOp,
    g: UOp,
    share: UOp,
    *,
    stride: int = 1,
    channels: Channels = WHOLE,
) -> UOp:
    """out (k, k, C) or (k, k, S, C) += the gradient of the weight of `depthwise`."""
    parts, channel, at = channels.parts, channels.read, channels.write
    (batch, height, width, _), size = g.shape, out.shape[0]
    own = len(out.shape) == 4
    x_wide, g_wide = x.shape[3] // parts, g.shape[3] // parts
    count, lanes = VECTORS[registers()]
    most = max(1, count * 3 // 4 // size) * lanes  # sums of a tap: those of all taps of a row stay
    together, c = block(width, out.shape[-1], stride, min(MOST, most))
    nest = Nest()
    around = ky, s1, c0 = nest.loops(size, parts if own else 1, out.shape[-1] // c)
    acc = nest.fill(around, (size, together * c), lambda i, j: ZERO)
    turns = b, y, s2 = nest.loops(batch, height, 1 if own else parts)
    s, inner = (s1 if own else s2), [*around, *turns]

    def seen_at(z: UOp, j: UOp) -> UOp:
        here = channel + s * x_wide + c0 * c + j
        return value_or_zero(x, b, y * stride + ky - size // 2, z - size // 2, here)

    seen = nest.fill(inner, ((width - 1) * stride + size, c), seen_at)
    slopes = nest.fill(
        inner, (width, c), lambda z, j: load(g, b, y, z, at + s * g_wide + c0 * c + j)
    )

    def term(kx: UOp, j: UOp) -> UOp:
        place = over[0] * together
        return seen[place * stride + kx, j].load() * slopes[place, j].load()

    over = nest.loops(width // together)
    acc = nest.accumulate(acc, [*turns, *over], term)
    kx, j = nest.loops(size, c)
    value = sum(acc[kx, t * c + j].load() for t in range(together))
    here = (ky, kx, s1, c0 * c + j) if own else (ky, kx, c0 * c + j)
    stored = add_gradient(out, here, value, share).end(*around, kx, j)
    return kernel(name_of("depthwise_weight", out, g, numbers=(stride,)), stored)


def value_or_zero(x: UOp, b: UOp, y: UOp, z: UOp, channel: UOp, apart: int = 1) -> UOp:
    """A value of a map, or zero where it has none; its positions are `apart` from each other."""
    down, across = inside(y, x.shape[1], apart), inside(z, x.shape[2], apart)
    return load_inside(x, b, down, across, channel)


def block(width: int, channels: int, step: int, most: int) -> tuple[int, int]:
    """How many neighboring positions of a row, and how many channels, to multiply at once: at most
    `most` numbers, which fill whole vectors as well as possible.

    With a step above 1 the windows are not adjacent as the positions are: then it is one position.
    """
    lanes = VECTORS[registers()].lanes
    c = vectors(channels, most, min(lanes, 8))
    few = min(NEIGHBORS, most // c) if step == 1 else 1
    counts = [n for n in range(1, max(1, few) + 1) if width % n == 0]
    return max(counts, key=lambda n: (used(n * c, lanes), n)), c
