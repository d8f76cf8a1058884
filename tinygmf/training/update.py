"""AdamW's step on flat tensors, one number for each weight: clip, step, moving average."""

from __future__ import annotations

import math

import numpy as np
from tinygrad import Tensor

from tinygmf.loops import adamw
from tinygmf.loops.calls import run, run_all
from tinygmf.tensors import on_cpu

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def update_schedule(rate: float, step: int, clip: float, ema: float) -> np.ndarray:
    """The numbers that `update` needs for a step, counted from 0."""
    corrections = 1 / (1 - BETA1 ** (step + 1)), 1 / (1 - BETA2 ** (step + 1))
    return np.array([rate, *corrections, clip, ema], np.float32)


def update(
    weights: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    average: Tensor,
    statistics: Tensor,
    average_statistics: Tensor,
    decay: Tensor,
    rates: Tensor,
    schedule: Tensor,
) -> Tensor:
    """Clip the gradient, take AdamW's step in place and clear the gradient for the next one.

    All but `schedule` are flat, one number per weight: `first` and `second` are AdamW's averages,
    `average` is the moving average of the weights, `decay` the weight decay, `rates` the
    learning-rate factors; but the `statistics` are those of the norms, which the gradient's program
    has moved, and `average_statistics` their moving average: averaged weights make other maps than
    the last steps' weights do. Returns the gradient's norm before clipping; if that is not finite,
    weights and averages stay as they are.
    """
    if on_cpu(weights.device):
        changed = [weights, first, second, average, gradient]
        return update_in_loops(changed, average_statistics, statistics, decay, rates, schedule)
    rate, correction1, correction2, clip, ema = (schedule[i] for i in range(5))
    norm = gradient.square().sum().sqrt().contiguous()
    good = norm < math.inf  # False for NaN too
    clipped = good.where(gradient * (clip / (norm + 1e-6)).minimum(1), 0.0)
    first.assign(good.where(BETA1 * first + (1 - BETA1) * clipped, first))
    second.assign(good.where(BETA2 * second + (1 - BETA2) * clipped.square(), second))
    Tensor.realize(norm, first, second)
    direction = (first * correction1) / ((second * correction2).sqrt() + EPS)
    step = rate * rates * (direction + decay * weights)
    weights.assign(weights - good.where(step, 0.0))
    Tensor.realize(weights)
    for mean, new in ((average, weights), (average_statistics, statistics)):
        mean.assign(good.where(ema * mean + (1 - ema) * new, mean))
    gradient.assign(gradient.zeros_like())
    Tensor.realize(average, average_statistics, gradient)
    return norm


def update_in_loops(
    changed: list[Tensor],
    average_statistics: Tensor,
    statistics: Tensor,
    decay: Tensor,
    rates: Tensor,
    schedule: Tensor,
) -> Tensor:
    """`update` for the CPU device, in loop nests that read and write every number once: `changed`
    are the first arguments of `loops.adamw.adamw`."""
    gradient = changed[-1]
    count = int(gradient.shape[0])
    empty = Tensor.invalids(
        count // adamw.row_of(count), dtype=gradient.dtype, device=gradient.device
    )
    norm = run(adamw.squares, empty, gradient).sum().sqrt().contiguous()
    options = {"betas": (BETA1, BETA2), "eps": EPS}
    steps = run_all(adamw.adamw, changed, decay, rates, schedule, norm, **options)
    mean = run(adamw.average_of_statistics, average_statistics, statistics, schedule, norm)
    Tensor.realize(norm, mean, *steps)
    return norm
