"""The dense networks folded for inference: the same functions in fewer steps, channels last.

As in `engine/folded.py`, a BatchNorm is folded into the convolution before it. A convolution of
concatenated maps is computed as a sum of one convolution per map. A method that becomes a program
takes all weights as its last argument and otherwise depends only on its inputs and the
configuration, so that the program can be kept without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from tinygmf.dense.maskrcnn import MASK_BINS, DoublingConv, MaskRCNN
from tinygmf.dense.pyramid import ConvModule, adaptive_average
from tinygmf.dense.retinanet import RetinaNet
from tinygmf.dense.segmentation import SegmentationNetwork
from tinygmf.dense.selection import best
from tinygmf.engine.folded import (
    Part,
    fold_linear,
    fold_stages,
    kernels,
    place,
    scale_and_shift,
    stages,
)
from tinygmf.layers import Conv2d, Linear, Module
from tinygmf.loops.inference import apply, dense
from tinygmf.loops.padding import pad
from tinygmf.loops.sampling import best_class, bilinear, double, pool, take
from tinygmf.loops.values import add, add_relu, identity, relu
from tinygmf.weights.checkpoint import state_arrays

Array = np.ndarray
Weights = list[Tensor]
Value = Any


class Folded:
    """What the heads share: weights under their checkpoint names."""

    def __init__(self, model: Any, body: Any, splits: Mapping[str, Sequence[int]], device: str):
        self.config = model.config
        own = Part(state_arrays(body))
        arrays, self.numbers = list(fold_stages(self.config.backbone, own)), {}
        for name, pair in fold_layers(model, body):
            for part, arrays_of_part in split(name, pair, splits.get(name)):
                self.numbers[part] = len(arrays)
                arrays += arrays_of_part
        self.weights = [place(array, dtypes.float32, device) for array in arrays]

    def maps(self, x: Tensor, weights: Weights) -> list[Tensor]:
        """Pictures (B, 3, H, W) -> four maps (B, h, w, D_i)."""
        depths = self.config.backbone.serial_depths
        return list(stages(x, iter(weights), depths, dtypes.float32))

    def conv(
        self,
        weights: Weights,
        name: str,
        x: Tensor,
        epilogue: Callable[..., Value] = identity,
        *others: Tensor,
        stride: int = 1,
    ) -> Tensor:
        """The convolution of this name, padded so that it keeps the map's size or divides it by the
        stride."""
        number = self.numbers[name]
        kernel, bias = weights[number], weights[number + 1]
        size = int(kernel.shape[-4])
        x = pad(x, size // 2) if size > 1 else x
        return dense(x, kernel, bias, others=others, epilogue=epilogue, stride=(stride, stride))

    def conv_of_parts(self, weights: Weights, name: str, parts: Sequence[Tensor]) -> Tensor:
        """The convolution, then ReLU, of maps that the network concatenates."""
        total = self.conv(weights, f"{name}#0", parts[0])
        for i, x in enumerate(parts[1:-1], start=1):
            total = self.conv(weights, f"{name}#{i}", x, add, total)
        return self.conv(weights, f"{name}#{len(parts) - 1}", parts[-1], add_relu, total)

    def top_down(
        self, weights: Weights, lateral: str, smooth: str, maps: Sequence[Tensor]
    ) -> list[Tensor]:
        """A pyramid, built as `pyramid.top_down` does; `{}` in the names stands for the level."""
        last = len(maps) - 1
        sums = [self.conv(weights, lateral.format(last), maps[last])]
        for i in range(last - 1, -1, -1):
            coarser = double(sums[0], size_of(maps[i]))
            sums.insert(0, self.conv(weights, lateral.format(i), maps[i], add, coarser))
        return [self.conv(weights, smooth.format(i), x) for i, x in enumerate(sums)]


def size_of(x: Tensor) -> tuple[int, int]:
    """(H, W) of a map with the channels last."""
    return int(x.shape[1]), int(x.shape[2])


def twice(x: Tensor) -> tuple[int, int]:
    return 2 * int(x.shape[1]), 2 * int(x.shape[2])


class FoldedSegmentation(Folded):
    """A `SegmentationNetwork`: pictures (B, 3, H, W) -> logits (B, ceil(H/4), ceil(W/4), K)."""

    def __init__(self, model: SegmentationNetwork, device: str) -> None:
        config = model.config
        last, channels = config.backbone.embedding_dims[-1], config.channels
        splits = {
            "decode_head.bottleneck": (last, *[channels] * len(config.pool_scales)),
            "decode_head.fpn_bottleneck": (channels,) * 4,
        }
        super().__init__(model, model.backbone, splits, device)

    def logits(self, x: Tensor, weights: Weights) -> Tensor:
        head = {"upernet": self.upernet, "semantic_fpn": self.semantic_fpn}[self.config.head]
        return self.conv(weights, "decode_head.conv_seg", head(self.maps(x, weights), weights))

    def classes(self, x: Tensor, weights: Weights) -> Tensor:
        """Pictures (B, 3, H, W) -> the class of each pixel (B, H, W) int32."""
        return best_class(self.logits(x, weights), (int(x.shape[2]), int(x.shape[3])))

    def upernet(self, maps: list[Tensor], weights: Weights) -> Tensor:
        head = "decode_head"
        parts = [maps[3]]
        for i, bins in enumerate(self.config.pool_scales):
            averages = adaptive_average(maps[3].permute(0, 3, 1, 2), bins)
            averages = averages.permute(0, 2, 3, 1).contiguous()
            averages = self.conv(weights, f"{head}.psp_modules.{i}.1", averages, relu)
            parts.append(bilinear(averages, size_of(maps[3])))
        sums = [self.conv_of_parts(weights, f"{head}.bottleneck", parts)]
        for i in (2, 1, 0):
            lateral = self.conv(weights, f"{head}.lateral_convs.{i}", maps[i], relu)
            sums.insert(0, bilinear(sums[0], size_of(maps[i]), lateral))
        levels = [self.conv(weights, f"{head}.fpn_convs.{i}", sums[i], relu) for i in range(3)]
        size = size_of(maps[0])
        coarser = [bilinear(x, size) for x in (*levels[1:], sums[3])]
        return self.conv_of_parts(weights, f"{head}.fpn_bottleneck", [levels[0], *coarser])

    def semantic_fpn(self, maps: list[Tensor], weights: Weights) -> Tensor:
        lateral, smooth = "neck.lateral_convs.{}.conv", "neck.fpn_convs.{}.conv"
        levels = self.top_down(weights, lateral, smooth, maps)
        head = "decode_head.scale_heads"
        total = self.conv(weights, f"{head}.0.0", levels[0], relu)
        for i in (1, 2, 3):
            x = levels[i]
            for j in range(i):
                x = self.conv(weights, f"{head}.{i}.{2 * j}", x, relu)
                if j < i - 1:
                    x = bilinear(x, twice(x))
            size = size_of(total)
            x = x if twice(x) == size else bilinear(x, twice(x))  # an odd size takes two steps
            total = bilinear(x, size, total)
        return total


class FoldedRetinaNet(Folded):
    """A folded `RetinaNet`, which returns `topk` anchors of each level."""

    def __init__(self, model: RetinaNet, topk: int, device: str) -> None:
        super().__init__(model, model.backbone.body, {}, device)
        self.topk = topk

    def pyramid(self, x: Tensor, weights: Weights) -> list[Tensor]:
        lateral, smooth = "backbone.fpn.inner_blocks.{}.0", "backbone.fpn.layer_blocks.{}.0"
        maps = self.maps(x, weights)[1:]
        levels = self.top_down(weights, lateral, smooth, maps)
        source = levels[-1] if self.config.p6_channels == self.config.channels else maps[-1]
        p6 = self.conv(weights, "backbone.fpn.extra_blocks.p6", source, stride=2)
        p7 = self.conv(weights, "backbone.fpn.extra_blocks.p7", apply(relu, p6), stride=2)
        return [*levels, p6, p7]

    def candidates(self, x: Tensor, weights: Weights) -> tuple[Tensor, ...]:
        """For each level the indices of anchors (B, k) int32, their class logits (B, k, K) and
        deltas (B, k, 4). The `topk` best pairs of anchor and class are always among the `topk`
        anchors with the best class."""
        found: list[Tensor] = []
        for level in self.pyramid(x, weights):
            logits = self.head(weights, "classification_head", "cls_logits", level)
            deltas = self.head(weights, "regression_head", "bbox_reg", level)
            logits = logits.reshape(x.shape[0], -1, self.config.num_classes)
            deltas = deltas.reshape(x.shape[0], -1, 4)
            found += choose(logits.max(2), self.topk, logits, deltas)
        return tuple(found)

    def head(self, weights: Weights, name: str, last: str, x: Tensor) -> Tensor:
        for i in range(self.config.num_convs):
            x = self.conv(weights, f"head.{name}.conv.{i}.0", x, relu)
        return self.conv(weights, f"head.{name}.{last}", x)


def choose(scores: Tensor, topk: int, *values: Tensor) -> list[Tensor]:
    """The places of the `topk` best scores (B, N), or of all if there are fewer, and what each of
    `values` (B, N, C) holds there: (B, k), then (B, k, C) each."""
    batch, n = map(int, scores.shape)
    if n <= topk:
        places = Tensor.arange(n).reshape(1, n).expand(batch, n).cast(dtypes.int32)
        return [(places + (scores * 0).cast(dtypes.int32)).contiguous(), *values]
    places = best(scores.contiguous(), topk)
    rows = (places + Tensor.arange(batch).reshape(batch, 1) * n).cast(dtypes.int32).contiguous()
    chosen = [take(x.reshape(batch * n, -1), rows.reshape(-1)) for x in values]
    return [places, *(x.reshape(batch, topk, -1) for x in chosen)]


class FoldedMaskRCNN(Folded):
    """A folded `MaskRCNN`, as three programs: `candidates`, `boxes`, `masks`."""

    def __init__(self, model: MaskRCNN, topk: int, device: str) -> None:
        super().__init__(model, model.backbone.body, {}, device)
        self.topk = topk

    def candidates(self, x: Tensor, weights: Weights) -> tuple[Tensor, ...]:
        """The four finest levels concatenated (places, channels), for `pool`; then for each of five
        levels the `topk` anchors with the highest objectness: their indices (B, k) int32,
        objectness (B, k, 1), deltas (B, k, 4)."""
        lateral, smooth = "backbone.fpn.inner_blocks.{}.0", "backbone.fpn.layer_blocks.{}.0"
        levels = self.top_down(weights, lateral, smooth, self.maps(x, weights))
        batch = int(x.shape[0])
        flat = [level.reshape(batch, -1, level.shape[3]) for level in levels]
        found = [Tensor.cat(*flat, dim=1).reshape(-1, self.config.channels).contiguous()]
        for level in (*levels, levels[-1][:, ::2, ::2].contiguous()):
            for i in range(self.config.rpn_convs):
                level = self.conv(weights, f"rpn.head.conv.{i}.0", level, relu)
            scores = self.conv(weights, "rpn.head.cls_logits", level).reshape(batch, -1, 1)
            deltas = self.conv(weights, "rpn.head.bbox_pred", level).reshape(batch, -1, 4)
            found += choose(scores.squeeze(2), self.topk, scores, deltas)
        return tuple(found)

    def boxes(self, flat: Tensor, lookups: list[Tensor], weights: Weights) -> tuple[Tensor, ...]:
        """For n boxes: class logits (n, K) and deltas (n, 4 K)."""
        bins, heads = self.config.box_bins, "roi_heads"
        x = pool(flat, lookups[:2], lookups[2:], bins)
        x = x.reshape(1, 1, x.shape[0], -1)  # a row for each box
        x = self.conv(weights, f"{heads}.box_head.fc6", x, relu)
        x = self.conv(weights, f"{heads}.box_head.fc7", x, relu)
        logits = self.conv(weights, f"{heads}.box_predictor.cls_score", x)
        deltas = self.conv(weights, f"{heads}.box_predictor.bbox_pred", x)
        return logits.reshape(x.shape[2], -1), deltas.reshape(x.shape[2], -1)

    def masks(self, flat: Tensor, lookups: list[Tensor], weights: Weights) -> Tensor:
        """For n boxes: mask logits of every class (n, 28, 28, K)."""
        x = pool(flat, lookups[:2], lookups[2:], MASK_BINS)
        for i in range(len(self.config.mask_channels)):
            x = self.conv(weights, f"roi_heads.mask_head.{i}.0", x, relu)
        x = self.conv(weights, "roi_heads.mask_predictor.conv5_mask", x, relu)
        n, height, width, _ = x.shape
        x = x.reshape(n, height, width, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, 2 * height, 2 * width, -1).contiguous()
        return self.conv(weights, "roi_heads.mask_predictor.mask_fcn_logits", x)


# Folding


def fold_layers(model: Module, body: Module) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """Kernel (kh, kw, in, out) and bias, by name, of every layer behind the backbone, except for
    the auxiliary head, which is only for training."""
    done = {id(module) for _, module in body.named_modules()}
    network = Part(state_arrays(model))
    for name, layer in model.named_modules():
        if id(layer) in done or name.startswith("auxiliary_head"):
            continue
        own = network.below(name)
        if isinstance(layer, ConvModule):
            scale, shift = scale_and_shift(own.below("bn"))
            done |= {id(layer.conv), id(layer.bn)}
            yield name, (kernels(own.below("conv")) * scale, shift)
        elif isinstance(layer, Conv2d):
            yield name, (kernels(own), own["bias"])
        elif isinstance(layer, Linear):
            yield name, fold_product(own, name, model)
        elif isinstance(layer, DoublingConv):
            weight = own["weight"].transpose(0, 2, 3, 1)  # (in, 2, 2, out)
            matrix = weight.reshape(1, 1, len(weight), -1)
            yield name, (matrix, np.tile(own["bias"], 4))


def fold_product(own: Part, name: str, model: Any) -> tuple[Array, Array]:
    """A product's matrix; the rows of the first one on pooled features are put into channels-last
    order."""
    matrix, bias = fold_linear(own)
    if name.endswith("fc6"):
        rows = matrix.reshape(model.config.channels, -1, matrix.shape[3])
        matrix = rows.transpose(1, 0, 2).reshape(matrix.shape)
    return matrix, bias


def split(
    name: str, pair: tuple[Array, Array], widths: Sequence[int] | None
) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """One kernel for each of the concatenated maps, `name#0` and so on; the first has the bias."""
    if widths is None:
        yield name, pair
        return
    kernel, bias = pair
    parts = np.split(kernel, np.cumsum(widths)[:-1], axis=2)
    for i, part in enumerate(parts):
        yield f"{name}#{i}", (part, bias if i == 0 else np.zeros_like(bias))
