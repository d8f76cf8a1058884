"""The gradient of a batch in loop nests, forward and backward written out, for the CPU device.

tinygrad's own plan of this gradient has some 600 kernels, each of which it takes a tenth of a
second to lower; this one has half as many, lowered in milliseconds each, and runs several times as
fast. It is made for the published form of the network; `tinygmf.training.gradient` is the same for
any device and any ablation, and the tests hold the two together.

Here stand the network and the parts of its attention that are no layers of one map; `tape` has the
layers, and runs the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from tinygmf.config import NUM_HEADS, GroupMixFormerConfig
from tinygmf.gma import ConvRelPosEnc, attention_scale
from tinygmf.loops import attention as attention_loops
from tinygmf.loops import products, windows
from tinygmf.loops.calls import run
from tinygmf.loops.inference import softmax_loops
from tinygmf.loops.nest import Channels
from tinygmf.loops.tiles import blocks_of
from tinygmf.training.gradient import cross_entropy
from tinygmf.training.state import Layout
from tinygmf.training.tape import Map, Tape

QKV = 3  # query, key and value lie side by side in the channels of a map
GROUPS = 3, 5, 7  # sides of the groups that become proxies
FULL = 32  # channels: of fewer clang makes no vectors


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
        groups, running = self.layout.weights.groups, self.layout.statistics.groups
        tape = Tape(
            dict(zip(groups, weights, strict=True)),
            dict(zip(groups, gradient, strict=True)),
            dict(zip(running, statistics, strict=True)),
            share,
            factors,
            self.dtype,
        )
        output = tape.convolve(features(tape, self.config, pictures), "head")
        logits = output.value.float().reshape(targets.shape)
        loss = cross_entropy(logits, targets)
        slope = logits.softmax() * targets.sum(1, keepdim=True) - targets
        slope = slope * (share[1] / int(targets.shape[0]))
        output.gradient = slope.reshape(output.value.shape).cast(self.dtype).contiguous()
        tape.run_backward()
        counters.assign(counters + 1)
        Tensor.realize(loss, logits, counters, *tape.written)
        return loss, logits


# The network, part by part, as in `tinygmf.model` and `tinygmf.gma`


def features(tape: Tape, config: GroupMixFormerConfig, pictures: Tensor) -> Map:
    """Pictures (B, 3, H, W) -> the average of the last map (B, 1, 1, D4)."""
    return tape.average(tape.batchnorm(stages(tape, config, pictures)[-1], "norm4", act=False))


def stages(tape: Tape, config: GroupMixFormerConfig, pictures: Tensor) -> list[Map]:
    """Pictures (B, 3, H, W) -> the four maps (B, h, w, D_i). Each may have further uses, whose
    gradients come first on the way back."""
    maps = []
    channels_last = pictures.permute(0, 2, 3, 1).cast(tape.dtype).contiguous()
    x = Map(channels_last, needs_gradient=False)
    for i in (1, 2):
        x = tape.convolve(x, f"conv_stem.proj{i}", size=3, stride=2)
        x = tape.batchnorm(x, f"conv_stem.norm{i}")
    number = 0
    for stage, depth in enumerate(config.serial_depths):
        name = f"patch_embed_layers.{stage}"
        stride = 1 if stage == 0 else 2
        x = tape.convolve(x, f"{name}.proj.conv1", size=3, stride=stride, depthwise=True)
        x = tape.convolve(x, f"{name}.proj.pointwise_conv")
        x = tape.batchnorm(x, f"{name}.norm")
        rates = config.drop_path_rates()[stage]
        for i in range(depth):
            rows = (number, number + 1) if rates[i] else (None, None)
            x = block(tape, x, f"groupmixformer_backbone.{stage}.gma_stage.{i}", rows)
            number += 2
        maps.append(x)
    return maps


def block(tape: Tape, x: Map, name: str, rows: tuple[int | None, int | None]) -> Map:
    """Position, attention, MLP; `rows` are those of stochastic depth's factors, if it has any."""
    x = tape.convolve(x, f"{name}.cpe.proj", size=3, depthwise=True, plus=x)
    y = tape.layernorm(x, f"{name}.norm1", eps=1e-6)
    x = tape.branch(x, attention(tape, y, f"{name}.att"), f"{name}.att.proj", rows[0])
    y = tape.layernorm(x, f"{name}.norm2", eps=1e-6)
    y = tape.gelu(tape.convolve(y, f"{name}.mlp.fc1"))
    return tape.branch(x, y, f"{name}.mlp.fc2", rows[1])


def attention(tape: Tape, y: Map, name: str) -> Map:
    """Normalised tokens -> heads and non-attention branch side by side, before `proj`."""
    segment = y.channels // 5
    qkv = tape.convolve(y, f"{name}.qkv")  # query, key, value: 3D
    mixed = aggregate(tape, qkv, f"{name}.aggregator", segment)  # (B, H, W, 3 * 4D/5)
    joined = Map(tape.new(*y.value.shape))
    attend(tape, mixed, joined, f"{name}.crpe", segment)
    non_attention(tape, qkv, joined, f"{name}.aggregator.agg0", segment)
    return joined


def aggregate(tape: Tape, qkv: Map, name: str, segment: int) -> Map:
    """Query, key and value (B, H, W, 3 * D) -> their tokens and group proxies, each 4D/5."""
    size = qkv.value.shape[:3]
    weights = [
        tape.weights[f"{name}.agg{i}.conv1.weight"].reshape(side, side, segment)
        for i, side in enumerate(GROUPS, 1)
    ]
    points = tape.weights[f"{name}.pointwise_conv"].reshape(len(GROUPS), segment, segment)
    places = [  # of each group in qkv and in `around`, which has no single tokens
        Channels(QKV, read=(i + 1) * segment, write=i * segment) for i in range(len(GROUPS))
    ]
    tokens, proxies = Channels(QKV), Channels(QKV, write=segment)

    around = Map(tape.new(*size, QKV * 3 * segment))
    for w, channels in zip(weights, places, strict=True):
        around.value = run(windows.depthwise, around.value, qkv.value, w, channels=channels)
    before = Map(tape.new(*size, QKV * 4 * segment))
    before.value = run(products.copy, before.value, qkv.value, count=segment, channels=tokens)
    before.value = run(products.dense, before.value, around.value, points, channels=proxies)

    @tape.backward
    def back() -> None:
        g = before.incoming
        tape.write_gradient(qkv, products.copy, g, count=segment, channels=tokens)
        shape = tuple(map(int, points.shape))
        weight, known = f"{name}.pointwise_conv", (around.value, g)
        tape.add_weight_gradient(products.dense_weight, weight, shape, *known, channels=proxies)
        options: dict[str, Any] = {"back": True, "channels": proxies.reversed()}
        tape.add_gradient(around, products.dense, g, tape.transposed(points), **options)
        inner = around.incoming
        for i, (w, channels) in enumerate(zip(weights, places, strict=True), 1):
            weight, shape = f"{name}.agg{i}.conv1.weight", tuple(map(int, w.shape))
            tape.add_weight_gradient(
                windows.depthwise_weight, weight, shape, qkv.value, inner, channels=channels
            )
            options = {"back": True, "channels": channels.reversed()}
            tape.write_gradient(qkv, windows.depthwise, inner, w, **options)

    return tape.batchnorm(before, f"{name}.norm")


def non_attention(tape: Tape, qkv: Map, joined: Map, name: str, segment: int) -> None:
    """The non-attention branch, to the last D/5 channels of `joined`."""
    weight, last = f"{name}.conv.conv1.weight", 4 * segment
    shape, channels = (3, 3, QKV, segment), Channels(QKV, read=last)
    w = tape.weights[weight].reshape(shape)
    around = Map(tape.new(*qkv.value.shape[:3], QKV * segment))
    around.value = run(windows.depthwise, around.value, qkv.value, w, channels=channels)

    @tape.backward
    def back() -> None:
        g = around.incoming
        tape.add_weight_gradient(
            windows.depthwise_weight, weight, shape, qkv.value, g, channels=channels
        )
        options = {"back": True, "channels": channels.reversed()}
        tape.write_gradient(qkv, windows.depthwise, g, w, **options)

    point = tape.convolve(around, f"{name}.conv.pointwise_conv")
    tape.layernorm_into(joined, point, f"{name}.norm", eps=1e-5, to=last)


def attend(tape: Tape, mixed: Map, joined: Map, name: str, segment: int) -> None:
    """Linear attention and `crpe`, to the first 4D/5 channels of `joined`.

    The small products of neighboring heads are blocks of one that fills a vector, whose other
    blocks are cleared.
    """
    batch, height, width, _ = map(int, mixed.value.shape)
    wide, tokens = 4 * segment, height * width
    keys, values = wide, 2 * wide  # where they begin; the queries begin at 0
    blocks = blocks_of(NUM_HEADS, segment // 2, FULL)
    flat = mixed.value.reshape(batch, tokens, QKV * wide)
    soft = run(softmax_loops, tape.new(batch, tokens, wide), flat, channel=keys)

    def outer(x: Tensor, y: Tensor, x_channel: int = 0, y_channel: int = 0) -> Tensor:
        head = {"head_dim": segment // 2, "scale": attention_scale(5 * segment)}
        begin = {"x_channel": x_channel, "y_channel": y_channel}
        out = tape.new_float32(batch, blocks, 1, wide // blocks, wide // blocks)
        return run(attention_loops.outer, out, x, y, **head, **begin)

    around, back_through_crpe = crpe(tape, mixed, name, segment)
    context = outer(soft, mixed.value, y_channel=values)
    joined.value = run(products.dense, joined.value, mixed.value, context, factors=around)

    @tape.backward
    def back() -> None:
        g = joined.incoming
        swapped = outer(mixed.value, soft, x_channel=values)
        tape.write_gradient(mixed, products.dense, g, swapped, factors=around, back=True)
        learned, swapped = outer(mixed.value, g), outer(g, mixed.value)
        soft_map = Map(soft.reshape(batch, height, width, wide))
        options: dict[str, Any] = {"back": True, "channels": Channels(read=values)}
        tape.add_gradient(soft_map, products.dense, mixed.value, swapped, **options)
        inward = soft_map.incoming.reshape(batch, tokens, wide)
        tape.write_gradient(mixed, attention_loops.softmax_back, soft, inward, to=keys)
        options = {"back": True, "channels": Channels(write=values)}
        tape.write_gradient(mixed, products.dense, soft_map.value, learned, **options)
        back_through_crpe(g)


def crpe(
    tape: Tape, mixed: Map, name: str, segment: int
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The convolutions of the values (B, H, W, 4D/5), which the queries are multiplied by; and the
    way back, given the gradient of the heads: a later part of that of `attend`."""
    shape, values = (*mixed.value.shape[:3], 4 * segment), 2 * 4 * segment
    bias, convolutions, start = tape.weights[f"{name}.bias"], [], 0
    around = tape.new(*shape)
    for i, (side, heads) in enumerate(ConvRelPosEnc.KERNELS):
        count = heads * segment // 2
        weight = f"{name}.conv_list.{i}.weight"
        w = tape.weights[weight].reshape(side, side, count)
        channels = Channels(read=values + start, write=start)
        around = run(windows.depthwise, around, mixed.value, w, bias=bias, channels=channels)
        convolutions.append((weight, w, channels))
        start += count

    def back(g: Tensor) -> None:
        spread = run(products.product, tape.new(*shape), mixed.value, g)
        tape.add_weight_gradient(products.column_sum, f"{name}.bias", shape[3:], spread)
        for weight, w, channels in convolutions:
            known, of_weight = (mixed.value, spread), windows.depthwise_weight
            size = tuple(map(int, w.shape))
            tape.add_weight_gradient(of_weight, weight, size, *known, channels=channels)
            options = {"back": True, "adding": True, "channels": channels.reversed()}
            tape.write_gradient(mixed, windows.depthwise, spread, w, **options)

    return around, back
