"""UPerNet and Semantic FPN on GroupMixFormer: a class for every pixel.

Sources: UPerNet (arXiv 1807.10221), Panoptic FPN's semantic branch (arXiv 1901.02446); key names
and arithmetic are mmsegmentation 1.2's `UPerHead`, `FPN` with `FPNHead`, and `FCNHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor
from tinygrad.helpers import TRAINING

from tinygmf.config import GroupMixFormerConfig
from tinygmf.dense.pyramid import (
    Backbone,
    ConvModule,
    Layers,
    NeckFPN,
    adaptive_average,
    conv,
    resize,
)
from tinygmf.dense.settings import SegmentationSettings
from tinygmf.layers import Module, Rng

AUXILIARY_STAGE = 2  # the third map, as mmsegmentation's `in_index`


@dataclass(frozen=True)
class AuxiliaryConfig:
    """The `FCNHead` on the third stage, only for training."""

    channels: int = 256
    num_convs: int = 1
    kernel_size: int = 3
    concat_input: bool = False


@dataclass(frozen=True)
class SegmentationConfig:
    """A segmentation network. `head` is "upernet" or "semantic_fpn", `channels` its width, and
    `neck_channels` the width of Semantic FPN's pyramid."""

    head: str
    backbone: GroupMixFormerConfig
    num_classes: int
    channels: int
    neck_channels: int = 256
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary: AuxiliaryConfig | None = AuxiliaryConfig()
    dropout_ratio: float = 0.1  # of whole channels before the classification, in training


class DecodeHead(Module):
    """A head that ends in `conv_seg`, a 1x1 convolution to the classes."""

    def __init__(self, rng: Rng, config: SegmentationConfig, channels: int) -> None:
        self.conv_seg = conv(rng, channels, config.num_classes, 1, "small")
        self.dropout_ratio = config.dropout_ratio

    def classify(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, classes, h, w)"""
        if TRAINING and self.dropout_ratio:
            shape = (*x.shape[:2], 1, 1)
            keep = Tensor.rand(*shape, device=x.device) >= self.dropout_ratio
            x = x * keep / (1 - self.dropout_ratio)
        return self.conv_seg(x)


class UPerHead(DecodeHead):
    """Pyramid pooling on the last map, a pyramid of all four, and the levels concatenated:
    four maps -> (B, classes, H/4, W/4)."""

    def __init__(self, rng: Rng, config: SegmentationConfig) -> None:
        channels, dims = config.channels, config.backbone.embedding_dims
        super().__init__(rng, config, channels)
        self.pool_scales = config.pool_scales
        self.psp_modules = [
            Layers(None, ConvModule(rng, dims[-1], channels, 1)) for _ in self.pool_scales
        ]
        pooled = dims[-1] + len(self.pool_scales) * channels
        self.bottleneck = ConvModule(rng, pooled, channels, 3)
        self.lateral_convs = [ConvModule(rng, dim, channels, 1) for dim in dims[:-1]]
        self.fpn_convs = [ConvModule(rng, channels, channels, 3) for _ in dims[:-1]]
        self.fpn_bottleneck = ConvModule(rng, len(dims) * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        sums = [layer(x) for layer, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        sums.append(self.pool(maps[-1]))
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = (sums[i - 1] + resize(sums[i], sums[i - 1].shape[2:])).contiguous()
        levels = [layer(x) for layer, x in zip(self.fpn_convs, sums[:-1], strict=True)]
        size = levels[0].shape[2:]
        levels = [resize(x, size).contiguous() for x in (*levels, sums[-1])]
        x = self.fpn_bottleneck(Tensor.cat(*levels, dim=1))  # (B, channels, H/4, W/4)
        return self.classify(x)

    def pool(self, x: Tensor) -> Tensor:
        """The map concatenated with its averages over 1, 4, 9 and 36 bins: (B, D4, h, w) ->
        (B, channels, h, w)."""
        parts = [x]
        for bins, layer in zip(self.pool_scales, self.psp_modules, strict=True):
            parts.append(resize(layer(adaptive_average(x, bins)), x.shape[2:]).contiguous())
        return self.bottleneck(Tensor.cat(*parts, dim=1))


class Upsample(Module):
    """Bilinear doubling of height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, (2 * int(x.shape[2]), 2 * int(x.shape[3]))).contiguous()


class FPNHead(DecodeHead):
    """Brings each level to the finest size by convolutions and doublings, and sums them:
    four maps -> (B, classes, H/4, W/4)."""

    def __init__(self, rng: Rng, config: SegmentationConfig) -> None:
        super().__init__(rng, config, config.channels)
        self.scale_heads = [
            scale_head(rng, config.neck_channels, config.channels, doublings)
            for doublings in range(len(config.backbone.embedding_dims))
        ]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x, *coarser = (head(level) for head, level in zip(self.scale_heads, maps, strict=True))
        for y in coarser:  # for odd sizes the doublings are a row or column too large
            x = (x + resize(y, x.shape[2:])).contiguous()
        return self.classify(x)


def scale_head(rng: Rng, in_channels: int, channels: int, doublings: int) -> Layers:
    layers: list[Module] = []
    for i in range(max(doublings, 1)):
        layers.append(ConvModule(rng, channels if i else in_channels, channels, 3))
        if doublings:
            layers.append(Upsample())
    return Layers(*layers)


class FCNHead(DecodeHead):
    """The auxiliary head: the third map -> (B, classes, H/16, W/16)."""

    def __init__(self, rng: Rng, config: SegmentationConfig, own: AuxiliaryConfig) -> None:
        super().__init__(rng, config, own.channels)
        width = config.backbone.embedding_dims[AUXILIARY_STAGE]
        widths = (width, *[own.channels] * own.num_convs)
        self.convs = [
            ConvModule(rng, widths[i], own.channels, own.kernel_size) for i in range(own.num_convs)
        ]
        self.conv_cat = None
        if own.concat_input:
            both = width + own.channels
            self.conv_cat = ConvModule(rng, both, own.channels, own.kernel_size)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = y = maps[AUXILIARY_STAGE]
        for layer in self.convs:
            y = layer(y)
        return self.classify(y if self.conv_cat is None else self.conv_cat(Tensor.cat(x, y, dim=1)))


class SegmentationNetwork(Module):
    """Pictures (B, 3, H, W), normalized, at least 32x32 -> logits (B, classes, ceil(H/4),
    ceil(W/4)). `seed` as in `GroupMixFormer`. The loss is `losses.segmentation_loss`."""

    def __init__(self, config: SegmentationConfig, seed: int | None = 0) -> None:
        rng = None if seed is None else np.random.default_rng(seed)
        self.config, self.settings = config, SegmentationSettings()
        self.backbone = Backbone(config.backbone, seed)
        self.neck = None
        if config.head == "semantic_fpn":
            self.neck = NeckFPN(rng, config.backbone.embedding_dims, config.neck_channels)
        self.decode_head: DecodeHead = HEADS[config.head](rng, config)
        self.auxiliary_head = None
        if config.auxiliary is not None:
            self.auxiliary_head = FCNHead(rng, config, config.auxiliary)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.backbone(x))

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Four maps -> logits at stride 4."""
        return self.decode_head(maps if self.neck is None else self.neck(maps))

    def auxiliary(self, maps: list[Tensor]) -> Tensor | None:
        """Four maps -> the auxiliary head's logits at stride 16, if there is one."""
        return None if self.auxiliary_head is None else self.auxiliary_head(maps)


HEADS = {"upernet": UPerHead, "semantic_fpn": FPNHead}
