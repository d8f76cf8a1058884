"""A product's matrix, laid out in the order in which a kernel reads it.

A tile of outputs needs all rows of the matrix but few of its columns. In rows of E columns these
lie far apart: each is in a cache line and every second in a page of its own, and no processor
fetches ahead of such steps. So the matrix (kh, kw, K, E) is kept as panels (1, P, kh, kw, K, c) of
as many columns as a tile has. Where c does not divide E, the last panel repeats columns of the one
before it.
"""

from __future__ import annotations

import numpy as np
from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import Nest
from tinygmf.loops.pieces import start
from tinygmf.loops.tiles import PAIRS, PRODUCT, panel_width

CACHED = 1 << 18  # numbers, 1 MB: a matrix of so many stays in a core's cache beside the maps
TILES = range(8, 3, -1)  # of tokens, with which a panel is used before the next one


def cut(array: np.ndarray, unit: str | None = None) -> np.ndarray:
    """(kh, kw, K, E) -> (1, P, kh, kw, K, c), for products by this unit of the processor; a matrix
    that is one panel, and one with other axes, as it is."""
    columns = array.shape[-1]
    width = panel_width(PAIRS if unit else PRODUCT, columns, unit)
    if array.ndim != 4 or width >= columns:
        return array
    starts = [min(first, columns - width) for first in range(0, columns, width)]
    return np.stack([array[..., first : first + width] for first in starts])[None]


def are_in(weight: UOp) -> bool:
    return len(weight.shape) == 6


def loops(
    nest: Nest, sizes: tuple[int, int, int, int, int], numbers: int, cut: bool
) -> tuple[list[UOp], tuple[UOp, ...]]:
    """The loops over pictures, rows, tiles of tokens, and blocks and parts of a matrix of so many
    numbers, in the order that reads it least often; and the place in each of the five.

    One that stays in no cache is read once, each part for the whole map. Of any other, a panel is
    used by some tiles of tokens, and a part that is not `cut` out by one.
    """
    *rows, tiles, blocks, parts = sizes
    if numbers > CACHED:
        part, *places = around = nest.loops(parts, *rows, tiles, blocks)
        return around, (*places, part)
    if not cut:
        around = nest.loops(*sizes)
        return around, tuple(around)
    together = min(tiles, min(TILES, key=lambda few: -(-tiles // few) * few))
    b, h, group, s, part, t = around = nest.loops(
        *rows, -(-tiles // together), blocks, parts, together
    )
    return around, (b, h, start(group, together, tiles) + t, s, part)
