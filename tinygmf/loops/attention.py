"""Loop nests of training: the products and the softmax of linear attention."""

from __future__ import annotations

from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import (
    MOST_CHANNELS,
    Nest,
    kernel,
    load,
    name_of,
    put,
    seen_as,
    total,
)
from tinygmf.loops.tiles import PRODUCT, best_tile, divisor
from tinygmf.loops.values import ZERO


def softmax_back(out: UOp, s: UOp, g: UOp, *, to: int) -> UOp:
    """out, from channel `to` on, = the gradient of the input of a softmax over the tokens, from the
    softmax s and its gradient g, both (B, N, C)."""
    batch, n, channels = s.shape
    out = seen_as(out, (batch, n, -1))
    nest, c = Nest(), divisor(channels, MOST_CHANNELS)
    around = b, c0 = nest.loops(batch, channels // c)
    sums = total(
        nest, around, n, c, lambda t, j: load(s, b, t, c0 * c + j) * load(g, b, t, c0 * c + j)
    )
    t, j = nest.loops(n, c)
    here = c0 * c + j
    value = load(s, b, t, here) * (load(g, b, t, here) - sums[j].load())
    stored = put(out, (b, t, to + here), value).end(*around, t, j)
    return kernel(name_of("softmax_back", s), stored)


def outer(
    out: UOp,
    x: UOp,
    y: UOp,
    *,
    head_dim: int,
    scale: float,
    x_channel: int = 0,
    y_channel: int = 0,
) -> UOp:
    """out (B, S, 1, C, C) = scale * xᵀ y, of S times C channels of x (B, N, …) and of y (B, N, …),
    from `x_channel` and `y_channel` on; zero for two channels of different heads."""
    batch, blocks, _, channels, _ = out.shape
    x, y = (seen_as(t, (batch, -1, t.shape[-1])) for t in (x, y))
    nest, (m, c, _) = Nest(), best_tile(PRODUCT, channels, channels, exact=True)
    around = b, s, i0, j0 = nest.loops(batch, blocks, channels // m, channels // c)
    row, column = s * channels + i0 * m, s * channels + j0 * c
    acc = nest.fill(around, (m, c), lambda i, j: ZERO)
    over = (t,) = nest.loops(x.shape[1])
    acc = nest.accumulate(
        acc,
        over,
        lambda i, j: load(x, b, t, x_channel + row + i) * load(y, b, t, y_channel + column + j),
    )
    i, j = nest.loops(m, c)
    one = ((i0 * m + i) // head_dim).eq((j0 * c + j) // head_dim)
    value = one.where(acc[i, j].load() * scale, ZERO)
    stored = put(out, (b, s, 0, i0 * m + i, j0 * c + j), value).end(*around, i, j)
    return kernel(name_of("outer", out, x, numbers=(x_channel, y_channel)), stored)
