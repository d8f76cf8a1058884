"""The gradient of a batch in loop nests, forward and backward written out, for the CPU device.

tinygrad's own plan of this gradient has some 600 kernels, each of which it takes a tenth of a
second to lower; this one has half as many, lowered in milliseconds each, and runs several times as
fast. It is made for the published form of the network; `tinygmf.training.gradient` is the same for
any device and any ablation, and the tests hold the two together.

Maps have their channels last, (B, H, W, C). Where the network looks at some of the channels alone,
so do the kernels: nothing is cut apart or joined. Each step of the forward pass notes what has to
be done on the way back, and the notes are gone through in reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from tinygmf.config import NUM_HEADS, GroupMixFormerConfig
from tinygmf.gma import ConvRelPosEnc
from tinygmf.loops import attention, norms, products, values
from tinygmf.loops.inference import apply_loops, softmax_loops
from tinygmf.training.gradient import cross_entropy
from tinygmf.training.state import Layout

Kernel = Callable[..., UOp]
QKV = 3  # query, key and value lie side by side in the channels of a map


@dataclass
class Map:
    """A map on the way forward, and on the way back its gradient."""

    value: Tensor
    gradient: Tensor | None = None

    @property
    def channels(self) -> int:
        return int(self.value.shape[3])


def run(kernel: Kernel, out: Tensor, *inputs: Tensor, **options: object) -> Tensor:
    return run_all(kernel, [out], *inputs, **options)[0]


def run_all(
    kernel: Kernel, outputs: list[Tensor], *inputs: Tensor, **options: object
) -> list[Tensor]:
    """The outputs after the kernel, given them and the inputs, has written them."""
    first, *others = outputs
    results = first.custom_kernel(*others, *inputs, fxn=partial(kernel, **options))
    return results[: len(outputs)]


class LoopGradient:
    """Forward and backward of one batch; called like `gradient.GradientProgram`, but with a tensor
    for each group of the flat weights, gradient and statistics (`Layout`)."""

    def __init__(self, config: GroupMixFormerConfig, dtype: DType = dtypes.float32) -> None:
        config.require_published_form("a step in loop nests")
        self.config, self.dtype, self.layout = config, dtype, Layout.of(config)

    def __call__(
        self,
        weights: list[Tensor],
        gradient: list[Tensor],
        statistics: list[Tensor],
        counters: Tensor,
        share: Tensor,
        pictures: Tensor,
        targets: Tensor,
        factors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self.weights = dict(zip(self.layout.weights.groups, weights, strict=True))
        self.gradients = dict(zip(self.layout.weights.groups, gradient, strict=True))
        self.running = dict(zip(self.layout.statistics.groups, statistics, strict=True))
        self.written: list[Tensor] = []
        self.notes: list[Callable[[], None]] = []
        self.factors, self.share = factors, share

        pooled = self.features(pictures)
        logits = self.convolve(pooled, "head.weight", "head.bias")
        values = logits.value.float().reshape(targets.shape)
        loss = cross_entropy(values, targets)
        slope = values.softmax() * targets.sum(1, keepdim=True) - targets
        slope = slope * (share[1] / int(targets.shape[0]))
        logits.gradient = slope.reshape(logits.value.shape).cast(self.dtype).contiguous()
        while self.notes:
            self.notes.pop()()
        counters.assign(counters + 1)
        Tensor.realize(loss, values, counters, *self.written)
        return loss, values

    # The network, part by part, as in `tinygmf.model` and `tinygmf.gma`

    def features(self, pictures: Tensor) -> Map:
        """Pictures (B, 3, H, W) -> the average of the last map (B, 1, 1, D4)."""
        x = Map(pictures.permute(0, 2, 3, 1).cast(self.dtype).contiguous())
        for i in (1, 2):
            name = f"conv_stem.proj{i}"
            x = self.convolve(x, f"{name}.weight", f"{name}.bias", size=3, stride=2, first=i == 1)
            x = self.batchnorm(x, f"conv_stem.norm{i}")
        number = 0
        for stage, depth in enumerate(self.config.serial_depths):
            name = f"patch_embed_layers.{stage}"
            conv = f"{name}.proj.conv1.weight"
            x = self.convolve(x, conv, size=3, stride=1 if stage == 0 else 2, depthwise=True)
            x = self.convolve(x, f"{name}.proj.pointwise_conv.weight")
            x = self.batchnorm(x, f"{name}.norm")
            rates = self.config.drop_path_rates()[stage]
            for i in range(depth):
                rows = (number, number + 1) if rates[i] else (None, None)
                x = self.block(x, f"groupmixformer_backbone.{stage}.gma_stage.{i}", rows)
                number += 2
        return self.average(self.batchnorm(x, "norm4", act=False))

    def block(self, x: Map, name: str, rows: tuple[int | None, int | None]) -> Map:
        cpe = f"{name}.cpe.proj.weight", f"{name}.cpe.proj.bias"
        x = self.convolve(x, *cpe, size=3, depthwise=True, plus=x)
        y = self.layernorm(x, f"{name}.norm1", eps=1e-6)
        joined = self.attention(y, f"{name}.att")
        proj = f"{name}.att.proj"
        x = self.branch(x, joined, f"{proj}.weight", f"{proj}.bias", rows[0])
        y = self.layernorm(x, f"{name}.norm2", eps=1e-6)
        y = self.gelu(self.convolve(y, f"{name}.mlp.fc1.weight", f"{name}.mlp.fc1.bias"))
        return self.branch(x, y, f"{name}.mlp.fc2.weight", f"{name}.mlp.fc2.bias", rows[1])

    def attention(self, y: Map, name: str) -> Map:
        """Normalised tokens -> heads and non-attention branch side by side, before `proj`."""
        segment = y.channels // 5
        qkv = self.convolve(y, f"{name}.qkv.weight", f"{name}.qkv.bias")  # query, key, value: 3D
        mixed = self.aggregate(qkv, f"{name}.aggregator", segment)  # (B, H, W, 3 * 4D/5)
        joined = Map(self.new(*y.value.shape))
        self.attend(mixed, joined, f"{name}.crpe", segment)
        self.untouched(qkv, joined, f"{name}.aggregator.agg0", segment)
        return joined

    # Layers: each adds its way back to the notes

    def convolve(
        self,
        x: Map,
        weight: str,
        bias: str | None = None,
        size: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        plus: Map | None = None,
        first: bool = False,
    ) -> Map:
        """A convolution, or with `size` 1 a product; `plus`, which may be x itself, is added to it.
        `first`: x needs no gradient."""
        batch, height, width, depth = map(int, x.value.shape)
        forward: Kernel = products.dense
        learner: Kernel = products.dense_weight
        shape: tuple[int, ...] = (size, size, depth, -1)
        if depthwise:
            forward, learner = products.depthwise, products.depthwise_weight
            shape = (size, size, depth)
        w = self.weights[weight].reshape(shape)
        columns = int(w.shape[-1])
        inputs = [x.value, w]
        inputs += [self.weights[bias]] if bias else []
        inputs += [plus.value] if plus else []
        empty = self.new(batch, -(-height // stride), -(-width // stride), columns)
        options = {"bias": bool(bias), "plus": bool(plus), "stride": stride}
        out = Map(run(forward, empty, *inputs, **options))

        def back() -> None:
            g = out.gradient
            if plus:
                self.pass_on(plus, g)
            self.learn(learner, weight, tuple(w.shape), x.value, g, stride=stride)
            if bias:
                self.learn(products.column_sum, bias, (columns,), g)
            if not first:
                kernel = w if depthwise else self.transposed(w)
                self.give(x, forward, g, kernel, back=True, stride=stride)

        self.notes.append(back)
        return out

    def branch(self, x: Map, y: Map, weight: str, bias: str, row: int | None) -> Map:
        """x + the product of y, times stochastic depth's factors if it has any."""
        if row is None:
            return self.convolve(y, weight, bias, plus=x)
        product = self.convolve(y, weight, bias)
        scaled = self.new(*x.value.shape)
        value = run(products.scale, scaled, product.value, self.factors, x.value, number=row)
        out = Map(value)

        def back() -> None:
            self.pass_on(x, out.gradient)
            g = self.new(*x.value.shape)
            product.gradient = run(products.scale, g, out.gradient, self.factors, number=row)

        self.notes.append(back)
        return out

    def batchnorm(self, x: Map, name: str, act: bool = True) -> Map:
        """BatchNorm by the batch's own statistics, whose moving averages it moves; Hardswish."""
        affine = self.weights[name].reshape(2, -1)
        found, running = self.numbers(*affine.shape), self.running[name].reshape(affine.shape)
        outputs = [self.new(*x.value.shape), found, running]
        value, found, running = run_all(
            norms.batchnorm, outputs, x.value, affine, eps=1e-5, act=act
        )
        self.written.append(running)
        out = Map(value)

        def back() -> None:
            assert out.gradient is not None
            outputs = [self.new(*x.value.shape), self.gradients[name].reshape(affine.shape)]
            known = x.value, out.gradient, affine, found, self.share
            x.gradient, learned = run_all(norms.batchnorm_back, outputs, *known, act=act)
            self.written.append(learned)

        self.notes.append(back)
        return out

    def layernorm(self, x: Map, name: str, eps: float, out: Map | None = None, to: int = 0) -> Map:
        """LayerNorm; with `out` Hardswish follows, and the result goes there, from `to` on."""
        affine, act = self.weights[name].reshape(2, -1), out is not None
        result = out or Map(self.new(*x.value.shape))
        found = self.numbers(x.value.numel() // x.channels, 2)
        outputs = [result.value, found]
        result.value, found = run_all(
            norms.layernorm, outputs, x.value, affine, eps=eps, act=act, to=to
        )

        def back() -> None:
            known = x.value, result.gradient, affine, found
            self.learn(norms.layernorm_weight, name, tuple(affine.shape), *known, act=act, at=to)
            self.give(x, norms.layernorm_back, *known, act=act, at=to)

        self.notes.append(back)
        return result

    def gelu(self, x: Map) -> Map:
        out = Map(run(apply_loops, self.new(*x.value.shape), x.value, function=values.gelu))

        def back() -> None:
            x.gradient = run(
                norms.slope,
                self.new(*x.value.shape),
                x.value,
                out.gradient,
                function=values.gelu_slope,
            )

        self.notes.append(back)
        return out

    def average(self, x: Map) -> Map:
        batch, height, width, channels = x.value.shape
        out = Map(x.value.float().mean((1, 2), keepdim=True).cast(self.dtype).contiguous())

        def back() -> None:
            assert out.gradient is not None
            even = out.gradient * (1 / (height * width))
            x.gradient = even.expand(batch, height, width, channels).contiguous()

        self.notes.append(back)
        return out

    def aggregate(self, qkv: Map, name: str, segment: int) -> Map:
        """Query, key and value (B, H, W, 3 * D) -> their tokens and group proxies, each 4D/5."""
        batch, height, width, _ = qkv.value.shape
        sizes = 3, 5, 7
        windows = [
            self.weights[f"{name}.agg{i}.conv1.weight"].reshape(size, size, segment)
            for i, size in enumerate(sizes, 1)
        ]
        points = self.weights[f"{name}.pointwise_conv"].reshape(len(sizes), segment, segment)

        around = Map(self.new(batch, height, width, QKV * 3 * segment))
        for i, w in enumerate(windows):
            place = {"channel": (i + 1) * segment, "to": i * segment}
            around.value = run(products.depthwise, around.value, qkv.value, w, parts=QKV, **place)
        before = Map(self.new(batch, height, width, QKV * 4 * segment))
        before.value = run(products.copy, before.value, qkv.value, channels=segment, parts=QKV)
        before.value = run(
            products.dense, before.value, around.value, points, parts=QKV, to=segment
        )

        def back() -> None:
            g = before.gradient
            self.give_part(qkv, 0, products.copy, g, channels=segment, parts=QKV)
            shape = tuple(points.shape)
            known = around.value, g
            self.learn(
                products.dense_weight,
                f"{name}.pointwise_conv",
                shape,
                *known,
                parts=QKV,
                at=segment,
            )
            swapped = self.transposed(points)
            self.give(around, products.dense, g, swapped, back=True, parts=QKV, channel=segment)
            for i, w in enumerate(windows):
                here, inner = (i + 1) * segment, i * segment
                self.learn(
                    products.depthwise_weight,
                    f"{name}.agg{i + 1}.conv1.weight",
                    tuple(w.shape),
                    *(qkv.value, around.gradient),
                    parts=QKV,
                    channel=here,
                    at=inner,
                )
                known = around.gradient, w
                self.give_part(
                    qkv, here, products.depthwise, *known, parts=QKV, channel=inner, back=True
                )

        self.notes.append(back)
        return self.batchnorm(before, f"{name}.norm")

    def untouched(self, qkv: Map, joined: Map, name: str, segment: int) -> None:
        """The non-attention branch, to the last D/5 channels of `joined`."""
        batch, height, width, _ = qkv.value.shape
        weight, here = f"{name}.conv.conv1.weight", 4 * segment
        w = self.weights[weight].reshape(3, 3, QKV, segment)
        around = Map(self.new(batch, height, width, QKV * segment))
        around.value = run(products.depthwise, around.value, qkv.value, w, parts=QKV, channel=here)

        def back() -> None:
            g = around.gradient
            known = qkv.value, g
            self.learn(
                products.depthwise_weight, weight, tuple(w.shape), *known, parts=QKV, channel=here
            )
            self.give_part(qkv, here, products.depthwise, g, w, parts=QKV, back=True)

        self.notes.append(back)
        point = self.convolve(around, f"{name}.conv.pointwise_conv.weight")
        self.layernorm(point, f"{name}.norm", eps=1e-5, out=joined, to=here)

    def attend(self, mixed: Map, joined: Map, name: str, segment: int) -> None:
        """Linear attention and `crpe`, to the first 4D/5 channels of `joined`.

        The heads' small products are blocks of one, whose other blocks are cleared.
        """
        batch, height, width, _ = mixed.value.shape
        wide, tokens = 4 * segment, int(height) * int(width)
        head = {"head_dim": segment // 2, "scale": (5 * segment // NUM_HEADS) ** -0.5}
        keys, values = wide, 2 * wide  # where they begin; the queries begin at 0
        flat = mixed.value.reshape(batch, tokens, QKV * wide)
        soft = run(softmax_loops, self.new(batch, tokens, wide), flat, channel=keys)

        def outer(x: Tensor, y: Tensor, channel: int = 0, at: int = 0) -> Tensor:
            out = self.numbers(int(batch), wide, wide)
            product = run(attention.outer, out, x, y, channel=channel, at=at, **head)
            return product.reshape(batch, 1, 1, wide, wide)

        around = self.new(batch, height, width, wide)
        bias, convs, start = self.weights[f"{name}.bias"], [], 0
        for i, (size, heads) in enumerate(ConvRelPosEnc.KERNELS):
            weight, count = f"{name}.conv_list.{i}.weight", heads * segment // 2
            w = self.weights[weight].reshape(size, size, count)
            place = {"channel": values + start, "to": start, "first": start}
            around = run(products.depthwise, around, mixed.value, w, bias, bias=True, **place)
            convs.append((weight, w, start))
            start += count
        context = outer(soft, mixed.value, at=values)
        joined.value = run(products.dense, joined.value, mixed.value, context, around, times=True)

        def back() -> None:
            g = joined.gradient
            assert g is not None
            swapped = outer(mixed.value, soft, channel=values)
            inputs = g, swapped, around
            self.give_part(mixed, 0, products.dense, *inputs, back=True, times=True)
            learned, swapped = outer(mixed.value, g), outer(g, mixed.value)
            soft_map = Map(soft.reshape(batch, height, width, wide))
            self.give(soft_map, products.dense, mixed.value, swapped, back=True, channel=values)
            assert soft_map.gradient is not None
            inward = soft_map.gradient.reshape(batch, tokens, wide)
            self.give_part(mixed, keys, attention.softmax_back, soft, inward)
            self.give_part(mixed, values, products.dense, soft_map.value, learned, back=True)

            spread = run(products.product, self.new(batch, height, width, wide), mixed.value, g)
            self.learn(products.column_sum, f"{name}.bias", (wide,), spread)
            for weight, w, start in convs:
                place = {"channel": values + start, "at": start}
                shape = tuple(w.shape)
                self.learn(products.depthwise_weight, weight, shape, mixed.value, spread, **place)
                options = {"back": True, "channel": start, "adding": True}
                self.give_part(mixed, values + start, products.depthwise, spread, w, **options)

        self.notes.append(back)

    # Tensors

    def new(self, *shape: int) -> Tensor:
        return Tensor.invalids(*shape, dtype=self.dtype, device=self.device)

    def numbers(self, *shape: int) -> Tensor:
        """For what stays float32 in every precision."""
        return Tensor.invalids(*shape, dtype=dtypes.float32, device=self.device)

    @property
    def device(self) -> str:
        return str(self.factors.device)

    def transposed(self, weight: Tensor) -> Tensor:
        """A weight with its last two axes swapped."""
        *outer, depth, columns = weight.shape
        return run(products.transpose, self.numbers(*outer, columns, depth), weight)

    def learn(
        self,
        kernel: Kernel,
        name: str,
        shape: tuple[int, ...],
        *inputs: Tensor | None,
        **options: object,
    ) -> None:
        """The gradient of a weight: the kernel adds to what is there, times `share[0]`."""
        out = self.gradients[name].reshape(shape)
        self.written.append(run(kernel, out, *present(inputs), self.share, **options))

    def pass_on(self, x: Map, gradient: Tensor | None) -> None:
        """x was added to what has this gradient; every other use of x adds its share later."""
        assert x.gradient is None
        x.gradient = gradient

    def give(self, x: Map, kernel: Kernel, *inputs: Tensor | None, **options: object) -> None:
        """The gradient of a whole map: what there is, and what the kernel computes."""
        there = [] if x.gradient is None else [x.gradient]
        if there:
            options["plus"] = True
        x.gradient = run(kernel, self.new(*x.value.shape), *present(inputs), *there, **options)

    def give_part(
        self, x: Map, to: int, kernel: Kernel, *inputs: Tensor | None, **options: object
    ) -> None:
        """The gradient of some of a map's channels, from `to` on."""
        out = self.new(*x.value.shape) if x.gradient is None else x.gradient
        x.gradient = run(kernel, out, *present(inputs), to=to, **options)


def present(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The tensors, all of which must be there."""
    found = [tensor for tensor in tensors if tensor is not None]
    assert len(found) == len(tensors)
    return found
