"""Mask R-CNN on GroupMixFormer: proposals from a pyramid, then a class, a box and a mask for each.

Source: arXiv 1703.06870; key names and arithmetic are those of torchvision 0.28's `MaskRCNN` on the
four stages. Class 0 is the background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor

from tinygmf.config import GroupMixFormerConfig
from tinygmf.dense.pyramid import Layers, conv
from tinygmf.dense.retinanet import BackboneWithPyramid, by_anchor
from tinygmf.dense.settings import MaskRCNNSettings
from tinygmf.layers import Linear, Module, Rng
from tinygmf.tensors import tensor_from_numpy

MASK_BINS = 14  # side of RoIAlign's output for the mask head, which doubles it


@dataclass(frozen=True)
class MaskRCNNConfig:
    """`channels` is the pyramid's width, `box_bins` the side of a box's pooled features,
    `representation` the width of the box head's two layers, `mask_channels` the widths of the mask
    head's convolutions, `mask_reduced` that of the doubled map."""

    backbone: GroupMixFormerConfig
    num_classes: int
    channels: int = 256
    num_anchors: int = 3
    rpn_convs: int = 1
    box_bins: int = 7
    representation: int = 1024
    mask_channels: tuple[int, ...] = (256, 256, 256, 256)
    mask_reduced: int = 256


class RPNHead(Module):
    """Each level (B, channels, h, w) -> objectness (B, A, h, w) and deltas (B, 4 A, h, w)."""

    def __init__(self, rng: Rng, config: MaskRCNNConfig) -> None:
        channels = config.channels
        self.conv = [
            Layers(conv(rng, channels, channels, 3, "small")) for _ in range(config.rpn_convs)
        ]
        self.cls_logits = conv(rng, channels, config.num_anchors, 1, "small")
        self.bbox_pred = conv(rng, channels, 4 * config.num_anchors, 1, "small")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.conv:
            x = layer(x).relu()
        return self.cls_logits(x), self.bbox_pred(x)


class RegionProposals(Module):
    def __init__(self, rng: Rng, config: MaskRCNNConfig) -> None:
        self.head = RPNHead(rng, config)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        both = [self.head(x) for x in levels]
        return [objectness for objectness, _ in both], [deltas for _, deltas in both]


def linear(rng: Rng, in_features: int, out_features: int) -> Linear:
    """A linear layer, drawn as in PyTorch: weight and bias uniform within 1 / sqrt(inputs)."""
    layer = Linear(None, in_features, out_features)
    if rng is not None:
        bound = 1 / math.sqrt(in_features)
        for name in ("weight", "bias"):
            shape = getattr(layer, name).shape
            drawn = rng.uniform(-bound, bound, shape).astype(np.float32)
            setattr(layer, name, tensor_from_numpy(drawn))
    return layer


class BoxHead(Module):
    """torchvision's `TwoMLPHead`: (n, channels, bins, bins) -> (n, representation)."""

    def __init__(self, rng: Rng, config: MaskRCNNConfig) -> None:
        inputs = config.channels * config.box_bins**2
        self.fc6 = linear(rng, inputs, config.representation)
        self.fc7 = linear(rng, config.representation, config.representation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc7(self.fc6(x.flatten(1)).relu()).relu()


class BoxPredictor(Module):
    """(n, representation) -> class logits (n, classes) and deltas (n, 4 * classes)."""

    def __init__(self, rng: Rng, config: MaskRCNNConfig) -> None:
        self.cls_score = linear(rng, config.representation, config.num_classes)
        self.bbox_pred = linear(rng, config.representation, 4 * config.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class DoublingConv(Module):
    """A transposed 2x2 convolution of stride 2: (n, in, h, w) -> (n, out, 2 h, 2 w)."""

    def __init__(self, rng: Rng, in_channels: int, out_channels: int) -> None:
        layer = conv(rng, out_channels, in_channels, 2, "kaiming")  # weight (in, out, 2, 2)
        self.weight = layer.weight
        self.bias = linear(rng, 4 * out_channels, out_channels).bias

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        out = int(self.weight.shape[1])
        y = x.permute(0, 2, 3, 1) @ self.weight.reshape(channels, out * 4)  # (n, h, w, out * 4)
        y = y.reshape(n, height, width, out, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(n, out, 2 * height, 2 * width) + self.bias.reshape(1, -1, 1, 1)


class MaskPredictor(Module):
    """(n, channels, 14, 14) -> mask logits (n, classes, 28, 28)."""

    def __init__(self, rng: Rng, config: MaskRCNNConfig) -> None:
        self.conv5_mask = DoublingConv(rng, config.mask_channels[-1], config.mask_reduced)
        self.mask_fcn_logits = conv(rng, config.mask_reduced, config.num_classes, 1, "kaiming")

    def forward(self, x: Tensor) -> Tensor:
        return self.mask_fcn_logits(self.conv5_mask(x).relu())


class RoIHeads(Module):
    """The heads on pooled features: `box` and `mask`."""

    def __init__(self, rng: Rng, config: MaskRCNNConfig) -> None:
        self.box_head, self.box_predictor = BoxHead(rng, config), BoxPredictor(rng, config)
        widths = (config.channels, *config.mask_channels)
        self.mask_head = [
            Layers(conv(rng, widths[i], widths[i + 1], 3, "kaiming"))
            for i in range(len(config.mask_channels))
        ]
        self.mask_predictor = MaskPredictor(rng, config)

    def box(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels, 7, 7) -> class logits (n, classes) and deltas (n, 4 * classes)."""
        return self.box_predictor(self.box_head(pooled))

    def mask(self, pooled: Tensor) -> Tensor:
        """(n, channels, 14, 14) -> mask logits (n, classes, 28, 28)."""
        for layer in self.mask_head:
            pooled = layer(pooled).relu()
        return self.mask_predictor(pooled)


class MaskRCNN(Module):
    """Pictures (B, 3, H, W), normalized, at least 32x32 -> a dict of lists, an entry per level:
    `pyramid` (B, channels, h, w), `objectness` (B, A, h, w), `deltas` (B, 4 A, h, w).

    `Detector` turns them into proposals and runs `roi_heads` on those.
    """

    def __init__(self, config: MaskRCNNConfig, seed: int | None = 0) -> None:
        rng = None if seed is None else np.random.default_rng(seed)
        self.config, self.settings = config, MaskRCNNSettings()
        self.backbone = BackboneWithPyramid(config, 4, "pool", seed, rng)
        self.rpn = RegionProposals(rng, config)
        self.roi_heads = RoIHeads(rng, config)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        pyramid = self.backbone(x)
        objectness, deltas = self.rpn(pyramid)
        return {"pyramid": pyramid, "objectness": objectness, "deltas": deltas}


def flat_proposals(outputs: dict[str, list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Objectness (B, anchors) and deltas (B, anchors, 4) of each level, in the order of
    `boxes.grid_anchors`."""
    objectness = [by_anchor(x, 1).squeeze(2) for x in outputs["objectness"]]
    return objectness, [by_anchor(x, 4) for x in outputs["deltas"]]
