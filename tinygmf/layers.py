"""The few layers that GroupMixFormer is built from, with the published initialization.

Every layer is a `Module`: calling it runs `forward` and, inside `record`, reports the output. This
one place lets `GroupMixFormer.trace` name every intermediate. Weights are drawn with NumPy from
`rng`; with `rng=None` they have no values and take no memory until a checkpoint is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes, nn
from tinygrad.function import function
from tinygrad.helpers import TRAINING
from tinygrad.uop.ops import UOp

from tinygmf.tensors import tensor_from_numpy

Rng = np.random.Generator | None
Statistics = list[tuple["BatchNorm", Tensor, Tensor, int]]
_statistics: ContextVar[Statistics | None] = ContextVar("statistics", default=None)
_branch_factors: ContextVar[Iterator[Tensor] | None] = ContextVar("branches", default=None)
_products: ContextVar[Callable[[int], None] | None] = ContextVar("products", default=None)
_runner: ContextVar[Callable[..., Any] | None] = ContextVar("runner", default=None)
empty_tensor: ContextVar[Callable[..., Tensor]] = ContextVar("empty", default=Tensor.empty)
_recorder: ContextVar[Callable[[Module, Any], None] | None] = ContextVar("recorder", default=None)


class Module:
    """A named part of the network."""

    def __call__(self, *inputs: Any) -> Any:
        output = self.forward(*inputs)
        if (note := _recorder.get()) is not None and (replaced := note(self, output)) is not None:
            return replaced
        return output

    def forward(self, *inputs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward")

    # What users of PyTorch expect

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and buffer by its name in the checkpoint."""
        return nn.state.get_state_dict(self)

    def parameters(self) -> list[Tensor]:
        """What training changes: the state dict without BatchNorm's statistics and counters."""
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        return [t for name, t in self.state_dict().items() if name.split(".")[-1] not in buffers]

    def eval(self) -> Module:
        """The module itself: it is in evaluation mode except within `Context(TRAINING=1)`."""
        return self

    def train(self, mode: bool = True) -> Module:
        """Raise ValueError: there is no training mode to leave on by mistake."""
        if not mode:
            return self
        raise ValueError("train(): wrap the step in tinygrad's Context(TRAINING=1), or use Trainer")

    def to(self, device: str) -> Module:
        """Move every parameter and buffer to a tinygrad device, in place; returns the module."""
        for tensor in self.state_dict().values():
            tensor.replace(tensor.to(device)).realize()
        return self

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Every module below this one, with its dotted name in the checkpoint."""
        for name, value in vars(self).items():
            parts = value if isinstance(value, list) else [value]
            for i, part in enumerate(parts):
                if isinstance(part, Module):
                    path = f"{prefix}{name}.{i}" if isinstance(value, list) else prefix + name
                    yield path, part
                    yield from part.named_modules(path + ".")


@contextmanager
def record(note: Callable[[Module, Any], None]) -> Iterator[None]:
    """Call `note(module, output)` after every module that runs inside the `with` block. What it
    returns replaces the output, unless it is None."""
    token = _recorder.set(note)
    try:
        yield
    finally:
        _recorder.reset(token)


def run_part(part: Callable[..., Any], modules: Sequence[Module], *inputs: Any) -> Any:
    """`part(*inputs)`, whose weights are those of `modules`: a piece of the network that can be
    scheduled by itself. Inside `run_parts` the runner given there runs it."""
    if (runner := _runner.get()) is None:
        return part(*inputs)
    return runner(part, modules, *inputs)


@contextmanager
def run_parts(runner: Callable[..., Any]) -> Iterator[None]:
    """Every `run_part` in the `with` block calls `runner(part, modules, *inputs)` instead."""
    token = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(token)


def note_products(output: Tensor, terms: int) -> Tensor:
    """Return the output; `count_products` counts `terms` multiply-adds for each of its values."""
    if (count := _products.get()) is not None:
        count(int(output.numel()) * terms)
    return output


@contextmanager
def count_products(count: Callable[[int], None]) -> Iterator[None]:
    """Call `count` with the multiply-adds of every convolution, linear layer and attention product
    that is computed, or only traced, in the `with` block."""
    token = _products.set(count)
    try:
        yield
    finally:
        _products.reset(token)


@contextmanager
def record_statistics() -> Iterator[Statistics]:
    """Collect the batch statistics of every BatchNorm in the `with` block instead of updating its
    running ones: the module, mean and (biased) variance, both (C,), and the number of values
    in each."""
    statistics: Statistics = []
    token = _statistics.set(statistics)
    try:
        yield statistics
    finally:
        _statistics.reset(token)


def _unset(*shape: int) -> Tensor:
    return empty_tensor.get()(*shape, dtype=dtypes.float32)


def _filled(rng: Rng, value: float, *shape: int) -> Tensor:
    if rng is None:
        return _unset(*shape)
    return tensor_from_numpy(np.full(shape, value, dtype=np.float32))


class Linear(Module):
    """(…, in) -> (…, out). Weights: truncated normal, std 0.02, cut at -2 and 2; biases: zero."""

    def __init__(self, rng: Rng, in_features: int, out_features: int) -> None:
        shape = (out_features, in_features)
        self.weight = _unset(*shape)
        if rng is not None:
            normal = 0.02 * rng.standard_normal(shape, dtype=np.float32)
            self.weight = tensor_from_numpy(normal.clip(-2, 2))
        self.bias = _filled(rng, 0, out_features)

    def forward(self, x: Tensor) -> Tensor:
        y = x.linear(self.weight.transpose(), self.bias)
        return note_products(y, int(self.weight.shape[1]))


class Conv2d(Module):
    """(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)), odd kernels, zero padding.

    Initialized as in PyTorch: uniform within 1 / sqrt(fan-in); the fan-in of a depthwise kernel
    is its area.
    """

    def __init__(
        self,
        rng: Rng,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups
        self.weight = self._uniform(rng, shape, fan_in=math.prod(shape[1:]))
        self.bias = None
        if bias:
            self.bias = self._uniform(rng, (out_channels,), fan_in=math.prod(shape[1:]))

    @staticmethod
    def _uniform(rng: Rng, shape: tuple[int, ...], fan_in: int) -> Tensor:
        if rng is None:
            return _unset(*shape)
        bound = 1 / math.sqrt(fan_in)
        return tensor_from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, self.weight, self.groups, self.stride)
        note_products(y, math.prod(map(int, self.weight.shape[1:])))
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)


def convolve(x: Tensor, weight: Tensor, groups: int = 1, stride: int = 1) -> Tensor:
    """A convolution with an odd kernel size and zero padding; its gradient is written out below.

    It is dense (`groups` 1) or depthwise (`groups` equal to both numbers of channels). tinygrad's
    own gradient of a convolution takes ten times as long to compile.
    """

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x.conv2d(weight, None, groups, stride, padding=weight.shape[-1] // 2)

    def backward(gradient: UOp, call: UOp) -> tuple[UOp, UOp]:
        x, weight = (Tensor(source) for source in call.src[1:])
        g = Tensor(gradient).contiguous()  # (B, out, H/stride, W/stride)
        return (
            _input_gradient(x, weight, g, groups, stride).contiguous().uop,
            _weight_gradient(x, weight, g, groups, stride).uop,
        )

    return function(forward, grad_fxn=backward)(x.contiguous(), weight)


def _input_gradient(x: Tensor, weight: Tensor, g: Tensor, groups: int, stride: int) -> Tensor:
    """The gradient, spread over the grid of x, convolved with the flipped kernel."""
    if stride > 1:
        batch, channels, h, w = g.shape
        g = g.reshape(batch, channels, h, 1, w, 1)
        g = g.pad((None, None, None, (0, stride - 1), None, (0, stride - 1)))
        g = g.reshape(batch, channels, h * stride, w * stride)
        g = g[:, :, : x.shape[2], : x.shape[3]].contiguous()  # zeros between: (B, out, H, W)
    flipped = weight.flip(2, 3) if groups > 1 else weight.flip(2, 3).transpose(0, 1)
    return g.conv2d(flipped, None, groups, padding=weight.shape[-1] // 2)


def _weight_gradient(x: Tensor, weight: Tensor, g: Tensor, groups: int, stride: int) -> Tensor:
    """For every tap of the kernel, the sum over images and positions of shifted x times g."""
    kernel, rim = int(weight.shape[-1]), int(weight.shape[-1]) // 2
    windows = x.pad((None, None, (rim, rim), (rim, rim)))
    windows = windows._pool((kernel, kernel), stride)  # (B, in, H/stride, W/stride, k, k)
    if groups > 1:
        taps = (windows * g.reshape(*g.shape, 1, 1)).sum((0, 2, 3))  # (C, k, k)
        return taps.unsqueeze(1)
    g = g.reshape(g.shape[0], g.shape[1], 1, *g.shape[2:], 1, 1)
    return (windows.unsqueeze(1) * g).sum((0, 3, 4))  # (out, in, k, k)


class BatchNorm(Module, nn.BatchNorm):
    """(B, C, …) -> (B, C, …), eps 1e-5, momentum 0.1: batch statistics in training, else running.

    Parameters and statistics stay float32 in every precision.
    """

    EPS = 1e-5

    def __init__(self, rng: Rng, channels: int) -> None:
        self.eps, self.momentum, self.track_running_stats = self.EPS, 0.1, True
        self.weight, self.bias = _filled(rng, 1, channels), _filled(rng, 0, channels)
        self.running_mean = _filled(rng, 0, channels).is_param_(False)
        self.running_var = _filled(rng, 1, channels).is_param_(False)
        count = np.zeros((), dtype=np.int64)
        self.num_batches_tracked = tensor_from_numpy(count).is_param_(False)

    def forward(self, x: Tensor) -> Tensor:
        dtype, x = x.dtype, x.float()
        if not TRAINING:
            return self.normalize(x, self.running_mean, self.running_var).cast(dtype)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        mean = x.mean(axes).contiguous()
        centred = x - mean.detach().reshape(1, -1, *(1,) * (x.ndim - 2))  # d(var)/d(mean) = 0
        var = centred.square().mean(axes).contiguous()
        count = x.numel() // x.shape[1]
        if (statistics := _statistics.get()) is None:
            self.update(mean, var, count)
        else:
            statistics.append((self, mean, var, count))
        return self.normalize(x, mean, var).cast(dtype)

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Update the running statistics by a batch's mean and variance of `count` values."""
        unbiased = var.detach() * (count / max(count - 1, 1))
        self.running_mean.assign(0.9 * self.running_mean + 0.1 * mean.detach())
        self.running_var.assign(0.9 * self.running_var + 0.1 * unbiased)
        self.num_batches_tracked.assign(self.num_batches_tracked + 1)

    def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return x.batchnorm(self.weight, self.bias, mean, (var + self.eps).rsqrt())


class LayerNorm(Module):
    """(…, C) -> (…, C): each token by its own mean and variance over the channels."""

    def __init__(self, rng: Rng, channels: int, eps: float) -> None:
        self.eps = eps
        self.weight, self.bias = _filled(rng, 1, channels), _filled(rng, 0, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float().layernorm(eps=self.eps)  # float32 in every precision
        return (y * self.weight + self.bias).cast(x.dtype)


class Hardswish(Module):
    """x * min(max(x + 3, 0), 6) / 6."""

    def forward(self, x: Tensor) -> Tensor:
        return x.hardswish()


class GELU(Module):
    """x Φ(x), with the exact normal distribution function Φ, not the tanh approximation."""

    def forward(self, x: Tensor) -> Tensor:
        return x.gelu(approximate="none")


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth (arXiv 1603.09382): in training, drop each sample's residual branch with
    probability `rate` and scale the others by 1 / (1 - rate)."""
    if not TRAINING or rate == 0:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    if (factors := _branch_factors.get()) is not None:
        return x * next(factors).reshape(shape).cast(x.dtype)
    keep = Tensor.rand(*shape, device=x.device) >= rate
    return x * keep / (1 - rate)


@contextmanager
def branch_factors(factors: Iterator[Tensor]) -> Iterator[None]:
    """Let every `drop_path` in the `with` block take its factors, (B,), from here: 0 or
    1 / (1 - rate), drawn by the caller."""
    token = _branch_factors.set(factors)
    try:
        yield
    finally:
        _branch_factors.reset(token)
