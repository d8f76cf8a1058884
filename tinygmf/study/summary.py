"""What a configuration costs, stage by stage: parameters and FLOPs, beside the published figures.

Parameters are counted from the shapes of the state dict. FLOPs are counted as by the paper and its
tools: multiply-adds of convolutions, linear layers and attention's two products, for one picture.
The layers count them while the network is traced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tinygrad import Tensor

from tinygmf.config import NUM_HEADS, PUBLISHED_SIZE, STAGES, GroupMixFormerConfig, variant_name
from tinygmf.gma import ConvRelPosEnc
from tinygmf.layers import Module, count_products, record
from tinygmf.model import ConvStem, GMABlock, GroupMixFormer, PatchEmbedLayer, state_shapes

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

# Parameters in millions, FLOPs in billions at 224x224, ImageNet-1K top-1 in percent:
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
    """One row: the stem, a stage with its patch embedding, or the head."""

    name: str
    height: int
    width: int
    channels: int
    blocks: int
    parameters: int
    flops: int


def summarize(
    config: GroupMixFormerConfig, image_size: tuple[int, int] = (PUBLISHED_SIZE, PUBLISHED_SIZE)
) -> list[StageSummary]:
    """Stem, four stages and head of a network at an image size (height, width) in pixels."""
    short = replace(config, serial_depths=(1,) * STAGES)  # the blocks of a stage are identical
    sizes, stem, embeddings, blocks, head = _trace(short, image_size)
    dims, depths = config.embedding_dims, config.serial_depths
    rows = [StageSummary("stem", *sizes[0], dims[0], 0, _parameters(short, "conv_stem"), stem)]
    for i, (size, depth) in enumerate(zip(sizes, depths, strict=True)):
        flops = embeddings[i] + depth * blocks[i]
        parameters = _parameters(short, f"patch_embed_layers.{i}")
        parameters += depth * _parameters(short, f"groupmixformer_backbone.{i}")
        rows.append(StageSummary(f"stage {i + 1}", *size, dims[i], depth, parameters, flops))
    width, parameters = config.num_classes or dims[-1], _parameters(short, "norm4", "head")
    return [*rows, StageSummary("head", 1, 1, width, 0, parameters, head)]


def _parameters(config: GroupMixFormerConfig, *parts: str) -> int:
    """The number of parameters under some prefixes of the state dict."""
    below = tuple(f"{part}." for part in parts)
    return sum(
        math.prod(shape)
        for name, shape in state_shapes(config).items()
        if name.startswith(below) and not name.endswith(BUFFERS)
    )


def _trace(
    config: GroupMixFormerConfig, image_size: tuple[int, int]
) -> tuple[list[tuple[int, int]], int, list[int], list[int], int]:
    """The sizes of the four maps, and the FLOPs of the stem, of each patch embedding, of each block
    and of the head, in a network with one block per stage."""
    model, parts, products = GroupMixFormer(config, seed=None), list[int](), list[int]()

    def note(module: Module, _: object) -> None:
        if isinstance(module, ConvStem | PatchEmbedLayer | GMABlock):
            parts.append(sum(products))
            products.clear()

    with record(note), count_products(products.append):
        maps = model.forward_features(Tensor.empty(1, config.in_chans, *image_size))
        model.forward_head(maps[-1])
    stem, *rest = parts
    sizes = [(int(one.shape[2]), int(one.shape[3])) for one in maps]
    return sizes, stem, rest[::2], rest[1::2], sum(products)


def flops_by_part(
    config: GroupMixFormerConfig, image_size: tuple[int, int] = (PUBLISHED_SIZE, PUBLISHED_SIZE)
) -> dict[str, float]:
    """The FLOPs of a network in its published form by the parts of its blocks, from formulas. The
    last entry has stem, patch embeddings and head.

    For N tokens of D channels, s = D/5, head_dim = D/10, an MLP of ratio r: see each line.
    """
    config.require_published_form("FLOPs by part")
    rows, parts = summarize(config, image_size), dict[str, float]()
    for row, ratio in zip(rows[1:-1], config.mlp_ratios, strict=True):
        n, dim, segment = row.height * row.width, row.channels, row.channels // 5
        costs = {
            "MLP": 2 * ratio * dim**2,
            "qkv and proj": 3 * dim**2 + dim**2,
            "aggregators": 3 * sum(k * k * segment + segment**2 for k in (3, 5, 7))
            + 9 * 3 * segment
            + 3 * segment**2,  # the non-attention branch
            "attention's two products": 2 * NUM_HEADS * (dim // 10) ** 2,
            "crpe": sum(heads * k * k for k, heads in ConvRelPosEnc.KERNELS) * (dim // 10),
            "cpe": 9 * dim,
        }
        for name, cost in costs.items():  # per token
            parts[name] = parts.get(name, 0) + row.blocks * n * cost
    total = sum(row.flops for row in rows)
    return parts | {"stem, embeddings, head": total - sum(parts.values())}


def format_summary(
    config: GroupMixFormerConfig,
    image_size: tuple[int, int] = (PUBLISHED_SIZE, PUBLISHED_SIZE),
    head: bool = True,
) -> str:
    """The table that `tinygmf info` prints; without `head` the backbone alone."""
    rows = summarize(config, image_size)[: None if head else -1]
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
            f"published: {millions} M parameters, {giga} G FLOPs at "
            f"{PUBLISHED_SIZE}x{PUBLISHED_SIZE}, {top1} % ImageNet-1K top-1"
        )
    if name == "groupmixformer_large":
        lines.append("(the paper says 70.3 M; its published configuration has the number above)")
    return "\n".join(lines)


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e7 else f"{count / 1e6:.2f} M"
