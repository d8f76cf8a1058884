"""Loop nests of training: AdamW's step, on flat tensors of one number for each weight."""

from __future__ import annotations

import math

from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import Nest, kernel, load, name_of, put, seen_as, total
from tinygmf.loops.tiles import divisor
from tinygmf.loops.values import ZERO

ROW = 1 << 12  # numbers, at most
LANES = 64  # partial sums, at most


def row_of(count: int) -> int:
    """The length of the rows in which a kernel sees so many numbers."""
    return divisor(count, ROW)


def rows_of(x: UOp) -> UOp:
    """(N,) -> (rows, numbers in a row)."""
    (count,) = x.shape
    return seen_as(x, (count // row_of(count), row_of(count)))


def squares(out: UOp, x: UOp) -> UOp:
    """out (rows,) = the sum of the squares in each row of x, as `rows_of` sees it."""
    x, nest = rows_of(x), Nest()
    lanes = divisor(x.shape[1], LANES)
    around = (r,) = nest.loops(x.shape[0])

    def square(k: UOp, lane: UOp) -> UOp:
        return load(x, r, k * lanes + lane) * load(x, r, k * lanes + lane)

    sums = total(nest, around, x.shape[1] // lanes, lanes, square)
    value = sum(sums[lane].load() for lane in range(lanes))
    return kernel(name_of("squares", x), put(out, (r,), value).end(*around))


def adamw(
    weights: UOp,
    first: UOp,
    second: UOp,
    average: UOp,
    gradient: UOp,
    decay: UOp,
    rates: UOp,
    schedule: UOp,
    norm: UOp,
    *,
    betas: tuple[float, float],
    eps: float,
) -> UOp:
    """The step of `training.update.update`, given the norm of the gradient before clipping:
    the first five are overwritten."""
    flat = weights, first, second, average, gradient, decay, rates
    weights, first, second, average, gradient, decay, rates = map(rows_of, flat)
    place = Nest().loops(*weights.shape)
    rate, correction1, correction2, clip = (load(schedule, i) for i in range(4))
    length, (beta1, beta2) = load(seen_as(norm, (1,)), 0), betas
    good = is_finite(length)
    factor = (clip * (length + 1e-6).reciprocal()).minimum(1)
    clipped = good.where(load(gradient, *place) * factor, ZERO)
    old, old_first, old_second = (load(x, *place) for x in (weights, first, second))
    new_first = good.where(beta1 * old_first + (1 - beta1) * clipped, old_first)
    new_second = good.where(beta2 * old_second + (1 - beta2) * clipped * clipped, old_second)
    root = (new_second * correction2).sqrt() + eps
    direction = new_first * correction1 * root.reciprocal()
    step = rate * load(rates, *place) * (direction + load(decay, *place) * old)
    new = old - good.where(step, ZERO)
    new_mean = followed(load(average, *place), new, schedule, good)
    buffers = weights, first, second, average, gradient
    values = new, new_first, new_second, new_mean, ZERO
    stores = [put(x, tuple(place), v) for x, v in zip(buffers, values, strict=True)]
    return kernel(name_of("adamw", weights), UOp.group(*stores).end(*place))


def average_of_statistics(mean: UOp, new: UOp, schedule: UOp, norm: UOp) -> UOp:
    """mean (N,), the moving average of new (N,), after a step: see `training.update.update`."""
    mean, new = map(rows_of, (mean, new))
    place = Nest().loops(*mean.shape)
    good = is_finite(load(seen_as(norm, (1,)), 0))
    value = followed(load(mean, *place), load(new, *place), schedule, good)
    return kernel(name_of("average", mean), put(mean, tuple(place), value).end(*place))


def is_finite(length: UOp) -> UOp:
    """Whether a norm is finite."""
    return length < math.inf  # False for NaN too


def followed(mean: UOp, new: UOp, schedule: UOp, good: UOp) -> UOp:
    """The moving average after a step; unchanged if that was not good."""
    ema = load(schedule, 4)
    return good.where(ema * mean + (1 - ema) * new, mean)
