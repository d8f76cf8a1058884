"""A product's matrix, laid out in the order in which a kernel reads it.

A tile of outputs needs all rows of the matrix but few of its columns. In rows of E columns these
are far apart: each is in its own cache line and every second in its own page, and no processor
prefetches such strides. So the matrix (kh, kw, K, E) is kept as panels (1, P, kh, kw, K, c) of as
many columns as a tile has. If c does not divide E, the last panel repeats columns of the one
before it. A matrix with fewer columns than a tile is padded with zeros: clang computes the rest of
a vector number by number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import Nest, statement
from tinygmf.loops.pieces import number_of_pieces, start
from tinygmf.loops.tiles import PAIRS, PRODUCT, VECTORS, panel_width, registers

LINE = 64  # bytes of the caches' lines
CACHED = 1 << 18  # numbers, 1 MB: a matrix of so many stays in a core's cache beside the maps
TILES = range(8, 3, -1)  # of tokens, which use a panel before the next one


def cut(array: np.ndarray, unit: str | None = None) -> np.ndarray:
    """(kh, kw, K, E) -> (1, P, kh, kw, K, c), for products on this unit of the processor; a matrix
    that fits one panel, or has other axes, is returned unchanged."""
    columns = array.shape[-1]
    width = panel_width(PAIRS if unit else PRODUCT, columns, unit)
    lanes = VECTORS[registers()].lanes
    if array.ndim == 4 and columns < width and columns % lanes and width % lanes == 0:
        return np.pad(array, [(0, 0)] * 3 + [(0, width - columns)])[None, None]
    if array.ndim != 4 or width >= columns:
        return array
    starts = [min(first, columns - width) for first in range(0, columns, width)]
    return np.stack([array[..., first : first + width] for first in starts])[None]


def are_in(weight: UOp) -> bool:
    return len(weight.shape) == 6


class Order(NamedTuple):
    """The loops of a product, from the outermost."""

    around: list[UOp]
    place: tuple[UOp, ...]  # picture, row, tile of tokens, block, and part of a matrix
    turn: UOp  # how many tiles have used the part so far
    turns: int  # at most


def loops(nest: Nest, sizes: tuple[int, int, int, int, int], numbers: int, cut: bool) -> Order:
    """The loops over pictures, rows, tiles of tokens, and blocks and parts of a matrix of `numbers`
    values, in the order that reads it least often.

    A matrix too large for the cache is read once, each part for the whole map. Of a smaller one,
    several tiles of tokens use a panel in turn; a part that is not `cut` out serves one.
    """
    *rows, tiles, blocks, parts = sizes
    if numbers > CACHED:
        part, *places = around = nest.loops(parts, *rows, tiles, blocks)
        return Order(around, (*places, part), places[-2], tiles)
    if not cut:
        around = nest.loops(*sizes)
        return Order(around, tuple(around), around[2], tiles)
    cores = number_of_pieces()
    together = min(tiles, min(TILES, key=lambda few: -(-tiles // (few * cores)) * few))
    b, h, group, s, part, t = around = nest.loops(
        *rows, -(-tiles // together), blocks, parts, together
    )
    place = b, h, start(group, together, tiles) + t, s, part
    return Order(around, place, t, together)


def fetch_next(weight: UOp, part: UOp, order: Order, row: UOp, used: UOp) -> UOp:
    """Prefetch this row of the next panel after that of this one was `used`, some cache lines in
    each turn: no processor prefetches from one page of memory to the next."""
    height, width = math.prod(weight.shape[2:5]), weight.shape[5]
    line = LINE // weight.dtype.itemsize
    lines = -(-width // line)
    each = -(-lines // order.turns)
    next_one = (part + 1) * (height * width) + order.turn * (each * line)
    needed = order.turn * each < lines  # else what is in the cache already
    place = needed.where(next_one, part * (height * width)) + row * width
    text = " ".join(f"__builtin_prefetch({{0}} + {{1}} + {i * line});" for i in range(each))
    return statement(text, weight.base, place, used)
