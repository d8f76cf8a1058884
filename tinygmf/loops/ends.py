"""The folded network's first step and its last but one: pictures to maps with the channels last,
and a map to its mean. As in `inference`, each as a tensor expression and as a loop nest."""

from __future__ import annotations

import math
from functools import partial

from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.loops.calls import run_loops
from tinygmf.loops.nest import MOST_CHANNELS, Nest, inside, load, seen_as, store, total
from tinygmf.loops.padding import pad
from tinygmf.loops.tiles import divisor
from tinygmf.loops.values import ZERO
from tinygmf.tensors import on_cpu


def channels_last(x: Tensor, rim: int, dtype: DType) -> Tensor:
    """(B, C, H, W) -> (B, H + 2 rim, W + 2 rim, C), zeros around."""
    batch, channels, height, width = x.shape
    if on_cpu(x.device):
        shape = (batch, height + 2 * rim, width + 2 * rim, channels)
        return run_loops(partial(channels_last_loops, rim=rim), shape, dtype, x)
    return pad(x.permute(0, 2, 3, 1).cast(dtype).contiguous(), rim)


def mean(x: Tensor, dtype: DType) -> Tensor:
    """The mean over all positions: (B, H, W, C) -> (B, 1, 1, C)."""
    if on_cpu(x.device):
        return run_loops(mean_loops, (x.shape[0], 1, 1, x.shape[3]), dtype, x)
    return x.mean((1, 2), keepdim=True).cast(dtype).contiguous()


def channels_last_loops(out: UOp, x: UOp, *, rim: int) -> UOp:
    b, y, z, c = loops = Nest().loops(*out.shape)
    (row, inside_y), (column, inside_x) = inside(y - rim, x.shape[2]), inside(z - rim, x.shape[3])
    value = (inside_y & inside_x).where(load(x, b, c, row, column), ZERO)
    return store(f"channels_last_{math.prod(out.shape)}", out, (b, y, z, c), value, *loops)


def mean_loops(out: UOp, x: UOp) -> UOp:
    batch, height, width, channels = x.shape
    positions, c = height * width, divisor(channels, MOST_CHANNELS)
    nest, x = Nest(), seen_as(x, (batch, positions, channels))
    around = b, c0 = nest.loops(batch, channels // c)
    sums = total(nest, around, positions, c, lambda t, j: load(x, b, t, c0 * c + j))
    (j,) = nest.loops(c)
    value, place = sums[j].load() * (1 / positions), (b, 0, 0, c0 * c + j)
    return store(f"mean_{batch * positions}_{channels}", out, place, value, *around, j)
