"""The tape of the gradient in loop nests: maps, their gradients, and the layers of one map.

Every layer runs its kernel and puts a backward function on the tape; the backward functions run in
reverse. Maps have their channels last, (B, H, W, C). A kernel may read or write some channels of a
wider map alone, so nothing is cut apart or joined, and gradients from several places are summed by
the kernels that compute them.

tinygrad's own tape would do: each kernel takes a gradient function. It cannot let a kernel add to a
gradient that is there, so every map that is used twice costs kernels more: in turn with this tape,
the MLP half of a block had a quarter more kernels and took an eighth more time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from tinygmf.loops import norms, products, values, windows
from tinygmf.loops.calls import Kernel, run, run_all
from tinygmf.loops.inference import apply_loops
from tinygmf.loops.padding import pad_loops

Backward = Callable[[], None]


@dataclass
class Map:
    """A map on the way forward, and on the way back the gradient of the loss for it."""

    value: Tensor
    gradient: Tensor | None = None
    needs_gradient: bool = True

    @property
    def channels(self) -> int:
        return int(self.value.shape[3])

    @property
    def incoming(self) -> Tensor:
        """The gradient, which must be there by now."""
        assert self.gradient is not None
        return self.gradient


class Tape:
    """Runs layers forward and, by `run_backward`, back.

    weights, gradients, statistics: a one-dimensional tensor for each group of a `Layout`, by name.
    What a weight's gradient gets is added to what is there, times `share[0]`. factors: stochastic
    depth's, (2 * blocks, B). Tensors that the kernels change in place are collected in `written`.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        share: Tensor,
        factors: Tensor,
        dtype: DType = dtypes.float32,
    ) -> None:
        self.weights, self.gradients, self.statistics = weights, gradients, statistics
        self.share, self.factors, self.dtype = share, factors, dtype
        self.written: list[Tensor] = []
        self._latest: dict[str, Tensor] = {}  # gradients of weights after what was added so far
        self.backward_functions: list[Backward] = []

    def backward(self, function: Backward) -> Backward:
        """A decorator: puts the function on the tape."""
        self.backward_functions.append(function)
        return function

    def run_backward(self) -> None:
        while self.backward_functions:
            self.backward_functions.pop()()

    # Tensors

    def new(self, *shape: int) -> Tensor:
        return Tensor.invalids(*shape, dtype=self.dtype, device=self.share.device)

    def new_float32(self, *shape: int) -> Tensor:
        """For what stays float32 in every precision."""
        return Tensor.invalids(*shape, dtype=dtypes.float32, device=self.share.device)

    def transposed(self, weight: Tensor) -> Tensor:
        """A weight with its last two axes swapped."""
        *outer, depth, columns = weight.shape
        return run(products.transpose, self.new_float32(*outer, columns, depth), weight)

    # Gradients

    def add_weight_gradient(
        self, kernel: Kernel, name: str, shape: tuple[int, ...], *inputs: Tensor, **options: Any
    ) -> None:
        """The kernel adds to the gradient of a weight, after those that have added before: several
        maps may share it."""
        out = self._latest.get(name, self.gradients[name]).reshape(shape)
        written = run(kernel, out, *inputs, self.share, **options)
        self._latest[name] = written.reshape(-1)
        self.written.append(written)

    def set_gradient(self, x: Map, gradient: Tensor) -> None:
        """x was added to what has this gradient; every other use of x adds its own later."""
        assert x.gradient is None
        x.gradient = gradient

    def add_gradient(self, x: Map, kernel: Kernel, *inputs: Tensor, **options: Any) -> None:
        """The gradient of a whole map: what there is, and what the kernel computes."""
        if x.gradient is not None:
            options["plus"] = x.gradient
        x.gradient = run(kernel, self.new(*x.value.shape), *inputs, **options)

    def write_gradient(self, x: Map, kernel: Kernel, *inputs: Tensor, **options: Any) -> None:
        """The gradient of some of a map's channels, to which the kernel writes; others stay."""
        out = self.new(*x.value.shape) if x.gradient is None else x.gradient
        x.gradient = run(kernel, out, *inputs, **options)

    # Layers

    def convolve(
        self,
        x: Map,
        name: str,
        size: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        plus: Map | None = None,
    ) -> Map:
        """The convolution of this name, with its bias if it has one, or with `size` 1 the product;
        `plus`, which may be x itself, is added to it."""
        batch, height, width, depth = map(int, x.value.shape)
        kernel: Kernel = windows.depthwise if depthwise else products.dense
        of_weight: Kernel = windows.depthwise_weight if depthwise else products.dense_weight
        shape = (size, size, depth) if depthwise else (size, size, depth, -1)
        w = self.weights[f"{name}.weight"].reshape(shape)
        bias = self.weights.get(f"{name}.bias")
        columns = int(w.shape[-1])
        out = self.new(batch, -(-height // stride), -(-width // stride), columns)
        added = {"bias": bias, "plus": plus and plus.value}
        rim = size // 2
        seen = x.value if depthwise or size == 1 else self.padded(x.value, rim)
        result = Map(run(kernel, out, seen, w, stride=stride, **added))

        @self.backward
        def back() -> None:
            g = result.incoming
            if plus:
                self.set_gradient(plus, g)
            weight_shape = tuple(map(int, w.shape))
            self.add_weight_gradient(
                of_weight, f"{name}.weight", weight_shape, seen, g, stride=stride
            )
            if bias is not None:
                self.add_weight_gradient(products.column_sum, f"{name}.bias", (columns,), g)
            if x.needs_gradient:
                swapped = w if depthwise else self.transposed(w)
                if not depthwise and size > 1:
                    spread = products.Taps(size, stride, True, (height, width)).spread
                    g = self.padded(g, rim, spread, (height, width) if spread > 1 else None)
                self.add_gradient(x, kernel, g, swapped, back=True, stride=stride)

        return result

    def padded(
        self, x: Tensor, rim: int, apart: int = 1, sides: tuple[int, int] | None = None
    ) -> Tensor:
        """A map with zeros around it, as `products.dense` reads it; its places lie so far apart, in
        a map of these sides."""
        batch, height, width, channels = map(int, x.shape)
        height, width = sides or (height, width)
        out = self.new(batch, height + 2 * rim, width + 2 * rim, channels)
        return run(pad_loops, out, x, rim=rim, apart=apart)

    def branch(self, x: Map, y: Map, name: str, row: int | None) -> Map:
        """x + the product of y, times stochastic depth's factors if it has any."""
        if row is None:
            return self.convolve(y, name, plus=x)
        product = self.convolve(y, name)
        shape = tuple(map(int, x.value.shape))
        value = run(
            products.scale, self.new(*shape), product.value, self.factors, plus=x.value, row=row
        )
        result = Map(value)

        @self.backward
        def back() -> None:
            g = result.incoming
            self.set_gradient(x, g)
            product.gradient = run(products.scale, self.new(*shape), g, self.factors, row=row)

        return result

    def batchnorm(self, x: Map, name: str, act: bool = True) -> Map:
        """BatchNorm by the batch's own statistics, whose moving averages it moves; Hardswish."""
        affine = self.weights[name].reshape(2, -1)
        pair, running = tuple(map(int, affine.shape)), self.statistics[name].reshape(affine.shape)
        outputs = [self.new(*x.value.shape), self.new_float32(*pair), running]
        value, found, running = run_all(
            norms.batchnorm, outputs, x.value, affine, eps=1e-5, act=act
        )
        self.written.append(running)
        result = Map(value)

        @self.backward
        def back() -> None:
            outputs = [self.new(*x.value.shape), self.gradients[name].reshape(pair)]
            known = x.value, result.incoming, affine, found, self.share
            x.gradient, written = run_all(norms.batchnorm_back, outputs, *known, act=act)
            self.written.append(written)

        return result

    def layernorm(self, x: Map, name: str, eps: float) -> Map:
        result = Map(self.new(*x.value.shape))
        self.layernorm_into(result, x, name, eps, to=0, act=False)
        return result

    def layernorm_into(
        self, result: Map, x: Map, name: str, eps: float, to: int, act: bool = True
    ) -> None:
        """LayerNorm and Hardswish, to the channels of `result` from `to` on."""
        affine = self.weights[name].reshape(2, -1)
        found = self.new_float32(x.value.numel() // x.channels, 2)
        outputs = [result.value, found]
        result.value, found = run_all(
            norms.layernorm, outputs, x.value, affine, eps=eps, act=act, to=to
        )

        @self.backward
        def back() -> None:
            known, shape = (x.value, result.incoming, affine, found), tuple(map(int, affine.shape))
            options = {"act": act, "at": to}
            self.add_weight_gradient(norms.layernorm_weight, name, shape, *known, **options)
            self.add_gradient(x, norms.layernorm_back, *known, **options)

    def gelu(self, x: Map) -> Map:
        result = Map(run(apply_loops, self.new(*x.value.shape), x.value, function=values.gelu))

        @self.backward
        def back() -> None:
            out, g = self.new(*x.value.shape), result.incoming
            x.gradient = run(norms.slope, out, x.value, g, function=values.gelu_slope)

        return result

    def average(self, x: Map) -> Map:
        """Over the places of a map: (B, H, W, C) -> (B, 1, 1, C)."""
        _, height, width, _ = x.value.shape
        mean = x.value.float().mean((1, 2), keepdim=True)
        result = Map(mean.cast(self.dtype).contiguous())

        @self.backward
        def back() -> None:
            even = result.incoming * (1 / (height * width))
            x.gradient = even.expand(*x.value.shape).contiguous()

        return result
