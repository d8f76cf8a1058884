"""Operations of the dense heads that sample between positions, on maps with the channels last.

As in `inference.py`, each is written twice: as a tensor expression for any device, and as a loop
nest for the CPU, which takes milliseconds to lower.
"""

from __future__ import annotations

import math
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import UOp

from tinygmf.loops.calls import run_loops
from tinygmf.loops.nest import Nest, load, store, tile
from tinygmf.loops.pieces import start
from tinygmf.loops.values import ZERO, add
from tinygmf.tensors import on_cpu

Size = tuple[int, int]  # (H, W)


def bilinear(x: Tensor, size: Size, *other: Tensor) -> Tensor:
    """Bilinear resizing, pixel centres at half, borders repeated: x (B, h, w, C) -> (B, *size, C);
    plus `other` of that shape."""
    shape = (x.shape[0], *size, x.shape[3])
    if on_cpu(x.device):
        return run_loops(bilinear_loops, shape, x.dtype, x, *other)
    y = x.permute(0, 3, 1, 2).interpolate(size, "linear").permute(0, 2, 3, 1)
    return sum(other, y).contiguous()


def double(x: Tensor, size: Size, *other: Tensor) -> Tensor:
    """Each value twice in both directions, cut to `size`: (B, h, w, C) -> (B, *size, C), size at
    most (2 h, 2 w); plus `other` of that shape."""
    batch, height, width, channels = x.shape
    if on_cpu(x.device):
        return run_loops(double_loops, (batch, *size, channels), x.dtype, x, *other)
    x = x.reshape(batch, height, 1, width, 1, channels).expand(-1, -1, 2, -1, 2, -1)
    x = x.reshape(batch, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]
    return sum(other, x).contiguous()


def best_class(x: Tensor, size: Size) -> Tensor:
    """Logits (B, h, w, K), resized as by `bilinear` -> the first best class (B, *size) int32."""
    if on_cpu(x.device):
        return run_loops(best_class_loops, (x.shape[0], *size), dtypes.int32, x)
    return bilinear(x, size).argmax(3).cast(dtypes.int32).contiguous()


def pool(flat: Tensor, rows: list[Tensor], columns: list[Tensor], bins: int) -> Tensor:
    """RoIAlign: values (places, C) under n boxes -> (n, bins, bins, C).

    `rows` and `columns`: places (n, S, 2) int32, whose sums are indices, and weights (n, S, 2); S
    samples, bin by bin, between two places each.
    """
    if on_cpu(flat.device):
        shape = (rows[0].shape[0], bins, bins, flat.shape[1])
        return run_loops(pool_loops, shape, flat.dtype, flat, *rows, *columns)
    n, count, _ = rows[0].shape
    down, across = ((n, count, 1), (n, 1, count))
    total: Any = 0
    for i in range(2):
        for j in range(2):
            place, weight = (
                rows[k][..., i].reshape(down) + columns[k][..., j].reshape(across)
                if k == 0
                else rows[k][..., i].reshape(down) * columns[k][..., j].reshape(across)
                for k in range(2)
            )
            total = total + flat[place] * weight.unsqueeze(3)  # (n, S, S, C)
    total = total.reshape(n, bins, count // bins, bins, count // bins, -1)
    return total.sum((2, 4)).contiguous()


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (P, C) by their numbers (n,) int32 -> (n, C)."""
    if on_cpu(x.device):
        return run_loops(take_loops, (index.shape[0], x.shape[1]), x.dtype, x, index)
    return x[index].contiguous()


# The same operations, as loop nests for the CPU


def between(place: UOp, size: int, new_size: int) -> tuple[UOp, UOp, UOp]:
    """For a position among `new_size`: the two nearest of `size`, and the weight of the second."""
    scaled = ((place * 2 + 1) * size - new_size).maximum(0).minimum((size - 1) * 2 * new_size)
    low = scaled // (2 * new_size)
    part = (scaled - low * (2 * new_size)).cast(dtypes.float32) * (0.5 / new_size)
    return low, (low + 1).minimum(size - 1), part


def interpolated(x: UOp, b: UOp, row: UOp, column: UOp, size: Size, channel: UOp) -> UOp:
    """A value of the resized map."""
    top, bottom, down = between(row, x.shape[1], size[0])
    left, right, across = between(column, x.shape[2], size[1])

    def along(y: UOp) -> UOp:
        first = load(x, b, y, left, channel)
        return first + (load(x, b, y, right, channel) - first) * across

    upper = along(top)
    return upper + (along(bottom) - upper) * down


def bilinear_loops(out: UOp, x: UOp, *other: UOp) -> UOp:
    b, row, column, c = loops = Nest().loops(*out.shape)
    value = interpolated(x, b, row, column, out.shape[1:3], c)
    value = sum((load(o, *loops) for o in other), value)
    return store(f"bilinear_{math.prod(out.shape)}", out, tuple(loops), value, *loops)


def double_loops(out: UOp, x: UOp, *other: UOp) -> UOp:
    b, row, column, c = loops = Nest().loops(*out.shape)
    value = sum((load(o, *loops) for o in other), load(x, b, row // 2, column // 2, c))
    return store(f"double_{math.prod(out.shape)}", out, tuple(loops), value, *loops)


def best_class_loops(out: UOp, x: UOp) -> UOp:
    nest, classes = Nest(), x.shape[3]
    around = b, row, column = nest.loops(*out.shape)
    values = nest.fill(
        around, (classes,), lambda k: interpolated(x, b, row, column, out.shape[1:], k)
    )
    top = nest.fill(around, (1,), lambda _: UOp.const(-math.inf, dtypes.float32))
    (k,) = over = nest.loops(classes)
    top = nest.accumulate(top, over, lambda _: values[k].load(), UOp.maximum)
    first = nest.fill(around, (1,), lambda _: UOp.const(float(classes), dtypes.float32))
    (k2,) = over = nest.loops(classes)

    def where_best(_: UOp) -> UOp:
        best = values[k2].load().eq(top[0].load())
        return best.where(k2.cast(dtypes.float32), float(classes))

    first = nest.accumulate(first, over, where_best, UOp.minimum)
    name = f"best_class_{math.prod(out.shape)}_{classes}"
    return store(name, out, tuple(around), first[0].load(), *around)


def pool_loops(
    out: UOp, flat: UOp, rows: UOp, row_weights: UOp, columns: UOp, column_weights: UOp
) -> UOp:
    n, bins, _, channels = out.shape
    points = rows.shape[1] // bins
    nest, c = Nest(), tile(channels, (40, 32))
    around = nest.loops(n, bins, bins, -(-channels // c))
    box, row, column, c0 = *around[:3], start(around[3], c, channels)
    acc = nest.fill(around, (c,), lambda _: ZERO)
    over = py, px, i, j = nest.loops(points, points, 2, 2)
    y, x = row * points + py, column * points + px

    def term(lane: UOp) -> UOp:
        place = rows[box, y, i].load() + columns[box, x, j].load()
        weight = row_weights[box, y, i].load() * column_weights[box, x, j].load()
        return load(flat, place, c0 + lane) * weight

    acc = nest.accumulate(acc, over, term, add)
    (lane,) = nest.loops(c)
    here = (box, row, column, c0 + lane)
    return store(f"pool_{n}_{bins}_{channels}", out, here, acc[lane].load(), *around, lane)


def take_loops(out: UOp, x: UOp, index: UOp) -> UOp:
    row, c = loops = Nest().loops(*out.shape)
    value = load(x, index[row].load(), c)
    return store(f"take_{math.prod(out.shape)}", out, tuple(loops), value, *loops)
