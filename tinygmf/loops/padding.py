"""Zeros around a map. As in `inference`, a tensor expression and a loop nest."""

from __future__ import annotations

import math
from functools import partial

from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.loops.calls import run_loops
from tinygmf.loops.nest import Nest, inside, store
from tinygmf.loops.values import ZERO
from tinygmf.tensors import on_cpu


def pad(x: Tensor, rim: int, channel: int = 0, dtype: DType | None = None) -> Tensor:
    """(B, H, W, C) -> (B, H + 2 rim, W + 2 rim, C - channel): zeros around, from `channel` on."""
    batch, height, width, channels = x.shape
    dtype = dtype or x.dtype
    if on_cpu(x.device):
        shape = (batch, height + 2 * rim, width + 2 * rim, channels - channel)
        return run_loops(partial(pad_loops, rim=rim, channel=channel), shape, dtype, x)
    return x[..., channel:].cast(dtype).pad((None, (rim, rim), (rim, rim), None)).contiguous()


def pad_loops(out: UOp, x: UOp, *, rim: int, channel: int = 0, apart: int = 1) -> UOp:
    """As `pad`, with the positions of x `apart` steps from each other and zeros between."""
    b, row, column, c = loops = Nest().loops(*out.shape)
    sides = zip((row, column), x.shape[1:3], strict=True)
    (h, down), (w, across) = (inside(at - rim, size, apart) for at, size in sides)
    value = (down & across).where(x[b, h, w, channel + c].load(), ZERO.cast(x.dtype))
    return store(f"pad_{math.prod(out.shape)}", out, tuple(loops), value, *loops)
