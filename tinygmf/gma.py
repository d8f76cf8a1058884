"""Group-Mix Attention (arXiv 2311.15157, section 3).

Queries, keys and values are each cut into five segments of channels. One segment stays as it is
(single tokens), three are aggregated over windows of 3x3, 5x5 and 7x7 tokens (group proxies). Each
of the four has two heads of its own, and no head leaves its segment: tokens and groups meet in the
ensemble layer, `proj`. The fifth segment skips attention. `reference/gma.py` explains the same line
by line.

Shapes: B images, N = H * W tokens, D channels, 8 heads, head_dim = D / 10.
`AttentionConfig` can remove or change parts, to show what each contributes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tinygrad import Tensor

from tinygmf.config import NUM_HEADS, AttentionConfig
from tinygmf.layers import (
    BatchNorm,
    Conv2d,
    Hardswish,
    LayerNorm,
    Linear,
    Module,
    Rng,
    note_products,
)

Size = tuple[int, int]  # (H, W), in tokens
PUBLISHED = AttentionConfig()


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """(B, N, D) tokens -> (B, D, H, W) map."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def to_tokens(feature_map: Tensor) -> Tensor:
    """(B, D, H, W) map -> (B, N, D) tokens."""
    return feature_map.flatten(2).transpose(1, 2)


class Identity(Module):
    """In an ablation, stands where a part was removed."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Pool(Module):
    """In an ablation, replaces a depthwise convolution, without weights: (B, C, H, W) -> the same.

    The "average", "maximum" or "minimum" of each window, over its positions inside the map.
    """

    def __init__(self, kind: str, kernel_size: int) -> None:
        self.kind, self.kernel_size = kind, kernel_size

    def forward(self, x: Tensor) -> Tensor:
        k, rim = self.kernel_size, self.kernel_size // 2
        if self.kind == "average":
            return x.avg_pool2d(k, 1, padding=rim, count_include_pad=False)
        sign = 1 if self.kind == "maximum" else -1
        return sign * (sign * x).max_pool2d(k, 1, padding=rim)


class SeparableConv2d(Module):
    """A depthwise convolution, which mixes positions, and a 1x1 one, which mixes channels.

    Any `kind` but "convolution" is an ablation: a `Pool` replaces the depthwise convolution.
    """

    def __init__(
        self,
        rng: Rng,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        kind: str = "convolution",
    ) -> None:
        self.conv1: Any = Pool(kind, kernel_size)
        if kind == "convolution":
            self.conv1 = Conv2d(
                rng, in_channels, in_channels, kernel_size, stride=stride, groups=in_channels
            )
        self.pointwise_conv = Conv2d(rng, in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.conv1(x))  # (B, in, H, W) -> (B, out, H/stride, W/stride)


class NonAttentionBranch(Module):
    """The paper's non-attention branch: the fifth segments of Q, K and V, mixed by convolution.

    (B, 3D/5, H, W) -> (B, N, D/5)
    """

    def __init__(self, rng: Rng, segment: int) -> None:
        self.conv = SeparableConv2d(rng, 3 * segment, segment, 3)
        self.norm = LayerNorm(rng, segment, eps=1e-5)
        self.act = Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(to_tokens(self.conv(x))))


class Aggregator(Module):
    """The paper's group aggregation: makes group proxies of Q, K and V, with shared weights.

    qkv (3, B, N, D) -> mixed (3, B, heads, N, head_dim), where heads 0-1 hold single tokens and
    2-3, 4-5, 6-7 proxies of 3x3, 5x5 and 7x7 tokens; and the non-attention branch (B, N, D/5).
    An ablation without that branch has None in its place, and tokens on heads 8-9.
    """

    def __init__(self, rng: Rng, dim: int, config: AttentionConfig = PUBLISHED) -> None:
        segment, (size1, size2, size3) = dim // 5, config.kernels
        self.norm0, self.act0 = _norm_and_act(rng, segment, config)
        self.agg1 = _aggregator(rng, segment, size1, config)
        self.norm1, self.act1 = _norm_and_act(rng, segment, config)
        self.agg2 = _aggregator(rng, segment, size2, config)
        self.norm2, self.act2 = _norm_and_act(rng, segment, config)
        self.agg3 = _aggregator(rng, segment, size3, config)
        self.norm3, self.act3 = _norm_and_act(rng, segment, config)
        self.agg0: Any = NonAttentionBranch(rng, segment) if config.non_attention else None
        if not config.non_attention:
            self.norm4, self.act4 = _norm_and_act(rng, segment, config)

    def forward(self, qkv: Tensor, size: Size) -> tuple[Tensor, Tensor | None]:
        _, batch, n, dim = qkv.shape
        sharded = isinstance(qkv.device, tuple)  # along the batch, so it must be the first axis
        front = qkv.transpose(0, 1) if sharded else qkv
        maps = to_map(front.reshape(3 * batch, n, dim), size)  # (3B, D, H, W)
        x0, x1, x2, x3, x4 = maps.split(dim // 5, dim=1)  # five of (3B, D/5, H, W)

        tokens = self.act0(self.norm0(x0))  # (3B, D/5, H, W)
        groups3 = self.act1(self.norm1(self.agg1(x1)))  # (3B, D/5, H, W)
        groups5 = self.act2(self.norm2(self.agg2(x2)))  # (3B, D/5, H, W)
        groups7 = self.act3(self.norm3(self.agg3(x3)))  # (3B, D/5, H, W)
        parts = [tokens, groups3, groups5, groups7]
        if self.agg0 is None:
            parts.append(self.act4(self.norm4(x4)))
        mixed = Tensor.cat(*parts, dim=1)  # (3B, 4D/5, H, W)
        mixed = mixed.reshape(*front.shape[:2], 2 * len(parts), dim // 10, n).transpose(3, 4)
        mixed = mixed.transpose(0, 1) if sharded else mixed  # (3, B, heads, N, head_dim)
        if self.agg0 is None:
            return mixed, None

        fifth = x4.reshape(*front.shape[:2], dim // 5, *size)
        fifth = fifth if sharded else fifth.transpose(0, 1)  # (B, 3, D/5, H, W)
        return mixed, self.agg0(fifth.reshape(batch, 3 * dim // 5, *size))


def _aggregator(rng: Rng, segment: int, kernel_size: int, config: AttentionConfig) -> Any:
    """The aggregator for groups of one size; the identity if the segment stays tokens."""
    if config.aggregator == "none" or kernel_size == 1:
        return Identity()
    return SeparableConv2d(rng, segment, segment, kernel_size, kind=config.aggregator)


def _norm_and_act(rng: Rng, segment: int, config: AttentionConfig) -> tuple[Any, Any]:
    if config.aggregator == "none":
        return Identity(), Identity()
    return BatchNorm(rng, segment), Hardswish()


class ConvRelPosEnc(Module):
    """Convolutional relative position encoding: Q times a depthwise convolution of V.

    In the published code but not in the paper (it comes from CoaT, arXiv 2104.06399). Kernel sizes
    3, 5 and 7 serve 2, 3 and 3 heads; additional heads of an ablation take the last one.
    q, v (B, heads, N, head_dim) -> (B, heads, N, head_dim).
    """

    KERNELS = ((3, 2), (5, 3), (7, 3))  # (kernel size, number of heads)

    def __init__(self, rng: Rng, head_dim: int, heads: int = NUM_HEADS) -> None:
        (size3, two), (size5, three), (size7, _) = self.KERNELS
        self.kernels = (size3, two), (size5, three), (size7, heads - two - three)
        self.conv_list = [
            Conv2d(
                rng, heads * head_dim, heads * head_dim, kernel, groups=heads * head_dim, bias=True
            )
            for kernel, heads in self.kernels
        ]

    def forward(self, q: Tensor, v: Tensor, size: Size) -> Tensor:
        batch, heads, n, head_dim = v.shape
        v_map = v.transpose(2, 3).reshape(batch, heads * head_dim, *size)  # (B, 4D/5, H, W)
        parts = v_map.split([count * head_dim for _, count in self.kernels], dim=1)
        around = [conv(part) for conv, part in zip(self.conv_list, parts, strict=True)]
        encoding = Tensor.cat(*around, dim=1).reshape(batch, heads, head_dim, n)
        return q * encoding.transpose(2, 3)


def attention_scale(dim: int) -> float:
    """The factor on linear attention.

    The published code takes D / 8, rounded down, as the width of a head, which is D / 10.
    """
    return (dim // NUM_HEADS) ** -0.5


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Q (softmax(K)ᵀ V), the softmax over the tokens: three of (B, heads, N, head_dim) -> the same.

    It equals (Q softmax(K)ᵀ) V without that N x N map. The paper writes softmax(QKᵀ/√d) V, which is
    a different function: `softmax_attention`.
    """
    k = k.float().softmax(axis=2).cast(v.dtype)  # float32 in every precision
    n, head_dim = int(k.shape[2]), int(k.shape[3])
    context = note_products(k.transpose(2, 3) @ v, n)  # (B, heads, head_dim, head_dim)
    return note_products(q @ context, head_dim)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ / √head_dim) V, for ablations: three of (B, heads, N, head_dim) -> the same."""
    n, head_dim = int(k.shape[2]), int(k.shape[3])
    scores = note_products(q @ k.transpose(2, 3), head_dim)  # (B, heads, N, N)
    return note_products((scores * head_dim**-0.5).softmax() @ v, n)


class GroupMixAttention(Module):
    """Group-Mix Attention: tokens (B, N, D) on a grid of `size` (H, W) -> tokens (B, N, D).

    `dim` is D, a multiple of 10. Stands on its own: `GroupMixAttention(40)(tokens, (14, 14))`.
    Source: arXiv 2311.15157, section 3.2; the paper's ensemble layer is `proj`.
    """

    def __init__(
        self,
        dim: int,
        rng: Rng | int = 0,
        drop_rate: float = 0.0,
        config: AttentionConfig = PUBLISHED,
    ) -> None:
        if dim <= 0 or dim % 10:
            raise ValueError(f"dim: expected a positive multiple of 10, found {dim}")
        rng = np.random.default_rng(rng) if isinstance(rng, int) else rng
        self.scale = attention_scale(dim)
        self.drop_rate, self.softmax = drop_rate, config.softmax
        self.qkv = Linear(rng, dim, 3 * dim)
        self.proj = Linear(rng, dim, dim)
        self.aggregator = Aggregator(rng, dim, config)
        self.crpe: Any = ConvRelPosEnc(rng, dim // 10, config.heads) if config.crpe else None

    def forward(self, x: Tensor, size: Size) -> Tensor:
        batch, n, dim = x.shape
        if n != size[0] * size[1]:
            raise ValueError(f"size {size}: expected {size[0] * size[1]} tokens, found {n}")
        qkv = self.qkv(x).reshape(batch, n, 3, dim).permute(2, 0, 1, 3)  # (3, B, N, D)
        mixed, untouched = self.aggregator(qkv, size)
        q, k, v = mixed[0], mixed[1], mixed[2]  # (B, heads, N, head_dim) each

        attend = softmax_attention if self.softmax else linear_attention
        out = attend(q, k, v) * (1 if self.softmax else self.scale)  # (B, heads, N, head_dim)
        if self.crpe is not None:
            out = out + self.crpe(q, v, size)
        out = out.transpose(1, 2).flatten(2)  # heads side by side: (B, N, 4D/5)
        if untouched is not None:
            out = Tensor.cat(out, untouched, dim=2)  # (B, N, D)
        return self.proj(out).dropout(self.drop_rate)
