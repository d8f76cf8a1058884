"""Tensors written by loop nests. Each nest is built once, though a network calls it many times."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.loops import pairs
from tinygmf.loops.pieces import number_of_pieces
from tinygmf.loops.tiles import registers


def run_loops(
    kernel: Callable[..., UOp], shape: tuple[Any, ...], dtype: DType, *inputs: Tensor
) -> Tensor:
    """A new tensor of this shape, written by the loop nest from the inputs."""
    out = Tensor.invalids(*shape, dtype=dtype, device=inputs[0].device)
    return written(out, kernel, *inputs)


def written(out: Tensor, kernel: Callable[..., UOp], *inputs: Tensor) -> Tensor:
    """`out` after the loop nest has written it."""
    target = number_of_pieces(), registers(), pairs.unit()
    whole = partial(kernel)
    build = partial(built, whole.func, tuple(whole.keywords.items()), target)
    return out.custom_kernel(*inputs, fxn=build)[0]


@lru_cache(maxsize=1000)
def built(function: Callable[..., UOp], options: tuple, target: tuple, *buffers: UOp) -> UOp:
    """The loop nest that a function builds for these buffers and this target."""
    return function(*buffers, **dict(options))
