"""The operations of the folded network, on maps with the channels last: (B, H, W, C).

Each is written twice. The first form is a tensor expression, for any device. The second is for the
CPU device, where tinygrad's own schedule is slow to lower (it unrolls loops into thousands of
scalar operations) and slow to run (a fifth of a core's peak): the loop nest that one would write in
C. A tile of outputs stays in a small local array, and clang vectorizes the innermost loop, which
runs over neighboring channels. A product reaches 60 to 95 % of a core's peak. If a size is not a
multiple of the tile's, the last tile overlaps the one before it, so every shape works.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.loops import pairs, panels
from tinygmf.loops.calls import run, run_loops
from tinygmf.loops.nest import Nest, flat, load, seen_as, store, tile, value_of
from tinygmf.loops.padding import pad
from tinygmf.loops.pieces import start
from tinygmf.loops.tiles import PRODUCT, WINDOWS, best_tile
from tinygmf.loops.values import ZERO, Value, exp, identity
from tinygmf.tensors import on_cpu

LANES = 8, 10, 6, 4, 2  # partial sums of a norm
SOFTMAX = 32  # channels at a time
WIDENED = 1 << 20  # numbers at most, 4 MB: a map of so many stays in caches as float32, too


# The operations, as tensor expressions


def dense(
    x: Tensor,
    weight: Tensor,
    *bias: Tensor,
    others: tuple[Tensor, ...] = (),
    epilogue: Callable[..., Value] = identity,
    stride: tuple[int, int] = (1, 1),
    channel: int = 0,
    blocks: int = 1,
    columns: int | None = None,
    dtype: DType | None = None,
) -> Tensor:
    """A convolution, or with a 1x1 window a matrix product: (B, H', W', D) -> (B, H, W, E).

    weight (kh, kw, K, E), or (B, 1, 1, K, E) for one matrix per picture; x includes its rim and has
    at least K channels from `channel` on. The epilogue is applied to each sum and to the values of
    `others` (B, H, W, >= E) at its position. The weight is zero outside its `blocks` on the
    diagonal; on the CPU, where only the blocks are read, it may hold anything there. There a weight
    may also be one of `pairs`, for x of bfloat16, or in `panels`, with `columns` E unless there is
    a bias.
    """
    kh, kw, depth, width = map(int, weight.shape[-4:])
    columns = columns or int(bias[0].shape[0] if bias else width)
    depth *= 2 if pairs.is_packed(weight) else 1
    height = (int(x.shape[1]) - kh) // stride[0] + 1
    width = (int(x.shape[2]) - kw) // stride[1] + 1
    dtype = dtype or x.dtype
    if on_cpu(x.device):
        kernel = partial(
            dense_loops,
            others=len(others),
            epilogue=epilogue,
            stride=stride,
            channel=channel,
            blocks=blocks,
        )
        shape = (x.shape[0], height, width, columns)
        return run_loops(kernel, shape, dtype, x, weight, *bias, *others)
    rows = unfold(x[..., channel : channel + depth], (kh, kw), stride)  # (B, H, W, kh * kw * K)
    matrix = weight.reshape(-1, 1, kh * kw * depth, columns)  # (B or 1, 1, kh * kw * K, E)
    total = sum(bias, rows.matmul(matrix, dtype=dtypes.float32))
    total = epilogue(total, *(other[..., :columns] for other in others))
    return total.cast(dtype).contiguous()


def unfold(x: Tensor, size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """x (B, H', W', K) -> (B, H, W, kh * kw * K), the values of each window side by side."""
    bottom, right = ((int(x.shape[i + 1]) - size[i]) // stride[i] * stride[i] + 1 for i in range(2))
    places = ((i, j) for i in range(size[0]) for j in range(size[1]))
    parts = [x[:, i : i + bottom : stride[0], j : j + right : stride[1]] for i, j in places]
    return Tensor.cat(*parts, dim=3) if len(parts) > 1 else parts[0]


class Run(NamedTuple):
    """Neighboring channels whose depthwise kernels have this size, within a rim of zeros."""

    size: int
    first: int
    channels: int


def depthwise(
    x: Tensor,
    weight: Tensor,
    *bias: Tensor,
    stride: int = 1,
    channel: int = 0,
    runs: tuple[Run, ...] = (),
    parts: int = 1,
    dtype: DType | None = None,
) -> Tensor:
    """A depthwise convolution of the channels of x (B, H, W, …) from `channel` on, with zeros
    around: weight (k, k, C), bias (C).

    On the CPU `runs` let it skip the kernels' zeros: they cover the first of `parts` equal parts of
    the channels, and the other parts are alike.
    """
    kernel, cpu, dtype = int(weight.shape[0]), on_cpu(x.device), dtype or x.dtype
    # On the CPU every tap would widen a value of half precision anew.
    wide = cpu and x.numel() // x.shape[3] * weight.shape[2] <= WIDENED
    x = pad(x, kernel // 2, channel, dtypes.float32 if wide else dtype)
    batch, *size, channels = x.shape
    if cpu:
        height, width = ((int(side) - kernel) // stride + 1 for side in size)
        out = Tensor.invalids(batch, height, width, channels, dtype=dtype, device=x.device)
        if not runs:
            runs, parts = (Run(kernel, 0, int(channels)),), 1
        for each in runs:
            loops = partial(depthwise_loops, stride=stride, run=each, parts=parts)
            out = run(loops, out, x, weight, *bias)
        return out
    kernels = weight.permute(2, 0, 1).unsqueeze(1)  # (C, 1, k, k)
    channels_first = x.permute(0, 3, 1, 2).float()
    total = channels_first.conv2d(kernels, *bias, groups=channels, stride=stride)
    return total.permute(0, 2, 3, 1).cast(dtype).contiguous()


def apply(function: Callable[[Value], Value], x: Tensor) -> Tensor:
    """Apply a function to every value; separate from `dense` if it needs many registers itself."""
    if on_cpu(x.device):
        return run_loops(partial(apply_loops, function=function), x.shape, x.dtype, x)
    return function(x.float()).cast(x.dtype).contiguous()


def layernorm(
    x: Tensor,
    *affine: Tensor,
    eps: float,
    epilogue: Callable[[Value], Value] = identity,
    dtype: DType | None = None,
) -> Tensor:
    """x (B, H, W, C), each token by its own mean and variance; `affine`: scale and shift, (C)."""
    dtype = dtype or x.dtype
    if on_cpu(x.device):
        kernel = partial(layernorm_loops, eps=eps, epilogue=epilogue)
        return run_loops(kernel, x.shape, dtype, x, *affine)
    value = x.float().layernorm(eps=eps)
    value = value * affine[0] + affine[1] if affine else value
    return epilogue(value).cast(dtype).contiguous()


def softmax(x: Tensor, channel: int, channels: int) -> Tensor:
    """Over the tokens: x (B, N, D), `channels` of it from `channel` on -> (B, N, channels)."""
    if on_cpu(x.device):
        shape = (*x.shape[:2], channels)
        return run_loops(partial(softmax_loops, channel=channel), shape, x.dtype, x)
    x = x[..., channel : channel + channels]
    return x.float().softmax(1).cast(x.dtype).contiguous()


def outer(x: Tensor, y: Tensor, mask: Tensor, channel: int, blocks: int = 1) -> Tensor:
    """mask * xᵀ y for each picture: x (B, N, C), y (B, N, D), C channels of it -> (B, C, C).

    On the CPU only the `blocks` on the diagonal are written; outside them the mask is zero.
    """
    batch, _, channels = x.shape
    if on_cpu(x.device):
        kernel = partial(outer_loops, channel=channel, blocks=blocks)
        return run_loops(kernel, (batch, channels, channels), x.dtype, x, y, mask)
    y = y[..., channel : channel + channels]
    total = x.transpose(1, 2).matmul(y, dtype=dtypes.float32) * mask
    return total.cast(x.dtype).contiguous()


# The same operations, as loop nests for the CPU


def dense_loops(
    out: UOp,
    x: UOp,
    weight: UOp,
    *rest: UOp,
    others: int,
    epilogue: Callable[..., UOp],
    stride: tuple[int, int],
    channel: int,
    blocks: int,
) -> UOp:
    kh, kw, depth, c = weight.shape[-4:]
    cut, packed = panels.are_in(weight), pairs.is_packed(weight)
    depth *= 2 if packed else 1
    bias, extra = rest[: len(rest) - others], list(rest[len(rest) - others :])
    if cut and (kh, kw, *stride) == (1, 1, 1, 1):
        out, x, *extra = map(as_one_row, (out, x, *extra))
    batch, height, width, columns = out.shape
    wide, deep = columns // blocks, depth // blocks  # of one block
    only = c if cut else None
    m, c = (
        pairs.tile(width, wide, only) if packed else best_tile(PRODUCT, width, wide, width=only)[:2]
    )
    nest, sizes = Nest(), (batch, height, -(-width // m), blocks, -(-wide // c))
    order = panels.loops(nest, sizes, kh * kw * deep * wide, cut)
    around, (b, h, t, s, part) = order.around, order.place
    w0, e0 = start(t, m, width), s * wide + start(part, c, wide)
    picture = (b if weight.shape[0] > 1 else 0,) if len(weight.shape) == 5 else ()

    def token(ky: UOp, kx: UOp, k: UOp, i: UOp) -> UOp:
        return x[b, h * stride[0] + ky, (w0 + i) * stride[1] + kx, channel + s * deep + k]

    def row(ky: UOp, kx: UOp, k: UOp, j: UOp) -> UOp:
        k = (s * deep + k) // (2 if packed else 1)
        return weight[0, part, ky, kx, k, j] if cut else weight[*picture, ky, kx, k, e0 + j]

    def shift(i: UOp, j: UOp) -> UOp:
        return load(bias[0], (e0 + j).minimum(columns - 1)) if bias else ZERO

    window, apart = (kh, kw, deep), (stride[1] * x.shape[3], weight.shape[-1])
    summed = m, max(c, only or 0)  # more channels than there are, if a panel has zeros beside them
    if packed:
        acc = pairs.sums(nest, around, window, summed, token, row, apart)
    else:
        acc = nest.fill(around, summed, shift)
        over = ky, kx, k = nest.loops(*window)
        at = (ky * kw + kx) * deep + k
        once = cut and weight.shape[1] > 1 and batch * height == 1  # each row would fetch again
        acc = nest.accumulate(
            acc,
            over,
            lambda i, j: value_of(token(ky, kx, k, i)) * value_of(row(ky, kx, k, j)),
            then=partial(panels.fetch_next, weight, part, order, at) if once else identity,
        )
    i, j = nest.loops(m, c)
    here = (b, h, w0 + i, e0 + j)
    total = acc[i, j].load() + shift(i, j) if packed else acc[i, j].load()
    value = epilogue(total, *(load(other, *here) for other in extra))
    name = f"dense_{batch * height * width}_{kh * kw * deep}_{columns}_{epilogue.__name__}"
    return store(name, out, here, value, *around, i, j)


def as_one_row(x: UOp) -> UOp:
    """(B, H, W, C) -> (1, 1, B H W, C), the same for a 1x1 window with stride 1."""
    return seen_as(x, (1, 1, math.prod(x.shape[:3]), x.shape[3]))


def depthwise_loops(
    out: UOp, x: UOp, weight: UOp, *bias: UOp, stride: int, run: Run, parts: int
) -> UOp:
    batch, height, width, channels = out.shape
    rim = (weight.shape[0] - run.size) // 2
    nest, (m, c, _) = Nest(), best_tile(WINDOWS, width, run.channels)
    around = nest.loops(batch, height, parts, -(-run.channels // c), -(-width // m))
    b, h, part, w0 = *around[:3], start(around[4], m, width)
    c0 = part * (channels // parts) + run.first + start(around[3], c, run.channels)

    acc = nest.fill(around, (m, c), lambda i, j: load(bias[0], c0 + j) if bias else ZERO)
    window = ky, kx = nest.loops(run.size, run.size)
    acc = nest.accumulate(
        acc,
        window,
        lambda i, j: (
            load(x, b, h * stride + rim + ky, (w0 + i) * stride + rim + kx, c0 + j)
            * load(weight, rim + ky, rim + kx, c0 + j)
        ),
    )
    i, j = nest.loops(m, c)
    name = f"depthwise_{batch * height * width}_{run.size}_{parts * run.channels}"
    return store(name, out, (b, h, w0 + i, c0 + j), acc[i, j].load(), *around, i, j)


def apply_loops(out: UOp, x: UOp, *, function: Callable[[UOp], UOp]) -> UOp:
    out, x = flat(out), flat(x)
    place = Nest().loops(*out.shape)
    name = f"{function.__name__}_{math.prod(out.shape)}"
    return store(name, out, tuple(place), function(load(x, *place)), *place)


def layernorm_loops(
    out: UOp, x: UOp, *affine: UOp, eps: float, epilogue: Callable[[UOp], UOp]
) -> UOp:
    channels, nest, lanes = x.shape[3], Nest(), tile(x.shape[3], LANES)
    around = nest.loops(*x.shape[:3])

    def mean(of: Callable[[UOp], UOp]) -> UOp:
        return nest.mean(around, channels, lanes, lambda k: of(load(x, *around, k)))

    centre = mean(identity)
    scale = (mean(lambda value: (value - centre) * (value - centre)) + eps).sqrt().reciprocal()
    (c,) = nest.loops(channels)
    value = (load(x, *around, c) - centre) * scale
    value = value * load(affine[0], c) + load(affine[1], c) if affine else value
    name = f"layernorm_{math.prod(x.shape)}_{channels}"
    return store(name, out, (*around, c), epilogue(value), *around, c)


def softmax_loops(out: UOp, x: UOp, *, channel: int) -> UOp:
    batch, n, channels = out.shape
    nest, c = Nest(), min(channels, SOFTMAX)
    around = nest.loops(batch, -(-channels // c))
    b, c0 = around[0], start(around[1], c, channels)

    top = nest.fill(around, (c,), lambda j: UOp.const(-math.inf, dtypes.float32))
    (t,) = over = nest.loops(n)
    token = partial(load, x, b)
    top = nest.accumulate(top, over, lambda j: token(t, channel + c0 + j), UOp.maximum)

    def power(t: UOp, j: UOp) -> UOp:
        return exp(token(t, channel + c0 + j) - top[j].load())

    total = nest.fill(around, (c,), lambda j: ZERO)
    (t2,) = over = nest.loops(n)
    total = nest.accumulate(total, over, lambda j: power(t2, j))
    t3, j = nest.loops(n, c)
    value = power(t3, j) / total[j].load()
    return store(f"softmax_{batch * n}_{channels}", out, (b, t3, c0 + j), value, *around, t3, j)


def outer_loops(out: UOp, x: UOp, y: UOp, mask: UOp, *, channel: int, blocks: int) -> UOp:
    batch, n, channels = x.shape
    wide = channels // blocks  # of one block
    nest, (m, c, _) = Nest(), best_tile(PRODUCT, wide, wide)
    around = nest.loops(batch, blocks, -(-wide // m), -(-wide // c))
    b, first = around[0], around[1] * wide
    i0, j0 = first + start(around[2], m, wide), first + start(around[3], c, wide)

    acc = nest.fill(around, (m, c), lambda i, j: ZERO)
    (t,) = over = nest.loops(n)
    acc = nest.accumulate(
        acc, over, lambda i, j: load(x, b, t, i0 + i) * load(y, b, t, channel + j0 + j)
    )
    i, j = nest.loops(m, c)
    value = acc[i, j].load() * load(mask, i0 + i, j0 + j)
    return store(f"outer_{batch * n}_{wide}", out, (b, i0 + i, j0 + j), value, *around, i, j)
