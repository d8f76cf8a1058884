"""Loop nests of training: BatchNorm and LayerNorm, forward and backward, and activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import (
    MOST_CHANNELS,
    Nest,
    add_gradient,
    flat,
    kernel,
    load,
    name_of,
    put,
    seen_as,
    total,
)
from tinygmf.loops.tiles import divisor
from tinygmf.loops.values import ZERO, hardswish, hardswish_slope, identity


def slope(out: UOp, x: UOp, g: UOp, *, function: Callable[[UOp], UOp]) -> UOp:
    """out = g * function(x), elementwise."""
    out, x, g = flat(out), flat(x), flat(g)
    place = Nest().loops(*out.shape)
    value = load(g, *place) * function(load(x, *place))
    stored = put(out, tuple(place), value).end(*place)
    return kernel(name_of(function.__name__, out), stored)


def batchnorm(
    out: UOp, found: UOp, running: UOp, x: UOp, affine: UOp, *, eps: float, act: bool
) -> UOp:
    """out = [hardswish of] x (rows, C), each channel by its mean and variance, scaled and shifted.

    affine (2, C); found (2, C): mean and 1 / deviation; running (2, C): the moving averages of mean
    and unbiased variance, with momentum 0.1.
    """
    out, x = (seen_as(t, (-1, affine.shape[1])) for t in (out, x))
    rows, channels = x.shape
    nest, c = Nest(), divisor(channels, MOST_CHANNELS)
    around = (c0,) = nest.loops(channels // c)

    sums = total(nest, around, rows, c, lambda r, j: load(x, r, c0 * c + j))

    def centred(r: UOp, j: UOp) -> UOp:
        return load(x, r, c0 * c + j) - sums[j].load() * (1 / rows)

    squares = total(nest, around, rows, c, lambda r, j: centred(r, j) * centred(r, j))

    def inverse(j: UOp) -> UOp:
        return (squares[j].load() * (1 / rows) + eps).sqrt().reciprocal()

    scales = nest.fill(around, (c,), inverse)
    r, j = nest.loops(rows, c)
    here = c0 * c + j
    value = centred(r, j) * scales[j].load()
    value = value * load(affine, 0, here) + load(affine, 1, here)
    stores = [put(out, (r, here), hardswish(value) if act else value).end(r, j)]
    (j,) = nest.loops(c)
    mean, unbiased = sums[j].load() * (1 / rows), squares[j].load() * (1 / max(rows - 1, 1))
    statistics = put_statistics(found, running, c0 * c + j, mean, scales[j].load(), unbiased)
    stores.append(statistics.end(j))
    return kernel(name_of("batchnorm", out), UOp.group(*stores).end(*around))


def put_statistics(
    found: UOp, running: UOp, here: UOp, mean: UOp, inverse: UOp, unbiased: UOp
) -> UOp:
    """Store a channel's mean and 1 / deviation; update its running statistics, momentum 0.1."""
    return UOp.group(
        put(found, (0, here), mean),
        put(found, (1, here), inverse),
        put(running, (0, here), 0.9 * load(running, 0, here) + 0.1 * mean),
        put(running, (1, here), 0.9 * load(running, 1, here) + 0.1 * unbiased),
    )


def batchnorm_back(
    out: UOp, weights: UOp, x: UOp, g: UOp, affine: UOp, found: UOp, share: UOp, *, act: bool
) -> UOp:
    """out = the gradient of x, from that of the result, g; weights (2, C) += that of affine."""
    out, x, g = (seen_as(t, (-1, affine.shape[1])) for t in (out, x, g))
    rows, channels = x.shape
    nest, c = Nest(), divisor(channels, MOST_CHANNELS)
    around = (c0,) = nest.loops(channels // c)
    normal, before = batchnorm_parts(x, g, affine, found, act)

    def sums(of: Callable[[UOp, UOp], UOp]) -> UOp:
        return total(nest, around, rows, c, lambda r, j: of(r, c0 * c + j))

    plain = sums(before)
    moment = sums(lambda r, here: before(r, here) * normal(r, here))
    r, j = nest.loops(rows, c)
    here = c0 * c + j
    value = before(r, here) - (plain[j].load() + normal(r, here) * moment[j].load()) * (1 / rows)
    value = value * load(found, 1, here) * load(affine, 0, here)
    stores = [put(out, (r, here), value).end(r, j)]
    (j,) = nest.loops(c)
    numbers = [
        add_gradient(weights, (0, c0 * c + j), moment[j].load(), share),
        add_gradient(weights, (1, c0 * c + j), plain[j].load(), share),
    ]
    stores.append(UOp.group(*numbers).end(j))
    return kernel(name_of("batchnorm_back", out), UOp.group(*stores).end(*around))


def batchnorm_parts(
    x: UOp, g: UOp, affine: UOp, found: UOp, act: bool
) -> tuple[Callable[[UOp, UOp], UOp], Callable[[UOp, UOp], UOp]]:
    """The normalized value of an element, and the gradient of the norm's result there."""

    def normal(r: UOp, here: UOp) -> UOp:
        return (load(x, r, here) - load(found, 0, here)) * load(found, 1, here)

    def before(r: UOp, here: UOp) -> UOp:
        value = load(g, r, here)
        if not act:
            return value
        return value * hardswish_slope(
            normal(r, here) * load(affine, 0, here) + load(affine, 1, here)
        )

    return normal, before


def layernorm(
    out: UOp, found: UOp, x: UOp, affine: UOp, *, eps: float, act: bool, to: int = 0
) -> UOp:
    """out, from channel `to` on, = [hardswish of] x (rows, C), each row by its mean and variance.

    affine (2, C); found (rows, 2): mean and 1 / deviation.
    """
    out, x = flat(out), flat(x)
    rows, channels = x.shape
    nest, lanes = Nest(), divisor(channels, 10)
    around = (r,) = nest.loops(rows)

    def mean(of: Callable[[UOp], UOp]) -> UOp:
        return nest.mean(around, channels, lanes, lambda k: of(load(x, r, k)))

    centre = mean(identity)
    inverse = (mean(lambda value: (value - centre) * (value - centre)) + eps).sqrt().reciprocal()
    (j,) = nest.loops(channels)
    value = (load(x, r, j) - centre) * inverse * load(affine, 0, j) + load(affine, 1, j)
    stores = [
        put(out, (r, to + j), hardswish(value) if act else value).end(j),
        put(found, (r, 0), centre),
        put(found, (r, 1), inverse),
    ]
    return kernel(name_of("layernorm", out, x), UOp.group(*stores).end(*around))


def layernorm_back(
    out: UOp,
    x: UOp,
    g: UOp,
    affine: UOp,
    found: UOp,
    *,
    plus: UOp | None = None,
    act: bool,
    at: int = 0,
) -> UOp:
    """out = the gradient of x, from that of the result (g, from channel `at` on) [+ plus]."""
    out, x, g = flat(out), flat(x), flat(g)
    rows, channels = x.shape
    nest, lanes = Nest(), divisor(channels, 10)
    around = (r,) = nest.loops(rows)
    normal, before = layernorm_parts(x, g, affine, found, act, at)

    mean = partial(nest.mean, around, channels, lanes)
    plain = mean(lambda j: before(r, j) * load(affine, 0, j))
    moment = mean(lambda j: before(r, j) * load(affine, 0, j) * normal(r, j))
    (j,) = nest.loops(channels)
    value = (before(r, j) * load(affine, 0, j) - plain - normal(r, j) * moment) * load(found, r, 1)
    if plus is not None:
        value = value + load(flat(plus), r, j)
    return kernel(name_of("layernorm_back", out), put(out, (r, j), value).end(*around, j))


def layernorm_weight(
    weights: UOp, x: UOp, g: UOp, affine: UOp, found: UOp, share: UOp, *, act: bool, at: int = 0
) -> UOp:
    """weights (2, C) += the gradient of the affine of `layernorm`."""
    x, g = flat(x), flat(g)
    rows, channels = x.shape
    nest, c = Nest(), divisor(channels, MOST_CHANNELS)
    around = (c0,) = nest.loops(channels // c)
    normal, before = layernorm_parts(x, g, affine, found, act, at)
    sums = nest.fill(around, (2, c), lambda i, j: ZERO)
    over = (r,) = nest.loops(rows)

    def term(i: UOp, j: UOp) -> UOp:
        value = before(r, c0 * c + j)
        return i.eq(0).where(value * normal(r, c0 * c + j), value)

    sums = nest.accumulate(sums, over, term)
    i, j = nest.loops(2, c)
    stored = add_gradient(weights, (i, c0 * c + j), sums[i, j].load(), share).end(*around, i, j)
    return kernel(name_of("layernorm_weight", x), stored)


def layernorm_parts(
    x: UOp, g: UOp, affine: UOp, found: UOp, act: bool, at: int
) -> tuple[Callable[[UOp, UOp], UOp], Callable[[UOp, UOp], UOp]]:
    """The normalized value of an element, and the gradient of the norm's result there."""

    def normal(r: UOp, j: UOp) -> UOp:
        return (load(x, r, j) - load(found, r, 0)) * load(found, r, 1)

    def before(r: UOp, j: UOp) -> UOp:
        value = load(g, r, at + j)
        if not act:
            return value
        return value * hardswish_slope(normal(r, j) * load(affine, 0, j) + load(affine, 1, j))

    return normal, before
