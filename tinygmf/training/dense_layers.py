"""The layers of dense heads, on the tape of the loop nests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinygrad import Tensor

from tinygmf.dense.pyramid import averages
from tinygmf.loops import norms, products, resampling, sampling
from tinygmf.loops.calls import run
from tinygmf.loops.inference import apply_loops
from tinygmf.loops.values import relu, relu_slope
from tinygmf.training.tape import Map, Tape

Size = tuple[int, int]


class DenseTape(Tape):
    """A `Tape` with the layers of dense heads."""

    # Convolutions

    def conv_relu(self, x: Map, name: str, size: int = 3) -> Map:
        return self.relu(self.convolve(x, name, size))

    def conv_module(self, x: Map, name: str, size: int = 3) -> Map:
        """Convolution, BatchNorm, ReLU."""
        y = self.convolve(x, f"{name}.conv", size)
        return self.relu(self.batchnorm(y, f"{name}.bn", act=False))

    def relu(self, x: Map) -> Map:
        result = Map(run(apply_loops, self.new(*x.value.shape), x.value, function=relu))

        @self.backward
        def back() -> None:
            out, g = self.new(*x.value.shape), result.incoming
            self.sum_gradient(x, run(norms.slope, out, x.value, g, function=relu_slope))

        return result

    def doubling_conv(self, x: Map, name: str) -> Map:
        """A transposed 2x2 convolution of stride 2; its weight is stored as (2, 2, out, in)."""
        n, height, width, depth = map(int, x.value.shape)
        stored = self.weights[f"{name}.weight"].reshape(-1, depth)  # (4 * out, in)
        columns = int(stored.shape[0])
        weight = self.transposed(stored).reshape(1, 1, depth, columns)
        product = Map(run(products.dense, self.new(n, height, width, columns), x.value, weight))

        @self.backward
        def back() -> None:
            g, shape = product.incoming, (1, 1, columns, depth)
            self.add_weight_gradient(products.dense_weight, f"{name}.weight", shape, g, x.value)
            self.add_gradient(x, products.dense, g, stored.reshape(shape), back=True)

        def apart(value: Tensor) -> Tensor:
            value = value.reshape(n, height, width, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
            return value.reshape(n, 2 * height, 2 * width, -1)

        def together(g: Tensor) -> Tensor:
            g = g.reshape(n, height, 2, width, 2, -1).permute(0, 1, 3, 2, 4, 5)
            return g.reshape(n, height, width, -1)

        return self.add_bias(self.linear(product, apart, together), f"{name}.bias")

    def add_bias(self, x: Map, name: str) -> Map:
        result = Map((x.value + self.weights[name]).contiguous())

        @self.backward
        def back() -> None:
            g = result.incoming
            self.add_weight_gradient(products.column_sum, name, (x.channels,), g)
            self.set_gradient(x, g)

        return result

    # Sizes

    def resize(self, x: Map, size: Size, plus: Map | None = None) -> Map:
        """Bilinear resizing [+ plus]."""
        out, added = self.new(int(x.value.shape[0]), *size, x.channels), plus and plus.value
        result = Map(run(resampling.resize, out, x.value, plus=added))

        @self.backward
        def back() -> None:
            if plus:
                self.set_gradient(plus, result.incoming)
            self.add_gradient(x, resampling.resize_back, result.incoming)

        return result

    def side_by_side(self, maps: Sequence[Map]) -> Map:
        """The channels of all maps side by side, each map resized to the size of the first."""
        batch, (height, width) = int(maps[0].value.shape[0]), size_of(maps[0])
        result = Map(self.new(batch, height, width, sum(x.channels for x in maps)))
        starts = [sum(x.channels for x in maps[:i]) for i in range(len(maps))]
        for x, start in zip(maps, starts, strict=True):
            result.value = run(resampling.resize, result.value, x.value, to=start)

        @self.backward
        def back() -> None:
            for x, start in zip(maps, starts, strict=True):
                self.add_gradient(x, resampling.resize_back, result.incoming, at=start)

        return result

    def double(self, x: Map, size: Size) -> Map:
        """Nearest-neighbor doubling, as `pyramid.double` does it."""
        out = self.new(int(x.value.shape[0]), *size, x.channels)
        result = Map(run(sampling.double_loops, out, x.value))

        @self.backward
        def back() -> None:
            self.add_gradient(x, resampling.double_back, result.incoming)

        return result

    def top_down(self, lateral: str, smooth: str, maps: Sequence[Map]) -> list[Map]:
        """A pyramid, built as `pyramid.top_down` does; `{}` in the names stands for the level."""
        last = len(maps) - 1
        sums = [self.convolve(maps[last], lateral.format(last))]
        for i in range(last - 1, -1, -1):
            coarser = self.double(sums[0], size_of(maps[i]))
            sums.insert(0, self.convolve(maps[i], lateral.format(i), plus=coarser))
        return [self.convolve(x, smooth.format(i), 3) for i, x in enumerate(sums)]

    def adaptive_average(self, x: Map, bins: int) -> Map:
        """`pyramid.adaptive_average`: (B, h, w, C) -> (B, bins, bins, C)."""
        rows, columns = (averages(side, bins) for side in size_of(x))

        def between(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            found = rows @ value.permute(0, 3, 1, 2) @ columns.transpose()
            return found.permute(0, 2, 3, 1).contiguous()

        return self.linear(
            x,
            lambda value: between(value, rows, columns),
            lambda g: between(g, rows.transpose(), columns.transpose()),
        )

    def every_second(self, x: Map) -> Map:
        """Every second row and column: (B, h, w, C) -> (B, ceil(h/2), ceil(w/2), C)."""
        batch, height, width, channels = map(int, x.value.shape)

        def spread(g: Tensor) -> Tensor:
            _, rows, columns, _ = map(int, g.shape)
            g = g.reshape(batch, rows, 1, columns, 1, channels)
            g = g.pad((None, None, (0, 1), None, (0, 1), None))
            return g.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]

        return self.linear(x, lambda value: value[:, ::2, ::2], spread)

    def pool(self, flat: Map, lookups: Sequence[Tensor], bins: int) -> Map:
        """RoIAlign on concatenated levels (B, places, C) -> (n, bins, bins, C)."""
        channels = int(flat.value.shape[2])
        out = self.new(int(lookups[0].shape[0]), bins, bins, channels)
        values = flat.value.reshape(-1, channels)
        result = Map(run(sampling.pool_loops, out, values, *lookups))

        @self.backward
        def back() -> None:
            start = flat.gradient
            if start is None:
                start = Tensor.zeros(*flat.value.shape, device=self.share.device)
            start = start.contiguous()
            flat.gradient = run(resampling.pool_back, start, result.incoming, *lookups)

        return result

    def one_after_another(self, maps: Sequence[Map], values: int) -> Map:
        """Levels (B, h, w, A * values) -> (B, sum of h * w * A, values)."""
        batch = int(maps[0].value.shape[0])
        flat = [x.value.reshape(batch, -1, values) for x in maps]
        result = Map(Tensor.cat(*flat, dim=1).contiguous())

        @self.backward
        def back() -> None:
            start = 0
            for x, part in zip(maps, flat, strict=True):
                end = start + int(part.shape[1])
                own = result.incoming[:, start:end].reshape(x.value.shape)
                self.sum_gradient(x, own.contiguous())
                start = end

        return result

    def linear(
        self,
        x: Map,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor], Tensor],
    ) -> Map:
        """A linear function of a map, and its transpose, as tinygrad expressions."""
        result = Map(forward(x.value).contiguous())

        @self.backward
        def back() -> None:
            self.sum_gradient(x, backward(result.incoming).contiguous())

        return result

    def weigh(self, x: Map, factors: Tensor) -> Map:
        """x times factors that broadcast to it: dropout."""
        return self.linear(x, lambda value: value * factors, lambda g: g * factors)

    def sum_gradient(self, x: Map, gradient: Tensor) -> None:
        """Add to a map's gradient, if it has one."""
        x.gradient = gradient if x.gradient is None else (x.gradient + gradient).contiguous()


def size_of(x: Map) -> Size:
    return int(x.value.shape[1]), int(x.value.shape[2])


def twice(x: Map) -> Size:
    return 2 * int(x.value.shape[1]), 2 * int(x.value.shape[2])
