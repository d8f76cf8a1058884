"""The operations that the folded network is made of, on maps with the channels last: (B, H, W, C).

Each is written twice. The first form is a tensor expression, for any device. The second is for the
CPU device, where tinygrad's own schedule is slow to lower (it unrolls loops into thousands of scalar
operations) and slow to run (a fifth of a core's peak): the loop nest that one would write in C. A
tile of outputs stays in a small local array, and clang makes vector instructions of the innermost
loop, which runs over neighbouring channels. Lowering one takes milliseconds, and a product reaches
60 to 90 % of a core's peak. Where a size is no multiple of the tile's, the last tile overlaps the
one before it, so every shape works.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.dtype import AddrSpace
from tinygrad.uop.ops import AxisType, KernelInfo, UOp

ROWS = 4, 7  # tokens in a tile, and
COLUMNS = 40, 32  # channels: the first that divides; an inner loop below 32 would not become vectors
LANES = 8, 10, 6, 4, 2  # partial sums of a norm
Value = Any  # a Tensor or a UOp: the functions of values work on both
Index = UOp | int
ZERO = UOp.const(0.0, dtypes.float32)


# Functions of single values, which a kernel applies to its result before it is stored


def identity(x: Value) -> Value:
    return x


def add(x: Value, y: Value) -> Value:
    return x + y


def add_product(x: Value, y: Value, z: Value) -> Value:
    return x + y * z


def hardswish(x: Value) -> Value:
    return x * (x + 3).maximum(0).minimum(6) * (1 / 6)


def gelu(x: Value) -> Value:
    """x * Phi(x), as relu(x) - |x| * erfc(|x| / sqrt(2)) / 2, within 2e-7.

    erfc: Abramowitz and Stegun, 7.1.26, brought over one division; in this form nothing cancels.
    """
    magnitude = x.maximum(-x)
    s = 1 + 0.3275911 / math.sqrt(2) * magnitude
    series = 0.254829592 * s - 0.284496736
    for coefficient in (1.421413741, -1.453152027, 1.061405429):
        series = series * s + coefficient
    square = s * s
    return x.maximum(0) - 0.5 * magnitude * series * exp(x * x * -0.5) / (square * square * s)


def exp(x: Value) -> Value:
    """e ** x for x <= 0, here never below 2 ** -60. tinygrad's own has costly special cases."""
    if isinstance(x, Tensor):
        return x.exp()
    x = (x * (1 / math.log(2))).maximum(-60)
    whole = (x - 0.5).cast(dtypes.int32)  # the nearest, as the cast goes towards zero
    x = (x - whole.cast(dtypes.float32)) * math.log(2)  # within log(2) / 2 of zero
    series = x * (1 / 720) + 1 / 120
    for coefficient in (1 / 24, 1 / 6, 1 / 2, 1, 1):
        series = series * x + coefficient
    return series * ((whole + 127) * (1 << 23)).bitcast(dtypes.float32)


# The operations


def pad(x: Tensor, rim: int) -> Tensor:
    """(B, H, W, C) -> (B, H + 2 rim, W + 2 rim, C), zeros around."""
    return x.pad((None, (rim, rim), (rim, rim), None)).contiguous()


def dense(
    x: Tensor,
    weight: Tensor,
    *bias: Tensor,
    others: tuple[Tensor, ...] = (),
    epilogue: Callable[..., Value] = identity,
    stride: tuple[int, int] = (1, 1),
    channel: int = 0,
    dtype: DType | None = None,
) -> Tensor:
    """A convolution, or with a 1x1 window a matrix product: (B, H', W', D) -> (B, H, W, E).

    weight (kh, kw, K, E), or (B, 1, 1, K, E) for a matrix of each picture's own; x has its rim and
    at least K channels from `channel` on. The epilogue is applied to each sum and to what `others`
    (B, H, W, >= E) hold in its place.
    """
    kh, kw, depth, columns = map(int, weight.shape[-4:])
    height, width = (
        (int(size) - k) // step + 1 for size, k, step in zip(x.shape[1:3], (kh, kw), stride)
    )
    if has_loops(x):
        kernel = partial(
            dense_loops, others=len(others), epilogue=epilogue, stride=stride, channel=channel
        )
        shape = (x.shape[0], height, width, columns)
        return run_loops(kernel, shape, dtype or x.dtype, x, weight, *bias, *others)
    x = x[..., channel : channel + depth]
    if kh * kw == 1:
        total = x.matmul(weight.reshape(-1, 1, depth, columns), dtype=dtypes.float32)
    else:
        windows = [
            x[:, i : i + (height - 1) * stride[0] + 1 : stride[0], j : j + (width - 1) * stride[1] + 1 : stride[1]]
            for i in range(kh)
            for j in range(kw)
        ]
        windows = Tensor.cat(*windows, dim=3)  # (B, H, W, kh * kw * K)
        total = windows.matmul(weight.reshape(-1, columns), dtype=dtypes.float32)
    total = sum(bias, total)
    total = epilogue(total, *(other[..., :columns] for other in others))
    return total.cast(dtype or x.dtype).contiguous()


def depthwise(
    x: Tensor, weight: Tensor, *bias: Tensor, stride: int = 1, dtype: DType | None = None
) -> Tensor:
    """Each channel's own window: x (B, H', W', C), rim included; weight (k, k, C); bias (C)."""
    kernel = int(weight.shape[0])
    height, width = ((int(size) - kernel) // stride + 1 for size in x.shape[1:3])
    if has_loops(x):
        shape = (x.shape[0], height, width, x.shape[3])
        loops = partial(depthwise_loops, stride=stride)
        return run_loops(loops, shape, dtype or x.dtype, x, weight, *bias)
    kernels = weight.permute(2, 0, 1).unsqueeze(1)
    total = x.permute(0, 3, 1, 2).conv2d(
        kernels, *bias, groups=x.shape[3], stride=stride, dtype=dtypes.float32
    )
    return total.permute(0, 2, 3, 1).cast(dtype or x.dtype).contiguous()


def apply(function: Callable[[Value], Value], x: Tensor) -> Tensor:
    """The function of every value. Apart from `dense` where its constants need many registers."""
    if has_loops(x):
        return run_loops(partial(apply_loops, function=function), x.shape, x.dtype, x)
    return function(x.float()).cast(x.dtype).contiguous()


def layernorm(
    x: Tensor,
    *affine: Tensor,
    eps: float,
    epilogue: Callable[[Value], Value] = identity,
    dtype: DType | None = None,
) -> Tensor:
    """x (B, H, W, C), each token by its own mean and variance; times and plus `affine`, (C)."""
    if has_loops(x):
        kernel = partial(layernorm_loops, eps=eps, epilogue=epilogue)
        return run_loops(kernel, x.shape, dtype or x.dtype, x, *affine)
    value = x.float().layernorm(eps=eps)
    if affine:
        value = value * affine[0] + affine[1]
    return epilogue(value).cast(dtype or x.dtype).contiguous()


def softmax(x: Tensor, channel: int, channels: int) -> Tensor:
    """Over the tokens: x (B, N, D), some channels of it -> (B, N, channels)."""
    if has_loops(x):
        kernel = partial(softmax_loops, channel=channel)
        return run_loops(kernel, (*x.shape[:2], channels), x.dtype, x)
    x = x[..., channel : channel + channels]
    return x.float().softmax(1).cast(x.dtype).contiguous()


def outer(x: Tensor, y: Tensor, mask: Tensor, channel: int) -> Tensor:
    """mask * xᵀ y for each picture: x (B, N, C), y (B, N, D), C channels of it -> (B, C, C)."""
    batch, _, channels = x.shape
    if has_loops(x):
        kernel = partial(outer_loops, channel=channel)
        return run_loops(kernel, (batch, channels, channels), x.dtype, x, y, mask)
    y = y[..., channel : channel + channels]
    total = x.transpose(1, 2).matmul(y, dtype=dtypes.float32) * mask
    return total.cast(x.dtype).contiguous()


# The loop nests


def has_loops(x: Tensor) -> bool:
    """Whether the loop nests are the better form on this tensor's device."""
    return isinstance(x.device, str) and x.device.split(":")[0] == "CPU"


def run_loops(
    kernel: Callable[..., UOp], shape: tuple[Any, ...], dtype: DType, *inputs: Tensor
) -> Tensor:
    out = Tensor.invalids(*shape, dtype=dtype, device=inputs[0].device)
    return out.custom_kernel(*inputs, fxn=kernel)[0]


class Nest:
    """The loops of one kernel, numbered from the outermost, and its registers."""

    def __init__(self) -> None:
        self.axes, self.slots = count(), count()

    def loops(self, *sizes: int) -> list[UOp]:
        return [UOp.range(size, next(self.axes), AxisType.LOOP) for size in sizes]

    def registers(self, *shape: int) -> UOp:
        return UOp.placeholder(shape, dtypes.float32, next(self.slots), AddrSpace.REG)

    def fill(self, registers: UOp, value: Callable[..., Value]) -> UOp:
        """Sets every register to a function of its indices."""
        loops = self.loops(*registers.shape)
        return registers.after(registers[tuple(loops)].store(value(*loops)).end(*loops[::-1]))

    def accumulate(self, registers: UOp, outer: list[UOp], term: Callable[..., Value], op=add) -> UOp:
        """Adds to every register a function of its indices, for every turn of the outer loops."""
        loops = self.loops(*registers.shape)
        place = registers.after(*outer)[tuple(loops)]
        step = place.store(op(place.load(), term(*loops))).end(*loops[::-1], *outer[::-1])
        return registers.after(step)


def tile(size: int, choices: tuple[int, ...]) -> int:
    """The first of `choices` that divides `size`; else the first, or `size` where it is smaller."""
    return next((c for c in choices if size % c == 0), min(size, choices[0]))


def tiles(size: int, width: int) -> int:
    return -(-size // width)


def start(index: UOp, width: int, size: int) -> UOp:
    """Where a tile starts; the last one overlaps its neighbour where `width` does not divide."""
    return index * width if size % width == 0 else (index * width).minimum(size - width)


def load(buffer: UOp, *index: Index) -> UOp:
    return buffer[index].load().cast(dtypes.float32)


def finish(name: str, store: UOp, *loops: UOp) -> UOp:
    return store.end(*loops[::-1]).sink(arg=KernelInfo(name=name, opts_to_apply=()))


def dense_loops(out, x, weight, *rest, others, epilogue, stride, channel) -> UOp:
    batch, height, width, columns = out.shape
    kh, kw, depth, _ = weight.shape[-4:]
    bias, others = rest[: len(rest) - others], rest[len(rest) - others :]
    nest, m, c = Nest(), tile(width, ROWS), tile(columns, COLUMNS)
    around = b, h, row, column = nest.loops(batch, height, tiles(width, m), tiles(columns, c))
    w0, e0 = start(row, m, width), start(column, c, columns)
    picture = (b,) if len(weight.shape) == 5 else ()

    acc = nest.fill(
        nest.registers(m, c).after(*around), lambda i, j: load(bias[0], e0 + j) if bias else ZERO
    )
    window = ky, kx, k = nest.loops(kh, kw, depth)
    acc = nest.accumulate(
        acc,
        window,
        lambda i, j: load(x, b, h * stride[0] + ky, (w0 + i) * stride[1] + kx, channel + k)
        * load(weight, *picture, ky, kx, k, e0 + j),
    )
    i, j = nest.loops(m, c)
    here = (b, h, w0 + i, e0 + j)
    value = epilogue(acc[i, j].load(), *(load(other, *here) for other in others))
    store = out[here].store(value.cast(out.dtype))
    name = f"dense_{batch * height * width}_{kh * kw * depth}_{columns}_{epilogue.__name__}"
    return finish(name, store, *around, i, j)


def depthwise_loops(out, x, weight, *bias, stride) -> UOp:
    batch, height, width, channels = out.shape
    kernel = weight.shape[0]
    nest, m, c = Nest(), tile(width, ROWS), tile(channels, COLUMNS)
    around = b, h, column, row = nest.loops(batch, height, tiles(channels, c), tiles(width, m))
    w0, c0 = start(row, m, width), start(column, c, channels)
    acc = nest.registers(m, c).after(*around)
    acc = nest.fill(acc, lambda i, j: load(bias[0], c0 + j) if bias else ZERO)
    window = ky, kx = nest.loops(kernel, kernel)
    acc = nest.accumulate(
        acc,
        window,
        lambda i, j: load(x, b, h * stride + ky, (w0 + i) * stride + kx, c0 + j)
        * load(weight, ky, kx, c0 + j),
    )
    i, j = nest.loops(m, c)
    store = out[b, h, w0 + i, c0 + j].store(acc[i, j].load().cast(out.dtype))
    return finish(f"depthwise_{batch * height * width}_{kernel}_{channels}", store, *around, i, j)


def apply_loops(out, x, *, function) -> UOp:
    nest, shape = Nest(), (math.prod(x.shape[:-1]), x.shape[-1])
    place = nest.loops(*shape)
    value = function(load(x.reshape(shape), *place))
    store = out.reshape(shape)[tuple(place)].store(value.cast(out.dtype))
    return finish(f"{function.__name__}_{math.prod(shape)}", store, *place)


def layernorm_loops(out, x, *affine, eps, epilogue) -> UOp:
    batch, height, width, channels = x.shape
    nest, lanes = Nest(), tile(channels, LANES)
    around = b, h, w = nest.loops(batch, height, width)

    def mean(of: Callable[[UOp], UOp]) -> UOp:
        sums = nest.fill(nest.registers(lanes).after(*around), lambda lane: ZERO)
        (k,) = nest.loops(channels // lanes)
        sums = nest.accumulate(sums, [k], lambda lane: of(load(x, b, h, w, k * lanes + lane)))
        return sum(sums[lane].load() for lane in range(lanes)) * (1 / channels)

    centre = mean(identity)
    scale = (mean(lambda value: (value - centre) * (value - centre)) + eps).sqrt().reciprocal()
    (c,) = nest.loops(channels)
    value = (load(x, b, h, w, c) - centre) * scale
    if affine:
        value = value * load(affine[0], c) + load(affine[1], c)
    store = out[b, h, w, c].store(epilogue(value).cast(out.dtype))
    return finish(f"layernorm_{batch * height * width}_{channels}", store, *around, c)


def softmax_loops(out, x, *, channel) -> UOp:
    batch, n, channels = out.shape
    nest, c = Nest(), tile(channels, COLUMNS)
    around = b, column = nest.loops(batch, tiles(channels, c))
    c0 = start(column, c, channels)
    low = UOp.const(-math.inf, dtypes.float32)
    top = nest.fill(nest.registers(c).after(*around), lambda j: low)
    token = nest.loops(n)
    top = nest.accumulate(top, token, lambda j: load(x, b, token[0], channel + c0 + j), UOp.maximum)
    total = nest.fill(nest.registers(c).after(*around), lambda j: ZERO)
    again = nest.loops(n)
    power = lambda t, j: exp(load(x, b, t, channel + c0 + j) - top[j].load())
    total = nest.accumulate(total, again, lambda j: power(again[0], j))
    t, j = nest.loops(n, c)
    store = out[b, t, c0 + j].store((power(t, j) / total[j].load()).cast(out.dtype))
    return finish(f"softmax_{batch * n}_{channels}", store, *around, t, j)


def outer_loops(out, x, y, mask, *, channel) -> UOp:
    batch, n, channels = x.shape
    nest, m, c = Nest(), tile(channels, ROWS), tile(channels, COLUMNS)
    around = b, row, column = nest.loops(batch, tiles(channels, m), tiles(channels, c))
    i0, j0 = start(row, m, channels), start(column, c, channels)
    acc = nest.fill(nest.registers(m, c).after(*around), lambda i, j: ZERO)
    (t,) = token = nest.loops(n)
    acc = nest.accumulate(
        acc, token, lambda i, j: load(x, b, t, i0 + i) * load(y, b, t, channel + j0 + j)
    )
    i, j = nest.loops(m, c)
    value = acc[i, j].load() * load(mask, i0 + i, j0 + j)
    store = out[b, i0 + i, j0 + j].store(value.cast(out.dtype))
    return finish(f"outer_{batch * n}_{channels}", store, *around, i, j)
