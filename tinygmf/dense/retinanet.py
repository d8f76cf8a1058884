"""RetinaNet on GroupMixFormer: boxes and classes from every place of five maps.

Source: arXiv 1708.02002; key names and arithmetic are those of torchvision 0.28's `RetinaNet` on
stages 2 to 4. Class 0 is whatever the training labels call 0: every class has its own sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor

from tinygmf.config import GroupMixFormerConfig
from tinygmf.dense.pyramid import Backbone, FeaturePyramid, Layers, conv
from tinygmf.dense.settings import RetinaNetSettings
from tinygmf.layers import Module, Rng
from tinygmf.tensors import tensor_from_numpy

PRIOR = 0.01  # a fresh network's probability of every class at every anchor


@dataclass(frozen=True)
class RetinaNetConfig:
    """`channels` is the width of pyramid and head, `num_anchors` the anchors per place,
    `p6_channels` the width of the map that P6 is made from: the pyramid's, or the backbone's last.
    """

    backbone: GroupMixFormerConfig
    num_classes: int
    channels: int = 256
    num_anchors: int = 9
    num_convs: int = 4
    p6_channels: int = 256


class BackboneWithPyramid(Module):
    """torchvision's `BackboneWithFPN` on the last `stages`: pictures -> pyramid, finest first."""

    def __init__(self, config: Any, stages: int, extra: str, seed: int | None, rng: Rng) -> None:
        self.stages = stages
        self.body = Backbone(config.backbone, seed)
        self.fpn = FeaturePyramid(
            rng,
            config.backbone.embedding_dims[-stages:],
            config.channels,
            extra,
            getattr(config, "p6_channels", None),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fpn(self.body(x)[-self.stages :])


class AnchorHead(Module):
    """3x3 convolutions shared by all levels, then one called `name` to `values` numbers per anchor:
    five maps -> (B, anchors, values)."""

    def __init__(
        self, rng: Rng, config: RetinaNetConfig, name: str, values: int, bias: float = 0.0
    ) -> None:
        channels = config.channels
        self.conv = [
            Layers(conv(rng, channels, channels, 3, "small")) for _ in range(config.num_convs)
        ]
        last = conv(rng, channels, config.num_anchors * values, 3, "small")
        if rng is not None and bias:
            full = np.full(config.num_anchors * values, bias, np.float32)
            last.bias = tensor_from_numpy(full)
        setattr(self, name, last)
        self.name, self.values = name, values

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return Tensor.cat(*map(self.level, levels), dim=1)

    def level(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, h * w * anchors, values), place by place."""
        for layer in self.conv:
            x = layer(x).relu()
        return by_anchor(getattr(self, self.name)(x), self.values)


def by_anchor(x: Tensor, values: int) -> Tensor:
    """(B, A * values, h, w) -> (B, h * w * A, values)"""
    batch, _, height, width = x.shape
    x = x.reshape(batch, -1, values, height, width)
    return x.permute(0, 3, 4, 1, 2).reshape(batch, -1, values)


class RetinaNetHead(Module):
    """Five maps -> `cls_logits` (B, anchors, classes) and `bbox_regression` (B, anchors, 4), the
    anchors in the order of `boxes.grid_anchors`, level by level."""

    def __init__(self, rng: Rng, config: RetinaNetConfig) -> None:
        prior = -math.log((1 - PRIOR) / PRIOR)
        self.classification_head = AnchorHead(rng, config, "cls_logits", config.num_classes, prior)
        self.regression_head = AnchorHead(rng, config, "bbox_reg", 4)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            "cls_logits": self.classification_head(levels),
            "bbox_regression": self.regression_head(levels),
        }


class RetinaNet(Module):
    """Pictures (B, 3, H, W), normalized, at least 32x32 -> a dict of `cls_logits` (B, anchors,
    classes) and `bbox_regression` (B, anchors, 4). `Detector` turns them into boxes."""

    def __init__(self, config: RetinaNetConfig, seed: int | None = 0) -> None:
        rng = None if seed is None else np.random.default_rng(seed)
        self.config, self.settings = config, RetinaNetSettings()
        self.backbone = BackboneWithPyramid(config, 3, "p6p7", seed, rng)
        self.head = RetinaNetHead(rng, config)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(self.backbone(x))
