"""The parts of all dense heads: resizing, pooling, convolutions under their libraries' names, and
the two feature pyramids.

Sources: FPN (arXiv 1612.03144); key names and arithmetic of mmsegmentation 1.2 (`neck`) and
torchvision 0.28 (`fpn`). Maps are (B, C, H, W), finest first; each level is half as high and wide
as the one before, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tinygrad import Tensor

from tinygmf.config import GroupMixFormerConfig
from tinygmf.layers import BatchNorm, Conv2d, Module, Rng
from tinygmf.model import GroupMixFormer
from tinygmf.tensors import tensor_from_numpy


class Backbone(GroupMixFormer):
    """The four stages without `norm4` and `head`: pictures (B, 3, H, W), at least 32x32 -> four
    maps (B, D_i, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32."""

    def __init__(self, config: GroupMixFormerConfig, seed: int | None = 0) -> None:
        super().__init__(replace(config, num_classes=0), seed)
        del self.norm4, self.head

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return self.forward_features(x)


class Layers(Module):
    """Layers in sequence, named 0, 1, …; None skips a name, for a layer without weights."""

    def __init__(self, *layers: Module | None) -> None:
        for i, layer in enumerate(layers):
            setattr(self, str(i), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in vars(self).values():
            x = x if layer is None else layer(x)
        return x


def conv(
    rng: Rng,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    init: str,
    stride: int = 1,
    bias: bool = True,
) -> Conv2d:
    """A convolution with zero bias and a weight initialized as in one of the libraries:
    "kaiming" (normal, fan out, for ReLU), "xavier" (uniform), "unit" (uniform, Kaiming with slope
    1) or "small" (normal, standard deviation 0.01)."""
    layer = Conv2d(None, in_channels, out_channels, kernel_size, stride, bias=bias)
    if rng is not None:
        area = kernel_size * kernel_size
        fan_in, fan_out = in_channels * area, out_channels * area
        layer.weight = tensor_from_numpy(_draw(rng, init, layer.weight.shape, fan_in, fan_out))
        if bias:
            layer.bias = tensor_from_numpy(np.zeros(out_channels, np.float32))
    return layer


def _draw(rng: np.random.Generator, init: str, shape: tuple, fan_in: int, fan_out: int):
    if init in ("kaiming", "small"):
        std = math.sqrt(2 / fan_out) if init == "kaiming" else 0.01
        return std * rng.standard_normal(shape, dtype=np.float32)
    bound = math.sqrt(6 / (fan_in + fan_out) if init == "xavier" else 3 / fan_in)
    return rng.uniform(-bound, bound, shape).astype(np.float32)


class ConvModule(Module):
    """Convolution, BatchNorm, ReLU, under mmcv's names."""

    def __init__(self, rng: Rng, in_channels: int, out_channels: int, kernel_size: int) -> None:
        self.conv = conv(rng, in_channels, out_channels, kernel_size, "kaiming", bias=False)
        self.bn = BatchNorm(rng, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class ConvAlone(Module):
    """A convolution with a bias, in mmcv's module that has neither norm nor activation."""

    def __init__(self, rng: Rng, in_channels: int, out_channels: int, kernel_size: int) -> None:
        self.conv = conv(rng, in_channels, out_channels, kernel_size, "xavier")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, pixel centres at half (`align_corners` false), no antialiasing, borders repeated:
    (B, C, H, W) -> (B, C, *size)."""
    size = tuple(map(int, size))
    return x if tuple(x.shape[2:]) == size else x.interpolate(size, "linear")


def double(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbor doubling to `size` (H, W), half of which, rounded up, is the size of x:
    each value appears 2x2 times, and an odd size loses the last row or column."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height, 1, width, 1).expand(-1, -1, -1, 2, -1, 2)
    return x.reshape(batch, channels, 2 * height, 2 * width)[:, :, : size[0], : size[1]]


def adaptive_average(x: Tensor, bins: int) -> Tensor:
    """(B, C, H, W) -> (B, C, bins, bins): bin i averages the rows from floor(i H / bins) to
    ceil((i + 1) H / bins), exclusive, and likewise columns."""
    rows, columns = (averages(int(side), bins) for side in x.shape[2:])
    return rows @ x @ columns.transpose()


def averages(side: int, bins: int) -> Tensor:
    """(bins, side): the weight of each place in each bin's average."""
    i, place = Tensor.arange(bins).reshape(-1, 1), Tensor.arange(side)
    first, last = i * side // bins, ((i + 1) * side + bins - 1) // bins
    return ((place >= first) & (place < last)).float() / (last - first)


class NeckFPN(Module):
    """mmsegmentation's `FPN`: four maps of any widths -> four maps of `channels`."""

    def __init__(self, rng: Rng, in_channels: Sequence[int], channels: int) -> None:
        self.lateral_convs = [ConvAlone(rng, width, channels, 1) for width in in_channels]
        self.fpn_convs = [ConvAlone(rng, channels, channels, 3) for _ in in_channels]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return top_down(self.lateral_convs, self.fpn_convs, maps)


class FeaturePyramid(Module):
    """torchvision's `FeaturePyramidNetwork`: maps of any widths -> maps of `channels`.

    `extra` adds levels on top: "p6p7" two 3x3 convolutions of stride 2 with a ReLU between, from
    the last pyramid map or, depending on `p6_channels`, from the last of `maps`; "pool" takes every
    second place of the last pyramid map.
    """

    def __init__(
        self,
        rng: Rng,
        in_channels: Sequence[int],
        channels: int,
        extra: str,
        p6_channels: int | None = None,
    ) -> None:
        self.inner_blocks = [Layers(conv(rng, w, channels, 1, "unit")) for w in in_channels]
        self.layer_blocks = [Layers(conv(rng, channels, channels, 3, "unit")) for _ in in_channels]
        self.extra_blocks = None
        if extra == "p6p7":
            self.extra_blocks = ExtraLevels(rng, p6_channels or channels, channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = top_down(self.inner_blocks, self.layer_blocks, maps)
        if self.extra_blocks is None:
            return [*levels, levels[-1][:, :, ::2, ::2]]
        return [*levels, *self.extra_blocks(levels[-1], maps[-1])]


class ExtraLevels(Module):
    """torchvision's `LastLevelP6P7`: P6 from P5, or from the backbone's last map where the widths
    differ, and P7 from P6."""

    def __init__(self, rng: Rng, in_channels: int, channels: int) -> None:
        self.p6 = conv(rng, in_channels, channels, 3, "unit", stride=2)
        self.p7 = conv(rng, channels, channels, 3, "unit", stride=2)
        self.from_pyramid = in_channels == channels

    def forward(self, p5: Tensor, c5: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(p5 if self.from_pyramid else c5)
        return p6, self.p7(p6.relu())


def top_down(
    lateral: Sequence[Module], smooth: Sequence[Module], maps: Sequence[Tensor]
) -> list[Tensor]:
    """The pyramid: each lateral map plus the doubled coarser sum; then each is smoothed."""
    sums = [layer(x) for layer, x in zip(lateral, maps, strict=True)]
    for i in range(len(sums) - 1, 0, -1):
        sums[i - 1] = sums[i - 1] + double(sums[i], sums[i - 1].shape[2:])
    return [layer(x) for layer, x in zip(smooth, sums, strict=True)]
