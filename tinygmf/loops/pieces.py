"""Cutting a kernel into pieces that may run at once, on as many cores.

tinygrad calls a kernel that has a variable `core_id` once for each of its values; here it says
which part of one of the outer loops is to run. Every output is computed as it would be without:
the result does not depend on how many pieces there are, nor on who runs them.
"""

from __future__ import annotations

import math

from tinygrad import dtypes
from tinygrad.uop.ops import AxisType, Ops, UOp

from tinygmf.loops.tiles import divisor, elsewhere
from tinygmf.threads import available_cores

LEAST = 1 << 13  # turns of the innermost loop in a piece, a few microseconds
MOST = 64
FAIR = 0.85  # of the best division


def number_of_pieces() -> int:
    """Into how many pieces a large kernel is cut: one for each core that is there, whatever
    `--threads` says, so that programs are compiled once for all its values; or of another machine,
    in `for_machine`."""
    return min(elsewhere.get().cores or available_cores(), MOST)


def in_pieces(nest: UOp, overlapping: bool, whole: tuple[UOp, ...] = ()) -> UOp:
    """The loops `nest`, of which `core_id` runs a part.

    The outermost loop is cut that is divided well: then the rows of one kernel are those of the
    next, and stay in a core's cache. With `overlapping` a loop of any size can be cut, and some
    turns run in two pieces: a kernel must not read what it writes then. The loops of `whole` are
    not cut, as all their turns add to the same outputs.
    """
    body, *loops = nest.src
    if skips_a_buffer(body):
        return nest
    most = min(number_of_pieces(), turns(body) // LEAST)
    free = [loop for loop in outer_loops(body, loops) if loop not in whole]
    cuts = [cut(loop, most, overlapping) for loop in free]
    gains = [gain(size(loop), length, most) for loop, length in cuts]
    if max(gains, default=1) == 1:
        return nest
    loop, length = next(c for c, g in zip(cuts, gains, strict=True) if g > FAIR * max(gains))
    # Of 8 bits: were its values not known to be few, clang could not prove that addresses do not
    # wrap, and would not make vector instructions.
    last = -(-size(loop) // length) - 1
    core = UOp.variable("core_id", 0, last, dtypes.uint8, param=True).cast(dtypes.weakint)
    part = UOp.range(length, loop.arg[0], AxisType.LOOP)
    body = body.substitute({loop: start(core, length, size(loop)) + part})
    return body.end(*(part if other is loop else other for other in loops))


def skips_a_buffer(body: UOp) -> bool:
    """Whether a buffer is not used. tinygrad gives `core_id` the number of buffers that are as its
    place among the arguments, which is then the place of the last."""
    used = {node.arg.slot for node in body.toposort() if node.op is Ops.PARAM}
    return max(used) + 1 > len(used)


def cut(loop: UOp, most: int, overlapping: bool) -> tuple[UOp, int]:
    """The loop, and the turns of each of at most so many pieces; or one turn, where pieces that may
    not overlap would else be one: some core then runs one more than others."""
    pieces = max(1, min(most, size(loop)))
    if not overlapping:
        pieces = divisor(size(loop), pieces)
        if pieces == 1 < most and size(loop) <= MOST:
            return loop, 1
    return loop, -(-size(loop) // pieces)


def gain(turns: int, length: int, cores: int) -> float:
    """How much sooner the pieces are done than all turns on one core."""
    pieces = -(-turns // length)
    return turns / (length * -(-pieces // max(cores, 1)))


def outer_loops(body: UOp, loops: list[UOp]) -> list[UOp]:
    """Those of `loops`, from the outermost, which are around all others; never the innermost."""
    others = [node for node in body.toposort() if node.op is Ops.RANGE and node not in loops]
    first = min(number(loop) for loop in others) if others else max(map(number, loops))
    return sorted((loop for loop in loops if number(loop) < first), key=number)


def number(loop: UOp) -> int:
    return loop.arg[0]


def size(loop: UOp) -> int:
    return loop.vmax + 1


def turns(body: UOp) -> int:
    """How often the innermost statement runs."""
    stores = (node for node in body.toposort() if node.op is Ops.STORE)
    return max(math.prod(size(loop) for loop in store.ranges) for store in stores)


def start(index: UOp, width: int, size: int) -> UOp:
    """Where a tile starts; the last one overlaps its neighbour where `width` does not divide."""
    return index * width if size % width == 0 else (index * width).minimum(size - width)
