"""The layers a GroupMixFormer is made of, for one image, at inference.

Numbers are Python floats in nested lists, in one of two layouts:

    map     [C][H][W]   C channels, each H rows of W numbers
    tokens  [N][D]      N = H * W places, read row by row, with D channels each
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeAlias

Vector: TypeAlias = list[float]
Plane: TypeAlias = list[list[float]]  # one channel of a map: [H][W]
Map: TypeAlias = list[list[list[float]]]  # [C][H][W]
Tokens: TypeAlias = list[list[float]]  # [N][D]
Nested: TypeAlias = Any  # a number, or lists (of lists ...) of numbers


def dot(a: Iterable[float], b: Iterable[float]) -> float:
    """The sum of a_i * b_i: nearly all of the network's time is spent here."""
    return sum(map(operator.mul, a, b))


def transpose(matrix: Iterable[Sequence[float]]) -> list[list[float]]:
    """[N][D] -> [D][N]."""
    return [list(column) for column in zip(*matrix, strict=True)]


def cut(x: list, parts: int) -> list[list]:
    """Cut a list into equal parts: [C]... -> [parts][C / parts]..."""
    size = len(x) // parts
    return [x[start : start + size] for start in range(0, parts * size, size)]


def each(function: Callable[[float], float], x: Nested) -> Nested:
    """Apply a function to every number of a nested list of any shape."""
    if isinstance(x[0], list):
        return [each(function, part) for part in x]
    return list(map(function, x))


def add(a: Tokens, b: Tokens) -> Tokens:
    """a + b, number by number: [N][D], [N][D] -> [N][D]."""
    return [list(map(operator.add, *rows)) for rows in zip(a, b, strict=True)]


def multiply(a: Tokens, b: Tokens) -> Tokens:
    """a * b, number by number: [N][D], [N][D] -> [N][D]."""
    return [list(map(operator.mul, *rows)) for rows in zip(a, b, strict=True)]


def to_tokens(x: Map) -> Tokens:
    """[C][H][W] -> [H * W][C]: one token for each place, row by row."""
    return transpose([list(chain.from_iterable(channel)) for channel in x])


def to_map(tokens: Tokens, width: int) -> Map:
    """[N][C] -> [C][N / width][width]: undo `to_tokens`."""
    return [in_rows(channel, width) for channel in transpose(tokens)]


def join(parts: list[Tokens]) -> Tokens:
    """Tokens side by side: [N][D_1], [N][D_2], ... -> [N][D_1 + D_2 + ...]."""
    return [list(chain(*token)) for token in zip(*parts, strict=True)]


def in_rows(values: Vector, width: int) -> Plane:
    """[H * W] -> [H][W]."""
    return [values[start : start + width] for start in range(0, len(values), width)]


def linear(x: Tokens, weight: list[Vector], bias: Vector | None = None) -> Tokens:
    """x Wᵀ + b for each token: [N][D_in], weight [D_out][D_in] -> [N][D_out]."""
    bias = bias or [0.0] * len(weight)
    rows = list(zip(weight, bias, strict=True))
    return [[dot(token, row) + b for row, b in rows] for token in x]


def taps(channel: Plane, size: int, stride: int) -> list[Vector]:
    """One channel as each tap of a kernel sees it: [H][W] -> [size * size][H' * W'].

    A kernel of `size` x `size` taps (odd) glides over the channel, which is framed by size // 2
    zeros, so H' = ceil(H / stride) and W' = ceil(W / stride). Tap (dy, dx) meets the framed
    channel moved by dy rows and dx columns; read across the taps, these copies are the windows.
    """
    height, width, frame = len(channel), len(channel[0]), size // 2
    side = [0.0] * frame
    blank = [[0.0] * (width + 2 * frame)] * frame
    framed = [*blank, *([*side, *row, *side] for row in channel), *blank]
    return [
        [v for row in framed[dy : dy + height : stride] for v in row[dx : dx + width : stride]]
        for dy in range(size)
        for dx in range(size)
    ]


def conv2d(x: Map, weight: list[Map], bias: Vector | None = None, stride: int = 1) -> Map:
    """Convolution with zero padding k // 2, each output channel seeing every input channel.

    x [C_in][H][W], weight [C_out][C_in][k][k], bias [C_out] or None
    -> [C_out][ceil(H / stride)][ceil(W / stride)].
    """
    size = len(weight[0][0])
    copies = [copy for channel in x for copy in taps(channel, size, stride)]  # [C_in*k*k][H'*W']
    windows = list(zip(*copies, strict=True))  # [H'*W'][C_in*k*k]
    width = math.ceil(len(x[0][0]) / stride)
    result = []
    for kernel, b in zip(weight, bias or [0.0] * len(weight), strict=True):
        flat = [v for plane in kernel for row in plane for v in row]  # [C_in*k*k]
        result.append(in_rows([dot(flat, window) + b for window in windows], width))
    return result


def depthwise_conv2d(x: Map, weight: list[Map], bias: Vector | None = None, stride: int = 1) -> Map:
    """Convolution in which each channel has its own kernel and sees no other channel.

    x [C][H][W], weight [C][1][k][k], bias [C] or None -> [C][ceil(H / stride)][ceil(W / stride)].
    """
    bias = bias or [0.0] * len(weight)
    return [
        conv2d([channel], [kernel], [b], stride)[0]
        for channel, kernel, b in zip(x, weight, bias, strict=True)
    ]


def batch_norm(
    x: Map, weight: Vector, bias: Vector, mean: Vector, variance: Vector, eps: float = 1e-5
) -> Map:
    """Each channel minus its running mean, over its standard deviation: [C][H][W] -> [C][H][W].

    This is evaluation mode: `mean` and `variance` [C] were collected in training, so the layer
    scales and shifts each channel.
    """
    result = []
    for channel, w, b, m, var in zip(x, weight, bias, mean, variance, strict=True):
        scale = w / math.sqrt(var + eps)
        shift = b - m * scale
        result.append([[v * scale + shift for v in row] for row in channel])
    return result


def layer_norm(x: Tokens, weight: Vector, bias: Vector, eps: float) -> Tokens:
    """Each token with mean 0 and variance 1 over its channels, scaled and shifted: [N][D]."""
    result = []
    for token in x:
        mean = sum(token) / len(token)
        centred = [v - mean for v in token]
        scale = 1 / math.sqrt(dot(centred, centred) / len(token) + eps)
        result.append([v * scale * w + b for v, w, b in zip(centred, weight, bias, strict=True)])
    return result


def softmax(x: Vector) -> Vector:
    """Positive numbers that sum to 1: [N] -> [N]. Subtracting the largest prevents overflow."""
    largest = max(x)
    powers = [math.exp(v - largest) for v in x]
    total = sum(powers)
    return [power / total for power in powers]


def gelu(x: float) -> float:
    """x Φ(x), with the exact normal distribution function Φ, not the tanh approximation."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def hardswish(x: float) -> float:
    """x * clip(x + 3, 0, 6) / 6: a piecewise approximation of swish."""
    if x <= -3:
        return 0.0
    return x if x >= 3 else x * (x + 3) / 6


def global_average(x: Map) -> Vector:
    """The mean of each channel: [C][H][W] -> [C]."""
    return [sum(map(sum, channel)) / (len(channel) * len(channel[0])) for channel in x]
