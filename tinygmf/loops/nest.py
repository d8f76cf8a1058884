"""The language of the loop nests: loops, registers, tiles and the windows of convolutions.

A kernel is written as one would write it in C, and `source` makes it C. A tile of outputs stays in
a small local array, and clang vectorizes the innermost loop, which runs over neighboring channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from tinygrad import dtypes
from tinygrad.dtype import AddrSpace, DType
from tinygrad.uop.ops import AxisType, KernelInfo, Ops, UOp

from tinygmf.loops.pieces import in_pieces
from tinygmf.loops.tiles import divisor
from tinygmf.loops.values import ZERO, add

Index = Any  # a UOp or an int
MOST_CHANNELS = 40  # in a tile of sums, in training
BLOCK = 256  # terms of a sum


class Nest:
    """The loops of one kernel, numbered from the outermost, and its registers."""

    def __init__(self) -> None:
        self.axes, self.slots = count(), count()

    def loops(self, *sizes: int) -> list[UOp]:
        return [UOp.range(size, next(self.axes), AxisType.LOOP) for size in sizes]

    def registers(self, shape: tuple[int, ...]) -> UOp:
        return UOp.placeholder(shape, dtypes.float32, next(self.slots), AddrSpace.REG)

    def fill(self, around: list[UOp], shape: tuple[int, ...], value: Callable[..., UOp]) -> UOp:
        """New registers, set inside the loops `around` to a function of their indices."""
        registers, loops = self.registers(shape).after(*around), self.loops(*shape)
        return registers.after(registers[tuple(loops)].store(value(*loops)).end(*loops[::-1]))

    def accumulate(
        self,
        registers: UOp,
        over: list[UOp],
        term: Callable[..., UOp],
        combine: Callable[[UOp, UOp], UOp] = add,
        then: Callable[[UOp], UOp] = lambda turn: turn,
    ) -> UOp:
        """Add to every register a function of its indices, once for every turn of `over`; `then`
        may add a statement to each turn."""
        loops = self.loops(*registers.shape)
        place = registers.after(*over)[tuple(loops)]
        turn = place.store(combine(place.load(), term(*loops))).end(*loops[::-1])
        return registers.after(then(turn).end(*over[::-1]))

    def mean(self, around: list[UOp], size: int, lanes: int, of: Callable[[UOp], UOp]) -> UOp:
        """The mean of a function of 0 … size - 1, in `lanes` partial sums."""
        sums = self.fill(around, (lanes,), lambda lane: ZERO)
        (k,) = over = self.loops(size // lanes)
        sums = self.accumulate(sums, over, lambda lane: of(k * lanes + lane))
        return sum(sums[lane].load() for lane in range(lanes)) * (1 / size)


def tile(size: int, choices: tuple[int, ...]) -> int:
    """The first of `choices` that divides `size`; else the first, or `size` if that is smaller."""
    return next((c for c in choices if size % c == 0), min(size, choices[0]))


def load(buffer: UOp, *index: Index) -> UOp:
    return value_of(buffer[index])


def value_of(place: UOp) -> UOp:
    return place.load().cast(dtypes.float32)


def store(name: str, out: UOp, index: tuple[Index, ...], value: UOp, *loops: UOp) -> UOp:
    """The kernel that stores the value at the index, in `loops`, outermost first."""
    stored = out[index].store(narrowed(value, out.dtype)).end(*loops[::-1])
    return kernel(name, stored, overlapping=True)


def kernel(name: str, stored: UOp, overlapping: bool = False, whole: tuple[UOp, ...] = ()) -> UOp:
    """The kernel of these stores, its loops in the order written but for `in_pieces`."""
    pieces = in_pieces(stored, overlapping, whole)
    # The tag makes tinygrad leave the loops as they are, without looking for others.
    return UOp.sink(pieces, arg=KernelInfo(name=name, opts_to_apply=()), tag=1)


def put(out: UOp, index: tuple[UOp | int, ...], value: UOp, adding: bool = False) -> UOp:
    """Store a value, or add it to what is there."""
    value = load(out, *index) + value if adding else value
    return out[index].store(narrowed(value, out.dtype))


def narrowed(value: UOp, dtype: DType) -> UOp:
    """As `cast`, but to bfloat16 with half of tinygrad's operations, rounded to even; NaNs that
    processors make stay NaN. Clang does not vectorize the processor's own instruction."""
    if dtype != dtypes.bfloat16 or value.dtype == dtype:
        return value.cast(dtype)
    bits = value.cast(dtypes.float32).bitcast(dtypes.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).cast(dtypes.ushort).bitcast(dtype)


def statement(text: str, *operands: UOp) -> UOp:
    """A C statement; operands that the text does not name are computed before it."""
    return UOp(Ops.CUSTOM, src=operands, arg=text)


def add_gradient(out: UOp, index: tuple[UOp, ...], value: UOp, share: UOp) -> UOp:
    """Add to a weight's gradient."""
    return put(out, index, value * load(share, 0), adding=True)


def seen_as(buffer: UOp, shape: tuple[int, ...]) -> UOp:
    """A kernel's buffer in another shape. Its memory is reshaped, not its current shape: indices
    into that would need divisions that tinygrad cannot always simplify."""
    return buffer.base.reshape(shape)


def flat(x: UOp) -> UOp:
    """(…, C) -> (rows, C)."""
    return seen_as(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def name_of(what: str, *buffers: UOp, numbers: tuple[int, ...] = ()) -> str:
    """A kernel's name, which tells kernels of a kind apart at a glance."""
    shapes = ["x".join(map(str, buffer.shape)) for buffer in buffers]
    return "_".join([what, *shapes, *map(str, numbers)])


@dataclass(frozen=True)
class Channels:
    """Which channels of wider maps a kernel works on: input and output hold `parts` maps side by
    side, and of each it reads the channels from `read` on and writes those from `write` on."""

    parts: int = 1
    read: int = 0
    write: int = 0

    def reversed(self) -> Channels:
        """For the backward pass, which reads the gradient of what was written."""
        return Channels(self.parts, self.write, self.read)


WHOLE = Channels()


def inside(at: UOp, size: int, apart: int = 1) -> tuple[UOp, UOp]:
    """The index on an axis whose positions are `apart` steps apart, and whether it exists."""
    there = (at >= 0) & (at < size * apart)
    if apart > 1:
        there = there & (at % apart).eq(0)
    return at.maximum(0).minimum(size * apart - 1) // apart, there


def load_inside(
    x: UOp, b: UOp, down: tuple[UOp, UOp], across: tuple[UOp, UOp], channel: UOp
) -> UOp:
    """A value of a map, or zero outside it: row and column come with whether they are inside."""
    (y, inside_y), (z, inside_z) = down, across
    return (inside_y & inside_z).where(load(x, b, y, z, channel), ZERO)


def total(
    nest: Nest, around: list[UOp], turns: int, width: int, of: Callable[[UOp, UOp], UOp]
) -> UOp:
    """`width` sums of a function of the turn and the sum's number, added block by block: adding
    many terms one by one would lose digits."""
    few = divisor(turns, BLOCK)
    sums = nest.fill(around, (width,), lambda j: ZERO)
    blocks = nest.loops(turns // few)
    part = nest.fill([*around, *blocks], (width,), lambda j: ZERO)
    turn = nest.loops(few)
    part = nest.accumulate(part, turn, lambda j: of(blocks[0] * few + turn[0], j))
    return nest.accumulate(sums, blocks, lambda j: part[j].load())
