"""Loop nests for training on the CPU: what `tinygmf.kernels` lacks, backward above all.

Maps have their channels last, (B, H, W, C). Nothing is padded: a place outside the map counts as
zero. Many kernels read or write some channels of a wider map alone, from `channel` or `to` on. Each
function builds one kernel: first come the buffers it writes, then those it reads. What a weight
learns is added to the gradient that is there, times `share[0]` (see `step.GradientProgram`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import KernelInfo, UOp

from tinygmf.kernels import ZERO, Nest, erfc_series, exp, hardswish, identity, load

ROWS, COLUMNS = 8, 40  # the largest tile of outputs: tokens and channels


def divisor(size: int, most: int) -> int:
    """The largest divisor of `size` that is not above `most`."""
    return next(n for n in range(min(size, most), 0, -1) if size % n == 0)


def kernel(name: str, stored: UOp) -> UOp:
    """The kernel that makes these stores, its loops as they are written."""
    return UOp.sink(stored, arg=KernelInfo(name=name, opts_to_apply=()))


def put(out: UOp, index: tuple[UOp | int, ...], value: UOp, adding: bool = False) -> UOp:
    """Stores a value, or adds it to what is there."""
    value = load(out, *index) + value if adding else value
    return out[index].store(value.cast(out.dtype))


def learn(out: UOp, index: tuple[UOp, ...], value: UOp, share: UOp) -> UOp:
    """Adds to a weight's gradient."""
    return put(out, index, value * load(share, 0), adding=True)


def flat(x: UOp) -> UOp:
    """(…, C) -> (rows, C)."""
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def name_of(what: str, *buffers: UOp, numbers: tuple[int, ...] = ()) -> str:
    """A kernel's name; it holds what tells two kernels of a kind apart at a glance."""
    shapes = ["x".join(map(str, buffer.shape)) for buffer in buffers]
    return "_".join([what, *shapes, *map(str, numbers)])


@dataclass(frozen=True)
class Window:
    """How one axis of a convolution maps places of its output to places of its input, or with
    `back` the other way round, as its gradient does.

    With `back` and a stride, an output's place is seen by few taps, which are the same for every
    stride-th place: these `phases` are loops of their own, and the taps that miss are left out.
    """

    kernel: int
    stride: int
    back: bool
    size: int  # of what is read
    out: int  # of what is written

    @property
    def phases(self) -> int:
        return self.stride if self.back and self.out % self.stride == 0 else 1

    @property
    def taps(self) -> int:
        return -(-self.kernel // self.phases)

    def tap(self, phase: UOp, number: UOp) -> UOp:
        if self.phases == 1:
            return number
        return ((phase + self.kernel // 2) % self.phases + self.phases * number).minimum(
            self.kernel - 1
        )

    def read(self, place: UOp, phase: UOp, number: UOp) -> tuple[UOp, UOp]:
        """The place that a tap reads, and whether it is one."""
        rim, tap = self.kernel // 2, self.tap(phase, number)
        if not self.back:
            at = place * self.stride + tap - rim
            return at.maximum(0).minimum(self.size - 1), (at >= 0) & (at < self.size)
        at = place + rim - tap
        inside = (at >= 0) & (at < self.size * self.stride)
        if self.stride > 1:
            inside = inside & (at % self.stride).eq(0)
            at = at.maximum(0) // self.stride
        if self.phases > 1:
            inside = inside & ((phase + rim) % self.phases + self.phases * number < self.kernel)
        return at.maximum(0).minimum(self.size - 1), inside


class Grid:
    """The loops of a convolution over tiles of its outputs, and what one of them reads of x.

    around: picture, row and column (each with its phase), part, and tile of channels; a tile is
    `tokens` along a row by `columns`.
    """

    def __init__(
        self,
        nest: Nest,
        out: UOp,
        x: UOp,
        kernel: tuple[int, int],
        parts: int,
        channels: int,
        stride: int,
        back: bool,
    ) -> None:
        batch, height, width, _ = out.shape
        self.x = x
        self.down = Window(kernel[0], stride, back, x.shape[1], height)
        self.across = Window(kernel[1], stride, back, x.shape[2], width)
        py, px = self.down.phases, self.across.phases
        self.tokens, self.columns = divisor(width // px, ROWS), divisor(channels, COLUMNS)
        tiles = width // px // self.tokens, px, parts, channels // self.columns
        self.around = nest.loops(batch, height // py, py, *tiles)
        self.b, y0, self.phase_y, self.x0, self.phase_x, self.part, c0 = self.around
        self.row, self.channel = y0 * py + self.phase_y, c0 * self.columns

    def column(self, i: UOp) -> UOp:
        """Of token i in the tile."""
        return (self.x0 * self.tokens + i) * self.across.phases + self.phase_x

    def tap(self, ky: UOp, kx: UOp) -> tuple[UOp, UOp]:
        return self.down.tap(self.phase_y, ky), self.across.tap(self.phase_x, kx)

    def read(self, ky: UOp, kx: UOp, i: UOp, channel: UOp) -> UOp:
        """What a tap of token i reads."""
        down = self.down.read(self.row, self.phase_y, ky)
        across = self.across.read(self.column(i), self.phase_x, kx)
        return load_inside(self.x, self.b, down, across, channel)


def load_inside(
    x: UOp, b: UOp, down: tuple[UOp, UOp], across: tuple[UOp, UOp], channel: UOp
) -> UOp:
    """A value of a map, or zero: row and column come with whether they are inside."""
    (y, inside_y), (z, inside_z) = down, across
    return (inside_y & inside_z).where(load(x, b, y, z, channel), ZERO)


def total(
    nest: Nest, around: list[UOp], turns: int, width: int, of: Callable[[UOp, UOp], UOp]
) -> UOp:
    """`width` sums of a function of the turn and the number of the sum."""
    sums = nest.fill(around, (width,), lambda j: ZERO)
    (turn,) = over = nest.loops(turns)
    return nest.accumulate(sums, over, lambda j: of(turn, j))


# Convolutions and products


def dense(
    out: UOp,
    x: UOp,
    weight: UOp,
    *rest: UOp,
    bias: bool = False,
    times: bool = False,
    plus: bool = False,
    back: bool = False,
    stride: int = 1,
    parts: int = 1,
    channel: int = 0,
    to: int = 0,
    adding: bool = False,
) -> UOp:
    """out (B, H, W, …) = x convolved with weight (k, k, K, E) [+ bias] [+ x times] [+ plus].

    A weight (B, 1, 1, K, E) is each picture's own; (S, K, E) means S products side by side, of K
    channels each. `parts` maps lie side by side and share the weight. With `back` it is the
    gradient for the input: x is that of the result, and the weight's last two axes are swapped.
    """
    rest_of = iter(rest)
    biases = next(rest_of) if bias else None
    factors = next(rest_of) if times else None
    others = next(rest_of) if plus else None
    pointwise = len(weight.shape) == 3 or (weight.shape[-4:-2] == (1, 1) and stride == 1)
    if pointwise:
        out, x = (rows(t, weight, parts) for t in (out, x))
        factors, others = (t if t is None else rows(t, weight, parts) for t in (factors, others))
    groups = weight.shape[0] if len(weight.shape) == 3 else 1
    size = (1, 1) if pointwise else weight.shape[-4:-2]
    depth, columns = weight.shape[-2:]
    nest = Nest()
    grid = Grid(nest, out, x, size, groups, columns, stride, back)
    b, s, tile = grid.b, grid.part, (grid.tokens, grid.columns)

    def weigh(ky: UOp, kx: UOp, k: UOp, e: UOp) -> UOp:
        if len(weight.shape) == 3:
            return load(weight, s, k, e)
        return load(weight, *((b,) if len(weight.shape) == 5 else ()), ky, kx, k, e)

    def term(i: UOp, j: UOp) -> UOp:
        ky, kx, k = over
        e, place = grid.channel + j, channel + s * depth + k
        if pointwise:
            return load(x, b, grid.row, grid.column(i), place) * weigh(ky, kx, k, e)
        return grid.read(ky, kx, i, place) * weigh(*grid.tap(ky, kx), k, e)

    acc = nest.fill(
        grid.around, tile, lambda i, j: ZERO if biases is None else load(biases, grid.channel + j)
    )
    over = nest.loops(grid.down.taps, grid.across.taps, depth)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(*tile)
    place, e = (b, grid.row, grid.column(i)), s * columns + grid.channel + j
    value = acc[i, j].load()
    if factors is not None:
        value = value + load(x, *place, channel + e) * load(factors, *place, e)
    if others is not None:
        value = value + load(others, *place, e)
    name = name_of("dense", out, weight, numbers=(stride, back, channel, to))
    return kernel(name, put(out, (*place, to + e), value, adding).end(*grid.around, i, j))


def rows(x: UOp, weight: UOp, parts: int) -> UOp:
    """(B, H, W, parts * C) as rows of C channels, for a product: (1, 1, rows, C), or (B, 1, rows,
    C) where each picture has a weight of its own."""
    batch = x.shape[0] if len(weight.shape) == 5 else 1
    channels = x.shape[3] // parts
    return x.reshape((batch, 1, math.prod(x.shape) // batch // channels, channels))


def dense_weight(
    out: UOp,
    x: UOp,
    g: UOp,
    share: UOp,
    *,
    stride: int = 1,
    parts: int = 1,
    channel: int = 0,
    at: int = 0,
) -> UOp:
    """out (k, k, K, E) or (S, K, E) += the gradient of `dense` for its weight."""
    pointwise = len(out.shape) == 3 or (out.shape[:2] == (1, 1) and stride == 1)
    if pointwise:
        x, g = rows(x, out, parts), rows(g, out, parts)
    batch, height, width, _ = g.shape
    groups = out.shape[0] if len(out.shape) == 3 else 1
    kh, kw = (1, 1) if pointwise else out.shape[:2]
    depth, columns = out.shape[-2:]
    down = Window(kh, stride, False, x.shape[1], height)
    across = Window(kw, stride, False, x.shape[2], width)
    nest, m, c = Nest(), divisor(depth, ROWS), divisor(columns, COLUMNS)
    around = ky, kx, s, k0, e0 = nest.loops(kh, kw, groups, depth // m, columns // c)

    def term(i: UOp, j: UOp) -> UOp:
        b, h, w = over
        c_in, c_out = channel + s * depth + k0 * m + i, at + s * columns + e0 * c + j
        if pointwise:
            return load(x, b, h, w, c_in) * load(g, b, h, w, c_out)
        rows_in, columns_in = down.read(h, h, ky), across.read(w, w, kx)
        return load_inside(x, b, rows_in, columns_in, c_in) * load(g, b, h, w, c_out)

    acc = nest.fill(around, (m, c), lambda i, j: ZERO)
    over = nest.loops(batch, height, width)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(m, c)
    matrix = (s,) if len(out.shape) == 3 else (ky, kx)
    place = (*matrix, k0 * m + i, e0 * c + j)
    stored = learn(out, place, acc[i, j].load(), share).end(*around, i, j)
    return kernel(name_of("dense_weight", out, g, numbers=(stride, channel, at)), stored)


def column_sum(out: UOp, g: UOp, share: UOp) -> UOp:
    """out (C,) += the sum of g (…, C) over all its places."""
    g = flat(g)
    nest, c = Nest(), divisor(out.shape[0], COLUMNS)
    around = (c0,) = nest.loops(out.shape[0] // c)
    acc = total(nest, around, g.shape[0], c, lambda r, j: load(g, r, c0 * c + j))
    (j,) = nest.loops(c)
    stored = learn(out, (c0 * c + j,), acc[j].load(), share).end(*around, j)
    return kernel(name_of("column_sum", out, g), stored)


def transpose(out: UOp, x: UOp) -> UOp:
    """Swaps the last two axes."""
    *place, i, j = loops = Nest().loops(*out.shape)
    stored = put(out, tuple(loops), load(x, *place, j, i)).end(*loops)
    return kernel(name_of("transpose", out), stored)


def depthwise(
    out: UOp,
    x: UOp,
    weight: UOp,
    *rest: UOp,
    parts: int = 1,
    bias: bool = False,
    plus: bool = False,
    back: bool = False,
    stride: int = 1,
    first: int = 0,
    channel: int = 0,
    to: int = 0,
    adding: bool = False,
) -> UOp:
    """out = x convolved with weight (k, k, C), or (k, k, S, C), channel by channel, [+ bias, from
    number `first` on] [+ plus].

    Both maps consist of `parts` S maps side by side, (B, H, W, S * …), which share the weight
    unless it has one for each. With `back` the gradient of that for its input.
    """
    size, columns = weight.shape[0], weight.shape[-1]
    out_wide, x_wide = out.shape[3] // parts, x.shape[3] // parts
    rest_of = iter(rest)
    biases = next(rest_of) if bias else None
    others = next(rest_of) if plus else None
    nest = Nest()
    grid = Grid(nest, out, x, (size, size), parts, columns, stride, back)
    s, c0, tile = grid.part, grid.channel, (grid.tokens, grid.columns)
    own = (s,) if len(weight.shape) == 4 else ()

    def term(i: UOp, j: UOp) -> UOp:
        ky, kx = over
        value = grid.read(ky, kx, i, s * x_wide + channel + c0 + j)
        return value * load(weight, *grid.tap(ky, kx), *own, c0 + j)

    acc = nest.fill(
        grid.around, tile, lambda i, j: ZERO if biases is None else load(biases, first + c0 + j)
    )
    over = nest.loops(grid.down.taps, grid.across.taps)
    acc = nest.accumulate(acc, over, term)
    i, j = nest.loops(*tile)
    value, place = acc[i, j].load(), (grid.b, grid.row, grid.column(i))
    if others is not None:
        value = value + load(others, *place, c0 + j)
    here = (*place, s * out_wide + to + c0 + j)
    name = name_of("depthwise", out, weight, numbers=(stride, back, channel, to))
    return kernel(name, put(out, here, value, adding).end(*grid.around, i, j))


def depthwise_weight(
    out: UOp,
    x: UOp,
    g: UOp,
    share: UOp,
    *,
    parts: int = 1,
    stride: int = 1,
    channel: int = 0,
    at: int = 0,
) -> UOp:
    """out (k, k, C) or (k, k, S, C) += the gradient of `depthwise` for its weight."""
    batch, height, width, _ = g.shape
    size, columns, own = out.shape[0], out.shape[-1], len(out.shape) == 4
    x_wide, g_wide = x.shape[3] // parts, g.shape[3] // parts
    down = Window(size, stride, False, x.shape[1], height)
    across = Window(size, stride, False, x.shape[2], width)
    nest, c = Nest(), divisor(columns, COLUMNS)
    around = ky, s1, c0 = nest.loops(size, parts if own else 1, columns // c)

    def term(kx: UOp, j: UOp) -> UOp:
        b, h, w, s2 = over
        s = s1 if own else s2
        rows_in, columns_in = down.read(h, h, ky), across.read(w, w, kx)
        value = load_inside(x, b, rows_in, columns_in, s * x_wide + channel + c0 * c + j)
        return value * load(g, b, h, w, s * g_wide + at + c0 * c + j)

    acc = nest.fill(around, (size, c), lambda i, j: ZERO)
    over = nest.loops(batch, height, width, 1 if own else parts)
    acc = nest.accumulate(acc, over, term)
    kx, j = nest.loops(size, c)
    here = (ky, kx, s1, c0 * c + j) if own else (ky, kx, c0 * c + j)
    stored = learn(out, here, acc[kx, j].load(), share).end(*around, kx, j)
    return kernel(name_of("depthwise_weight", out, g, numbers=(stride,)), stored)


def copy(out: UOp, x: UOp, *, channels: int, parts: int, to: int = 0) -> UOp:
    """The first channels of each of the `parts` of x, to those of out from `to` on."""
    out, x = flat(out), flat(x)
    wide, x_wide = out.shape[1] // parts, x.shape[1] // parts
    r, s, j = loops = Nest().loops(out.shape[0], parts, channels)
    stored = put(out, (r, s * wide + to + j), load(x, r, s * x_wide + j)).end(*loops)
    return kernel(name_of("copy", out, x), stored)


# Norms and activations


def hardswish_slope(x: UOp) -> UOp:
    middle = x * (1 / 3) + 0.5
    return (x < -3).where(ZERO, (x > 3).where(UOp.const(1.0, dtypes.float32), middle))


def gelu_slope(x: UOp) -> UOp:
    """Phi(x) + x * phi(x)."""
    series, s = erfc_series(x.maximum(-x))
    bell, square = exp(x * x * -0.5), s * s
    tail = 0.5 * series * bell / (square * square * s)  # Phi(-|x|)
    return (x < 0).where(tail, 1 - tail) + x * bell * (1 / math.sqrt(2 * math.pi))


def slope(out: UOp, x: UOp, g: UOp, *, function: Callable[[UOp], UOp]) -> UOp:
    """out = g * function(x), place by place."""
    out, x, g = flat(out), flat(x), flat(g)
    place = Nest().loops(*out.shape)
    value = load(g, *place) * function(load(x, *place))
    stored = put(out, tuple(place), value).end(*place)
    return kernel(name_of(function.__name__, out), stored)


def product(out: UOp, x: UOp, y: UOp) -> UOp:
    """out (…, C) = the first C channels of x times those of y."""
    out, x, y = flat(out), flat(x), flat(y)
    place = Nest().loops(*out.shape)
    value = load(x, *place) * load(y, *place)
    return kernel(name_of("product", out), put(out, tuple(place), value).end(*place))


def scale(out: UOp, x: UOp, factors: UOp, *rest: UOp, number: int) -> UOp:
    """out (B, H, W, C) = x times each picture's factor, row `number` of (…, B) [+ another map]."""
    b, *place = loops = Nest().loops(*out.shape)
    value = load(x, b, *place) * load(factors, number, b)
    if rest:
        value = value + load(rest[0], b, *place)
    return kernel(name_of("scale", out), put(out, (b, *place), value).end(*loops))


def batchnorm(
    out: UOp, found: UOp, running: UOp, x: UOp, affine: UOp, *, eps: float, act: bool
) -> UOp:
    """out = [hardswish of] x (rows, C), each channel by its mean and variance, scaled and shifted.

    affine (2, C); found (2, C): mean and 1 / deviation; running (2, C): the moving averages of mean
    and unbiased variance, moved by a tenth.
    """
    out, x = (t.reshape((-1, affine.shape[1])) for t in (out, x))
    rows, channels = x.shape
    nest, c = Nest(), divisor(channels, COLUMNS)
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
    here = c0 * c + j
    center, unbiased = sums[j].load() * (1 / rows), squares[j].load() * (1 / max(rows - 1, 1))
    numbers = [
        put(found, (0, here), center),
        put(found, (1, here), scales[j].load()),
        put(running, (0, here), 0.9 * load(running, 0, here) + 0.1 * center),
        put(running, (1, here), 0.9 * load(running, 1, here) + 0.1 * unbiased),
    ]
    stores.append(UOp.group(*numbers).end(j))
    return kernel(name_of("batchnorm", out), UOp.group(*stores).end(*around))


def batchnorm_back(
    out: UOp, weights: UOp, x: UOp, g: UOp, affine: UOp, found: UOp, share: UOp, *, act: bool
) -> UOp:
    """out = the gradient for x, given that of the result, g; weights (2, C) += that of affine."""
    out, x, g = (t.reshape((-1, affine.shape[1])) for t in (out, x, g))
    rows, channels = x.shape
    nest, c = Nest(), divisor(channels, COLUMNS)
    around = (c0,) = nest.loops(channels // c)

    def normal(r: UOp, here: UOp) -> UOp:
        return (load(x, r, here) - load(found, 0, here)) * load(found, 1, here)

    def before(r: UOp, here: UOp) -> UOp:
        """The gradient of the norm's result."""
        if not act:
            return load(g, r, here)
        value = normal(r, here) * load(affine, 0, here) + load(affine, 1, here)
        return load(g, r, here) * hardswish_slope(value)

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
        learn(weights, (0, c0 * c + j), moment[j].load(), share),
        learn(weights, (1, c0 * c + j), plain[j].load(), share),
    ]
    stores.append(UOp.group(*numbers).end(j))
    return kernel(name_of("batchnorm_back", out), UOp.group(*stores).end(*around))


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
    *rest: UOp,
    act: bool,
    at: int = 0,
    plus: bool = False,
) -> UOp:
    """out = the gradient for x, given that of the result (g, from channel `at` on) [+ plus]."""
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
    if plus:
        value = value + load(flat(rest[0]), r, j)
    return kernel(name_of("layernorm_back", out), put(out, (r, j), value).end(*around, j))


def layernorm_weight(
    weights: UOp, x: UOp, g: UOp, affine: UOp, found: UOp, share: UOp, *, act: bool, at: int = 0
) -> UOp:
    """weights (2, C) += the gradient of `layernorm` for its affine."""
    x, g = flat(x), flat(g)
    rows, channels = x.shape
    nest, c = Nest(), divisor(channels, COLUMNS)
    around = (c0,) = nest.loops(channels // c)
    normal, before = layernorm_parts(x, g, affine, found, act, at)
    sums = nest.fill(around, (2, c), lambda i, j: ZERO)
    over = (r,) = nest.loops(rows)

    def term(i: UOp, j: UOp) -> UOp:
        value = before(r, c0 * c + j)
        return i.eq(0).where(value * normal(r, c0 * c + j), value)

    sums = nest.accumulate(sums, over, term)
    i, j = nest.loops(2, c)
    stored = learn(weights, (i, c0 * c + j), sums[i, j].load(), share).end(*around, i, j)
    return kernel(name_of("layernorm_weight", x), stored)


def layernorm_parts(
    x: UOp, g: UOp, affine: UOp, found: UOp, act: bool, at: int
) -> tuple[Callable[[UOp, UOp], UOp], Callable[[UOp, UOp], UOp]]:
    """The normalised value of a place, and the gradient of the norm's result there."""

    def normal(r: UOp, j: UOp) -> UOp:
        return (load(x, r, j) - load(found, r, 0)) * load(found, r, 1)

    def before(r: UOp, j: UOp) -> UOp:
        value = load(g, r, at + j)
        if not act:
            return value
        return value * hardswish_slope(normal(r, j) * load(affine, 0, j) + load(affine, 1, j))

    return normal, before


# Attention


def softmax_back(out: UOp, s: UOp, g: UOp, *, to: int) -> UOp:
    """out, from channel `to` on, = the gradient for the input of a softmax s over the tokens, given
    its own, g: both (B, N, C)."""
    batch, n, channels = s.shape
    out = out.reshape((batch, n, -1))
    nest, c = Nest(), divisor(channels, COLUMNS)
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
    out: UOp, x: UOp, y: UOp, *, head_dim: int, scale: float, channel: int = 0, at: int = 0
) -> UOp:
    """out (B, C, C) = scale * xᵀ y, of C channels of x (B, N, …) and of y (B, N, …); zero where the
    two channels are not of one head."""
    batch, channels, _ = out.shape
    x, y = (t.reshape((batch, -1, t.shape[-1])) for t in (x, y))
    nest, m, c = Nest(), divisor(channels, ROWS), divisor(channels, COLUMNS)
    around = b, i0, j0 = nest.loops(batch, channels // m, channels // c)
    acc = nest.fill(around, (m, c), lambda i, j: ZERO)
    over = (t,) = nest.loops(x.shape[1])
    acc = nest.accumulate(
        acc,
        over,
        lambda i, j: load(x, b, t, channel + i0 * m + i) * load(y, b, t, at + j0 * c + j),
    )
    i, j = nest.loops(m, c)
    one = ((i0 * m + i) // head_dim).eq((j0 * c + j) // head_dim)
    value = one.where(acc[i, j].load() * scale, ZERO)
    stored = put(out, (b, i0 * m + i, j0 * c + j), value).end(*around, i, j)
    return kernel(name_of("outer", out, x, numbers=(channel, at)), stored)
