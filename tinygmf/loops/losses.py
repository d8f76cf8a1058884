"""Loop nests of training: the loss of every position of a map, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tinygrad import dtypes
from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import Nest, flat, kernel, load, name_of, put, seen_as
from tinygmf.loops.tiles import divisor
from tinygmf.loops.values import ZERO, add, exp, log

LANES = 64  # positions at a time


def cross_entropy(out: UOp, losses: UOp, logits: UOp, labels: UOp) -> UOp:
    """losses (B, H, W) = -log softmax of logits (B, H, W, C) at the labels (B, H, W), integers; out
    = its gradient for the logits. Both are zero where the label is no class."""
    out, logits = flat(out), flat(logits)
    (rows, classes), nest = logits.shape, Nest()
    losses, labels = (seen_as(t, (rows,)) for t in (losses, labels))
    lanes = divisor(rows, LANES)
    around = (r0,) = nest.loops(rows // lanes)

    def over_classes(start: UOp, term: Callable[..., UOp], combine: Any = add) -> UOp:
        sums = nest.fill(around, (lanes,), lambda i: start)
        (c,) = over = nest.loops(classes)
        return nest.accumulate(sums, over, lambda i: term(c, i), combine)

    def is_own(c: UOp, i: UOp) -> UOp:
        return labels[r0 * lanes + i].load().eq(c.cast(labels.dtype))

    def known(i: UOp) -> UOp:
        label = labels[r0 * lanes + i].load()
        return (label >= 0) & (label < classes)

    # Copied first: clang makes vectors of neighboring positions only where they are adjacent.
    of = nest.fill(around, (classes, lanes), lambda c, i: load(logits, r0 * lanes + i, c))
    top = over_classes(
        UOp.const(-math.inf, dtypes.float32), lambda c, i: of[c, i].load(), UOp.maximum
    )
    own = over_classes(ZERO, lambda c, i: is_own(c, i).where(of[c, i].load(), ZERO))
    powers = nest.fill(around, of.shape, lambda c, i: exp(of[c, i].load() - top[i].load()))
    total = over_classes(ZERO, lambda c, i: powers[c, i].load())
    inverse = nest.fill(around, (lanes,), lambda i: total[i].load().reciprocal())

    def slope(c: UOp, i: UOp) -> UOp:
        share = powers[c, i].load() * inverse[i].load()
        return known(i).where(share - is_own(c, i).cast(dtypes.float32), ZERO)

    slopes = nest.fill(around, of.shape, slope)
    i, c = nest.loops(lanes, classes)
    stores = [put(out, (r0 * lanes + i, c), slopes[c, i].load()).end(i, c)]
    (i,) = nest.loops(lanes)
    loss = known(i).where(log(total[i].load()) + top[i].load() - own[i].load(), ZERO)
    stores.append(put(losses, (r0 * lanes + i,), loss).end(i))
    return kernel(name_of("cross_entropy", out), UOp.group(*stores).end(*around))
