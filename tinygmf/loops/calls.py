"""Tensors written by loop nests. Each nest is built once, though a network calls it many times."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.loops import pairs
from tinygmf.loops.pieces import number_of_pieces
from tinygmf.loops.source import program
from tinygmf.loops.tiles import registers

Kernel = Callable[..., UOp]

on_build: ContextVar[Callable[[UOp], None]] = ContextVar("on_build", default=lambda program: None)


def run_loops(kernel: Kernel, shape: tuple[Any, ...], dtype: DType, *inputs: Tensor) -> Tensor:
    """A new tensor of this shape, written by the loop nest from the inputs."""
    out = Tensor.invalids(*shape, dtype=dtype, device=inputs[0].device)
    return run(kernel, out, *inputs)


def run(kernel: Kernel, out: Tensor, *inputs: Tensor, **options: Any) -> Tensor:
    """`out` after the loop nest has written it."""
    return run_all(kernel, [out], *inputs, **options)[0]


def run_all(kernel: Kernel, outputs: list[Tensor], *inputs: Tensor, **options: Any) -> list[Tensor]:
    """The outputs after the nest has written them. It gets a buffer for each output and input in
    order, for each tensor among the options by its name, and the other options as they are."""
    whole = partial(kernel, **options)
    named = {name: option for name, option in options.items() if isinstance(option, Tensor)}
    plain = tuple((name, o) for name, o in whole.keywords.items() if name not in named)
    target = number_of_pieces(), registers(), pairs.unit()
    first, *others = outputs

    def build(*buffers: UOp) -> UOp:
        found = built(whole.func, plain, tuple(named), target, *buffers)
        on_build.get()(found)
        return found

    results = first.custom_kernel(*others, *inputs, *named.values(), fxn=build)
    return results[: len(outputs)]


@lru_cache(maxsize=1000)
def built(
    function: Kernel, options: tuple, named: tuple[str, ...], target: tuple, *buffers: UOp
) -> UOp:
    """The program of the nest that a function builds for these buffers, the last ones by name, and
    this target."""
    by_place = len(buffers) - len(named)
    by_name = dict(zip(named, buffers[by_place:], strict=True))
    return program(function(*buffers[:by_place], **by_name, **dict(options)))
