"""Loop nests of training: maps resized and pooled, forward and backward.

Maps have their channels last, (B, H, W, C). Resizing is bilinear with pixel centres at half and
borders repeated, as in `sampling`.
"""

from __future__ import annotations

from tinygrad import dtypes
from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import (
    MOST_CHANNELS,
    Nest,
    flat,
    kernel,
    load,
    load_inside,
    name_of,
    put,
)
from tinygmf.loops.sampling import interpolated
from tinygmf.loops.tiles import divisor
from tinygmf.loops.values import ZERO


def resize(out: UOp, x: UOp, *, plus: UOp | None = None, to: int = 0) -> UOp:
    """out (B, H, W, …), from channel `to` on, = x (B, h, w, C) resized to H x W [+ plus]."""
    b, row, column, c = loops = Nest().loops(*out.shape[:3], x.shape[3])
    value = interpolated(x, b, row, column, out.shape[1:3], c)
    if plus is not None:
        value = value + load(plus, *loops)
    stored = put(out, (b, row, column, to + c), value).end(*loops[::-1])
    return kernel(name_of("resize", out, x, numbers=(to,)), stored)


def resize_back(out: UOp, g: UOp, *, plus: UOp | None = None, at: int = 0) -> UOp:
    """out (B, h, w, C) = the gradient of x in `resize`, from that of the result (g, from channel
    `at` on) [+ plus]."""
    batch, height, width, channels = out.shape
    nest, c = Nest(), divisor(channels, MOST_CHANNELS)
    around = b, y, x, c0 = nest.loops(batch, height, width, channels // c)
    acc = nest.fill(around, (c,), lambda _: ZERO)
    sizes = (height, g.shape[1]), (width, g.shape[2])
    over = nest.loops(*(taps(*size) for size in sizes))

    def term(lane: UOp) -> UOp:
        (row, down), (column, across) = (
            tap(place, number, *size)
            for place, number, size in zip((y, x), over, sizes, strict=True)
        )
        inside_y, inside_x = (
            (place.minimum(side - 1), place < side)
            for place, (_, side) in zip((row, column), sizes, strict=True)
        )
        return load_inside(g, b, inside_y, inside_x, at + c0 * c + lane) * down * across

    acc = nest.accumulate(acc, over, term)
    (lane,) = nest.loops(c)
    here = (b, y, x, c0 * c + lane)
    value = acc[lane].load()
    if plus is not None:
        value = value + load(plus, *here)
    name = name_of("resize_back", out, g, numbers=(at,))
    return kernel(name, put(out, here, value).end(*around, lane))


def taps(size: int, new_size: int) -> int:
    """The most positions among `new_size` that one of `size` positions contributes to."""
    return min(-(-2 * new_size // size), new_size)


def tap(place: UOp, number: UOp, size: int, new_size: int) -> tuple[UOp, UOp]:
    """The `number`-th position among `new_size` that `place` of `size` contributes to, and its
    weight; it may be beyond the last."""
    first = ((2 * place - 1) * new_size + size).maximum(0) // (2 * size)
    new = first + number
    scaled = ((2 * new + 1) * size - new_size).maximum(0).minimum((size - 1) * 2 * new_size)
    off = (scaled - place * (2 * new_size)).cast(dtypes.float32) * (0.5 / new_size)
    return new, (1 - off.maximum(-off)).maximum(0)


def double_back(out: UOp, g: UOp, *, plus: UOp | None = None) -> UOp:
    """out (B, h, w, C) = the sum of the up to four values of g (B, H, W, C) at the positions that
    `sampling.double` copies each value to [+ plus]."""
    b, y, x, c = loops = Nest().loops(*out.shape)
    value = ZERO if plus is None else load(plus, *loops)
    for i in range(2):
        for j in range(2):
            rows, columns = (
                ((2 * place + step).minimum(side - 1), 2 * place + step < side)
                for place, step, side in ((y, i, g.shape[1]), (x, j, g.shape[2]))
            )
            value = value + load_inside(g, b, rows, columns, c)
    return kernel(name_of("double_back", out, g), put(out, tuple(loops), value).end(*loops))


def pool_back(
    out: UOp, g: UOp, rows: UOp, row_weights: UOp, columns: UOp, column_weights: UOp
) -> UOp:
    """out (places, C) += the gradient of the values of `sampling.pool`, from that of the result
    (n, bins, bins, C). Boxes share places, so nothing runs in parallel."""
    n, bins, _, channels = g.shape
    points = rows.shape[1] // bins
    out = flat(out)
    loops = box, row, py, i, column, px, j, c = Nest().loops(
        n, bins, points, 2, bins, points, 2, channels
    )
    y, x = row * points + py, column * points + px
    place = rows[box, y, i].load() + columns[box, x, j].load()
    weight = row_weights[box, y, i].load() * column_weights[box, x, j].load()
    stored = put(out, (place, c), load(g, box, row, column, c) * weight, adding=True)
    return kernel(name_of("pool_back", g), stored.end(*loops[::-1]))
