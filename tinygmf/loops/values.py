"""Functions of single values, which a kernel applies to its results before storing them.

A value is a `Tensor` or, in a loop nest, a scalar `UOp`: one definition serves both.
"""

from __future__ import annotations

import math
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import UOp

SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
ZERO = UOp.const(0.0, dtypes.float32)
Value = Any  # a Tensor or a UOp: the functions of values work on both


def identity(x: Value) -> Value:
    return x


def add(x: Value, y: Value) -> Value:
    return x + y


def add_product(x: Value, y: Value, z: Value) -> Value:
    return x + y * z


def relu(x: Value) -> Value:
    return x.maximum(0)


def add_relu(x: Value, y: Value) -> Value:
    return (x + y).maximum(0)


def hardswish(x: Value) -> Value:
    return x * (x + 3).maximum(0).minimum(6) * (1 / 6)


def gelu(x: Value) -> Value:
    """x * Phi(x), as relu(x) - |x| * erfc(|x| / sqrt(2)) / 2, within 3e-7; nothing cancels."""
    magnitude = x.maximum(-x)
    series, s = erfc_series(magnitude)
    square = s * s
    return x.maximum(0) - 0.5 * magnitude * series * exp(x * x * -0.5) / (square * square * s)


def erfc_series(x: Value) -> tuple[Value, Value]:
    """p and s of erfc(x / sqrt(2)) = p * exp(-x * x / 2) / s ** 5, for x >= 0.

    Abramowitz and Stegun, 7.1.26, over a common denominator.
    """
    s = 1 + 0.3275911 / math.sqrt(2) * x
    series = 0.254829592 * s - 0.284496736
    for coefficient in (1.421413741, -1.453152027, 1.061405429):
        series = series * s + coefficient
    return series, s


def exp(x: Value) -> Value:
    """e ** x for x <= 0, in a loop nest never below 2 ** -60: tinygrad's own handles every x."""
    if isinstance(x, Tensor):
        return x.exp()
    x = (x * (1 / math.log(2))).maximum(-60)
    whole = (x - 0.5).cast(dtypes.int32)  # the nearest: the cast rounds toward zero
    x = (x - whole.cast(dtypes.float32)) * math.log(2)  # within log(2) / 2 of zero
    series = x * (1 / 720) + 1 / 120
    for coefficient in (1 / 24, 1 / 6, 1 / 2, 1, 1):
        series = series * x + coefficient
    return series * ((whole + 127) * (1 << 23)).bitcast(dtypes.float32)


def log(x: UOp) -> UOp:
    """The natural logarithm of a positive, normal number, within 2e-7 of its size or of 1; of NaN,
    as of infinity, NaN."""
    whole, none = x.bitcast(dtypes.int32), x - x
    power = (whole - SQRT_HALF) >> 23
    x = (whole - power * (1 << 23)).bitcast(dtypes.float32)  # from sqrt(1/2) to sqrt(2)
    s = (x - 1) / (x + 1)
    square = s * s
    series = square * (1 / 9) + 1 / 7
    for coefficient in (1 / 5, 1 / 3, 1):
        series = series * square + coefficient
    return power.cast(dtypes.float32) * math.log(2) + 2 * s * series + none


def relu_slope(x: UOp) -> UOp:
    return (x > 0).where(UOp.const(1.0, dtypes.float32), ZERO)


def hardswish_slope(x: UOp) -> UOp:
    middle = x * (1 / 3) + 0.5
    return (x < -3).where(ZERO, (x > 3).where(UOp.const(1.0, dtypes.float32), middle))


def gelu_slope(x: UOp) -> UOp:
    """Phi(x) + x * phi(x)."""
    series, s = erfc_series(x.maximum(-x))
    bell, square = exp(x * x * -0.5), s * s
    tail = 0.5 * series * bell / (square * square * s)  # Phi(-|x|)
    return (x < 0).where(tail, 1 - tail) + x * bell * (1 / math.sqrt(2 * math.pi))
