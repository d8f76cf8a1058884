"""The gradient of a dense network's losses in loop nests, for the CPU device.

The backbone is the one `LoopGradient` trains; its four maps receive gradients from the heads. The
heads are those of `tinygmf.dense`, forward and backward on the same tape. Only the losses are
tinygrad expressions, because their inputs are small.
"""

from __future__ import annotations

from typing import Any

from tinygrad import Tensor

from tinygmf.dense.losses import (
    box_losses,
    mask_loss,
    retinanet_losses,
    rpn_losses,
)
from tinygmf.dense.maskrcnn import MASK_BINS, MaskRCNNConfig
from tinygmf.dense.retinanet import RetinaNetConfig
from tinygmf.dense.segmentation import AUXILIARY_STAGE, SegmentationConfig
from tinygmf.loops.calls import run_all
from tinygmf.loops.losses import cross_entropy
from tinygmf.training.dense_layers import DenseTape, size_of, twice
from tinygmf.training.gradient_loops import stages
from tinygmf.training.state import Layout
from tinygmf.training.tape import Map

AUXILIARY_WEIGHT = 0.4  # of its loss, as in mmsegmentation
DETECTOR_BODY = "backbone.body."
Tensors = list[Tensor]


class DenseGradient:
    """Forward and backward pass of one batch. It accumulates the gradient as `LoopGradient` does
    and returns the losses, their sum first. A network's targets are its last arguments.

    The names of the backbone's weights begin with `prefix`.
    """

    prefix: str

    def __init__(self, config: Any, layout: Layout) -> None:
        config.backbone.require_published_form("training a dense network")
        self.config, self.layout = config, layout

    def __call__(
        self,
        weights: Tensors,
        gradient: Tensors,
        statistics: Tensors,
        counters: Tensor,
        share: Tensor,
        pictures: Tensor,
        factors: Tensor,
        *known: Tensor,
    ) -> Tensor:
        tape = self.tape(weights, gradient, statistics, share, factors)
        losses = self.losses(tape, pictures, *known)
        tape.run_backward()
        counters.assign(counters + 1)
        found = Tensor.stack(sum(losses[1:], losses[0]), *losses).contiguous()
        Tensor.realize(found, counters, *tape.written)
        return found

    def tape(
        self,
        weights: Tensors,
        gradient: Tensors,
        statistics: Tensors,
        share: Tensor,
        factors: Tensor,
    ) -> DenseTape:
        """An empty tape that names the backbone's weights as a classification network does."""
        pieces = self.layout.weights, self.layout.weights, self.layout.statistics
        named, gradients, running = (
            dict(zip((name.removeprefix(self.prefix) for name in part.groups), own, strict=True))
            for part, own in zip(pieces, (weights, gradient, statistics), strict=True)
        )
        return DenseTape(named, gradients, running, share, factors)

    def losses(self, tape: DenseTape, pictures: Tensor, *known: Tensor) -> Tensors:
        raise NotImplementedError


def ask(tape: DenseTape, loss: Tensor, *outputs: Map) -> None:
    """Set the gradients of the network's outputs."""
    slopes = (loss * tape.share[1]).gradient(*(x.value for x in outputs))
    for x, slope in zip(outputs, slopes, strict=True):
        x.gradient = slope.contiguous()


class SegmentationGradient(DenseGradient):
    """Targets: the class of every pixel, (B, S, S) int32, then the dropout factors before each
    classification layer, (B, 1, 1, channels) of 0 or 1 / (1 - ratio), the auxiliary head's last."""

    prefix = "backbone."
    config: SegmentationConfig

    def losses(self, tape: DenseTape, pictures: Tensor, *known: Tensor) -> Tensors:
        labels, kept, *others = known
        maps = stages(tape, self.config.backbone, pictures)
        head = {"upernet": self.upernet, "semantic_fpn": semantic_fpn}[self.config.head]
        losses = [self.classify(tape, head(tape, maps), "decode_head", kept, labels, 1.0)]
        if self.config.auxiliary is not None:
            x, weight = self.auxiliary(tape, maps[AUXILIARY_STAGE]), AUXILIARY_WEIGHT
            losses.append(self.classify(tape, x, "auxiliary_head", others[0], labels, weight))
        return losses

    def classify(
        self, tape: DenseTape, x: Map, head: str, kept: Tensor, labels: Tensor, weight: float
    ) -> Tensor:
        """The last 1x1 convolution, resized to the picture, and the loss."""
        x = tape.weigh(x, kept) if self.config.dropout_ratio else x
        height, width = map(int, labels.shape[1:])
        logits = tape.resize(tape.convolve(x, f"{head}.conv_seg"), (height, width))
        outputs = [tape.new(*logits.value.shape), tape.new_float32(*labels.shape)]
        slope, losses = run_all(cross_entropy, outputs, logits.value, labels)
        count = ((labels >= 0) & (labels < logits.channels)).sum().cast(losses.dtype).maximum(1)
        logits.gradient = (slope * (weight * tape.share[1] / count)).contiguous()
        return weight * losses.sum() / count

    def upernet(self, tape: DenseTape, maps: list[Map]) -> Map:
        head = "decode_head"
        parts = [maps[3]]
        for i, bins in enumerate(self.config.pool_scales):
            averages = tape.adaptive_average(maps[3], bins)
            parts.append(tape.conv_module(averages, f"{head}.psp_modules.{i}.1", 1))
        sums = [tape.conv_module(tape.side_by_side(parts), f"{head}.bottleneck")]
        for i in (2, 1, 0):
            lateral = tape.conv_module(maps[i], f"{head}.lateral_convs.{i}", 1)
            sums.insert(0, tape.resize(sums[0], size_of(maps[i]), lateral))
        levels = [tape.conv_module(sums[i], f"{head}.fpn_convs.{i}") for i in range(3)]
        return tape.conv_module(tape.side_by_side([*levels, sums[3]]), f"{head}.fpn_bottleneck")

    def auxiliary(self, tape: DenseTape, x: Map) -> Map:
        own, y = self.config.auxiliary, x
        assert own is not None
        for i in range(own.num_convs):
            y = tape.conv_module(y, f"auxiliary_head.convs.{i}", own.kernel_size)
        if own.concat_input:
            both = tape.side_by_side([x, y])
            y = tape.conv_module(both, "auxiliary_head.conv_cat", own.kernel_size)
        return y


def semantic_fpn(tape: DenseTape, maps: list[Map]) -> Map:
    levels = tape.top_down("neck.lateral_convs.{}.conv", "neck.fpn_convs.{}.conv", maps)
    head = "decode_head.scale_heads"
    total = tape.conv_module(levels[0], f"{head}.0.0")
    for i in (1, 2, 3):
        x = levels[i]
        for j in range(i):
            x = tape.conv_module(x, f"{head}.{i}.{2 * j}")
            if j < i - 1:
                x = tape.resize(x, twice(x))
        size = size_of(total)
        x = x if twice(x) == size else tape.resize(x, twice(x))  # an odd size takes two steps
        total = tape.resize(x, size, total)
    return total


def feature_pyramid(tape: DenseTape, maps: list[Map]) -> list[Map]:
    """torchvision's pyramid, a level for each map."""
    name = "backbone.fpn."
    return tape.top_down(f"{name}inner_blocks.{{}}.0", f"{name}layer_blocks.{{}}.0", maps)


class RetinaNetGradient(DenseGradient):
    """Targets: `targets.AnchorTargets`, classes (B, anchors) int32, deltas (B, anchors, 4)."""

    prefix = DETECTOR_BODY
    config: RetinaNetConfig

    def losses(self, tape: DenseTape, pictures: Tensor, *known: Tensor) -> Tensors:
        levels = self.pyramid(tape, stages(tape, self.config.backbone, pictures)[1:])
        classes = self.config.num_classes
        logits = self.head(tape, levels, "classification_head", "cls_logits", classes)
        deltas = self.head(tape, levels, "regression_head", "bbox_reg", 4)
        outputs = {"cls_logits": logits.value, "bbox_regression": deltas.value}
        losses = list(retinanet_losses(outputs, *known).values())
        for loss, output in zip(losses, (logits, deltas), strict=True):
            ask(tape, loss, output)
        return losses

    def pyramid(self, tape: DenseTape, maps: list[Map]) -> list[Map]:
        levels, name = feature_pyramid(tape, maps), "backbone.fpn.extra_blocks"
        same = self.config.p6_channels == self.config.channels
        p6 = tape.convolve(levels[-1] if same else maps[-1], f"{name}.p6", 3, stride=2)
        p7 = tape.convolve(tape.relu(p6), f"{name}.p7", 3, stride=2)
        return [*levels, p6, p7]

    def head(self, tape: DenseTape, levels: list[Map], name: str, last: str, values: int) -> Map:
        found = []
        for x in levels:
            for i in range(self.config.num_convs):
                x = tape.conv_relu(x, f"head.{name}.conv.{i}.0")
            found.append(tape.convolve(x, f"head.{name}.{last}", 3))
        return tape.one_after_another(found, values)


class MaskRCNNGradient(DenseGradient):
    """Targets: `targets.RPNTargets` (3); labels (n,), deltas (n, 4) and `roi.Lookups` (4) of the
    sampled proposals; labels (m,), masks (m, 28, 28) and lookups of those with a mask."""

    prefix = DETECTOR_BODY
    config: MaskRCNNConfig

    def propose(
        self, weights: Tensors, statistics: Tensors, pictures: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Objectness (B, anchors, 1) and deltas (B, anchors, 4) as this step's losses see them.

        Updates `statistics` in place: pass a copy.
        """
        tape = self.tape(weights, weights, statistics, factors, factors)
        objectness, deltas = self.rpn(tape, self.pyramid(tape, pictures))
        Tensor.realize(objectness.value, deltas.value)
        return objectness.value, deltas.value

    def losses(self, tape: DenseTape, pictures: Tensor, *known: Tensor) -> Tensors:
        rpn, (labels, goals), boxes = known[:3], known[3:5], known[5:9]
        mask_labels, masks, mask_boxes = known[9], known[10], known[11:15]
        levels = self.pyramid(tape, pictures)
        objectness, deltas = self.rpn(tape, levels)
        flat = tape.one_after_another(levels[:4], self.config.channels)

        first = rpn_losses([objectness.value.squeeze(2)], [deltas.value], *rpn)
        ask(tape, first["loss_objectness"], objectness)
        ask(tape, first["loss_rpn_box_reg"], deltas)
        logits, regression = self.box(tape, tape.pool(flat, boxes, self.config.box_bins))
        shapes = [(int(labels.shape[0]), x.channels) for x in (logits, regression)]
        values = logits.value.reshape(shapes[0]), regression.value.reshape(shapes[1])
        second = box_losses(*values, labels, goals)
        ask(tape, second["loss_classifier"], logits)
        ask(tape, second["loss_box_reg"], regression)
        own = self.mask(tape, tape.pool(flat, mask_boxes, MASK_BINS))
        third = mask_loss(own.value.permute(0, 3, 1, 2), mask_labels, masks)
        ask(tape, third, own)
        return [*first.values(), *second.values(), third]

    def pyramid(self, tape: DenseTape, pictures: Tensor) -> list[Map]:
        levels = feature_pyramid(tape, stages(tape, self.config.backbone, pictures))
        return [*levels, tape.every_second(levels[-1])]

    def rpn(self, tape: DenseTape, levels: list[Map]) -> tuple[Map, Map]:
        scores, deltas = [], []
        for x in levels:
            for i in range(self.config.rpn_convs):
                x = tape.conv_relu(x, f"rpn.head.conv.{i}.0")
            scores.append(tape.convolve(x, "rpn.head.cls_logits"))
            deltas.append(tape.convolve(x, "rpn.head.bbox_pred"))
        return tape.one_after_another(scores, 1), tape.one_after_another(deltas, 4)

    def box(self, tape: DenseTape, pooled: Map) -> tuple[Map, Map]:
        """(n, 7, 7, channels) -> class logits (1, 1, n, K) and deltas (1, 1, n, 4 K)."""
        n, bins, _, channels = map(int, pooled.value.shape)
        x = tape.linear(
            pooled,  # the first layer expects the order channels, rows, columns
            lambda value: value.permute(0, 3, 1, 2).reshape(1, 1, n, -1),
            lambda g: g.reshape(n, channels, bins, bins).permute(0, 2, 3, 1),
        )
        heads = "roi_heads"
        x = tape.conv_relu(x, f"{heads}.box_head.fc6", 1)
        x = tape.conv_relu(x, f"{heads}.box_head.fc7", 1)
        logits = tape.convolve(x, f"{heads}.box_predictor.cls_score")
        return logits, tape.convolve(x, f"{heads}.box_predictor.bbox_pred")

    def mask(self, tape: DenseTape, x: Map) -> Map:
        """(m, 14, 14, channels) -> (m, 28, 28, K)."""
        for i in range(len(self.config.mask_channels)):
            x = tape.conv_relu(x, f"roi_heads.mask_head.{i}.0")
        predictor = "roi_heads.mask_predictor"
        x = tape.relu(tape.doubling_conv(x, f"{predictor}.conv5_mask"))
        return tape.convolve(x, f"{predictor}.mask_fcn_logits")


GRADIENTS: dict[str, type[DenseGradient]] = {
    "upernet": SegmentationGradient,
    "semantic_fpn": SegmentationGradient,
    "retinanet": RetinaNetGradient,
    "maskrcnn": MaskRCNNGradient,
}
