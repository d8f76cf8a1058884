"""What a configuration costs, stage by stage: parameters and FLOPs, beside the published figures.

FLOPs are counted as the article and its tools count them: multiply-adds of convolutions, linear
layers and attention's two products, for one picture.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygmf.config import STAGES, AttentionConfig, GroupMixFormerConfig, variant_name
from tinygmf.gma import relative_heads

# Parameters in millions, FLOPs in thousand millions at 224x224, ImageNet-1K top-1 in per cent:
# arXiv 2311.15157, table 4, and the authors' page.
PUBLISHED = {
    "groupmixformer_miny": (5.7, 1.4, 79.6),
    "groupmixformer_tiny": (11.0, 3.7, 82.6),
    "groupmixformer_small": (22.4, 5.2, 83.4),
    "groupmixformer_base": (45.8, 17.6, 84.7),
    "groupmixformer_large": (70.3, 36.1, 85.0),
}


@dataclass(frozen=True)
class StageSummary:
    """One row: a stage with its patch embedding, or the stem, or the head."""

    name: str
    height: int
    width: int
    channels: int
    blocks: int
    parameters: int
    flops: int


def _aggregator_weights(segment: int, config: AttentionConfig) -> int:
    """Of the convolutions that make group proxies; pooling has 1x1 convolutions alone."""
    sizes = () if config.aggregator == "none" else [k for k in config.kernels if k > 1]
    window = 1 if config.aggregator == "convolution" else 0
    return sum(window * segment * k * k + segment * segment for k in sizes)


def _branch_weights(segment: int, config: AttentionConfig) -> int:
    """Of the non-attention branch's convolution."""
    return (3 * segment * 9 + 3 * segment * segment) * config.non_attention


def _crpe_channels(dim: int, config: AttentionConfig) -> list[tuple[int, int]]:
    """Kernel sizes of `crpe`, and how many channels have each."""
    heads = relative_heads(config.heads) if config.crpe else ()
    return [(k, count * dim // 10) for k, count in heads]


def _block_parameters(dim: int, hidden: int, config: AttentionConfig) -> int:
    segment = dim // 5
    aggregator = _aggregator_weights(segment, config) + _branch_weights(segment, config)
    norms = 0 if config.aggregator == "none" else config.heads // 2  # BatchNorms
    aggregator += (norms + config.non_attention) * 2 * segment
    crpe = sum(channels * (k * k + 1) for k, channels in _crpe_channels(dim, config))
    linear = 3 * dim * (dim + 1) + dim * (dim + 1)  # qkv, proj
    mlp = hidden * (dim + 1) + dim * (hidden + 1)
    return dim * (9 + 1) * config.cpe + 2 * 2 * dim + linear + aggregator + crpe + mlp


def _block_flops(tokens: int, dim: int, hidden: int, config: AttentionConfig) -> int:
    segment, head_dim = dim // 5, dim // 10
    aggregator = 3 * _aggregator_weights(segment, config) + _branch_weights(segment, config)
    crpe = sum(channels * k * k for k, channels in _crpe_channels(dim, config))
    reach = tokens if config.softmax else head_dim  # the map's row, or the context's
    attention = 2 * config.heads * head_dim * reach
    linear = 4 * dim * dim + 2 * dim * hidden
    return tokens * (9 * dim * config.cpe + linear + aggregator + crpe + attention)


def summarize(
    config: GroupMixFormerConfig, image_size: tuple[int, int] = (224, 224)
) -> list[StageSummary]:
    """Stem, four stages and head of a network at an image size (height, width) in pixels."""
    dims, half = config.embedding_dims, config.embedding_dims[0] // 2
    h, w = ((side + 1) // 2 for side in image_size)
    flops = h * w * half * 3 * 9
    h, w = (h + 1) // 2, (w + 1) // 2
    flops += h * w * dims[0] * half * 9
    parameters = half * (27 + 1) + dims[0] * (9 * half + 1) + 2 * (half + dims[0])
    rows = [StageSummary("stem", h, w, dims[0], 0, parameters, flops)]
    for i in range(STAGES):
        before, dim, hidden = dims[max(i - 1, 0)], dims[i], config.mlp_hidden(i)
        if i > 0:
            h, w = (h + 1) // 2, (w + 1) // 2
        depth, attention = config.serial_depths[i], config.attention
        parameters = 9 * before + before * dim + 2 * dim
        parameters += depth * _block_parameters(dim, hidden, attention)
        flops = h * w * before * (9 + dim)
        flops += depth * _block_flops(h * w, dim, hidden, attention)
        rows.append(StageSummary(f"stage {i + 1}", h, w, dim, depth, parameters, flops))
    classes, dim = config.num_classes, dims[-1]
    head = classes * (dim + 1) + 2 * dim
    rows.append(StageSummary("head", 1, 1, classes or dim, 0, head, classes * dim))
    return rows


def format_summary(config: GroupMixFormerConfig, image_size: tuple[int, int] = (224, 224)) -> str:
    """The table that `tinygmf info` prints."""
    rows = summarize(config, image_size)
    lines = [
        f"{'':8} {'resolution':>10} {'channels':>8} {'blocks':>6} {'parameters':>12} {'FLOPs':>8}"
    ]
    for row in rows:
        blocks = row.blocks or ""
        lines.append(
            f"{row.name:8} {f'{row.height}x{row.width}':>10} {row.channels:>8} {blocks:>6} "
            f"{row.parameters:>12,} {_giga(row.flops):>8}"
        )
    parameters, flops = sum(r.parameters for r in rows), sum(r.flops for r in rows)
    lines.append(f"{'total':8} {'':>10} {'':>8} {'':>6} {parameters:>12,} {_giga(flops):>8}")
    name = variant_name(config)
    if name in PUBLISHED:
        millions, giga, top1 = PUBLISHED[name]
        lines.append(
            f"published: {millions} M parameters, {giga} G FLOPs at 224x224, "
            f"{top1} % ImageNet-1K top-1"
        )
    if name == "groupmixformer_large":
        lines.append("(the article says 70.3 M; its published configuration has the number above)")
    return "\n".join(lines)


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e7 else f"{count / 1e6:.2f} M"
