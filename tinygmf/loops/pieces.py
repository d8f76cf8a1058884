"""Cut a kernel into pieces that can run in parallel, one core each.

tinygrad calls a kernel that has a variable `core_id` once for each of its values; here it chooses
the part of an outer loop to run. Every output is computed as it would be without pieces: the result
depends neither on their number nor on who runs them.
"""

from __future__ import annotations

import math

from tinygrad import dtypes
from tinygrad.uop.ops import AxisType, Ops, UOp

from tinygmf.loops.tiles import divisor, elsewhere
from tinygmf.threads import available_cores

LEAST = 1 << 13  # turns of the innermost loop in a piece, a few microseconds
STATEMENT = 32  # turns that a C statement stands for, at least: products of whole vectors
MOST = 64
FAIR = 0.85  # of the best loop's gain


def number_of_pieces() -> int:
    """How many pieces a large kernel is cut into: one for each core of this machine, whatever
    `--threads` says, so that programs are compiled once for all its values; in `for_machine`, of
    that one."""
    return min(elsewhere.get().cores or available_cores(), MOST)


def in_pieces(nest: UOp, overlapping: bool, whole: tuple[UOp, ...] = ()) -> UOp:
    """The loops `nest`, of which `core_id` runs a part.

    The outermost loop that divides well is cut: then a core's rows of one kernel are those of the
    next, and stay in its cache. With `overlapping` a loop of any size can be cut, and some turns
    run in two pieces: then a kernel must not read what it writes. The loops of `whole` are not cut,
    because all their turns add to the same outputs.
    """
    body, *loops = nest.src
    most = min(number_of_pieces(), turns(body) // LEAST)
    free = [loop for loop in outer_loops(body, loops) if loop not in whole]
    cuts = [cut(loop, most, overlapping) for loop in free]
    gains = [gain(size(loop), length, most) for loop, length in cuts]
    if max(gains, default=1) == 1:
        return nest
    loop, length = next(c for c, g in zip(cuts, gains, strict=True) if g > FAIR * max(gains))
    # 8 bits: if its values were not known to be small, clang could not prove that addresses do not
    # wrap, and would not vectorize.
    last = -(-size(loop) // length) - 1
    core = UOp.variable("core_id", 0, last, dtypes.uint8, param=True).cast(dtypes.weakint)
    part = UOp.range(length, loop.arg[0], AxisType.LOOP)
    body = body.substitute({loop: start(core, length, size(loop)) + part})
    return body.end(*(part if other is loop else other for other in loops))


def cut(loop: UOp, most: int, overlapping: bool) -> tuple[UOp, int]:
    """The loop, and the turns in each of at most `most` pieces; or one turn, if pieces that may not
    overlap would otherwise be a single one: some cores then run one turn more than others."""
    pieces = max(1, min(most, size(loop)))
    if not overlapping:
        pieces = divisor(size(loop), pieces)
        if pieces == 1 < most and size(loop) <= MOST:
            return loop, 1
    return loop, -(-size(loop) // pieces)


def gain(turns: int, length: int, cores: int) -> float:
    """The speed-up of the pieces over all turns on one core."""
    pieces = -(-turns // length)
    return turns / (length * -(-pieces // max(cores, 1)))


def outer_loops(body: UOp, loops: list[UOp]) -> list[UOp]:
    """Those of `loops` that are around all others, outermost first; never the innermost."""
    others = [node for node in body.toposort() if node.op is Ops.RANGE and node not in loops]
    first = min(number(loop) for loop in others) if others else max(map(number, loops))
    return sorted((loop for loop in loops if number(loop) < first), key=number)


def number(loop: UOp) -> int:
    return loop.arg[0]


def size(loop: UOp) -> int:
    return loop.vmax + 1


def turns(body: UOp) -> int:
    """How often the innermost store runs, or as many products of single numbers."""
    each = {Ops.STORE: 1, Ops.CUSTOM: STATEMENT}
    inner = (node for node in body.toposort() if node.op in each)
    return max(each[node.op] * math.prod(size(loop) for loop in node.ranges) for node in inner)


def start(index: UOp, width: int, size: int) -> UOp:
    """Where a tile starts; the last one overlaps its neighbor if `width` does not divide."""
    return index * width if size % width == 0 else (index * width).minimum(size - width)
