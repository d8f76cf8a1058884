"""GroupMixFormer (arXiv 2311.15157, section 3.3): four stages of Group-Mix Attention blocks.

Attribute names are those of the published checkpoints and must not change; docstrings give the
paper's names. Shapes: B images, N = H * W tokens, D channels of a stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.config import (
    STAGES,
    STRIDES,
    VARIANTS,
    AttentionConfig,
    GroupMixFormerConfig,
    Settings,
    full_name,
    variant_name,
)
from tinygmf.gma import GroupMixAttention, SeparableConv2d, Size, to_map, to_tokens
from tinygmf.layers import (
    GELU,
    BatchNorm,
    Conv2d,
    Hardswish,
    LayerNorm,
    Linear,
    Module,
    Rng,
    drop_path,
    empty_tensor,
    record,
    run_part,
)
from tinygmf.tensors import tensor_from_numpy, without_device

MIN_SIZE = 32  # pixels: below it the last stage has less than one token


class ConvStem(Module):
    """Two 3x3 convolutions of stride 2: image (B, 3, H, W) -> (B, D, H/4, W/4)."""

    def __init__(self, rng: Rng, in_chans: int, dim: int) -> None:
        self.proj1 = Conv2d(rng, in_chans, dim // 2, 3, stride=2, bias=True)
        self.norm1, self.act1 = BatchNorm(rng, dim // 2), Hardswish()
        self.proj2 = Conv2d(rng, dim // 2, dim, 3, stride=2, bias=True)
        self.norm2, self.act2 = BatchNorm(rng, dim), Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.proj1(x)))  # (B, D/2, H/2, W/2)
        return self.act2(self.norm2(self.proj2(x)))  # (B, D, H/4, W/4)


class PatchEmbedLayer(Module):
    """Map (B, in, H, W) -> tokens (B, N, D) and their grid's size, at half the resolution."""

    def __init__(self, rng: Rng, in_dim: int, dim: int, stride: int) -> None:
        self.proj = SeparableConv2d(rng, in_dim, dim, 3, stride=stride)
        self.norm, self.act = BatchNorm(rng, dim), Hardswish()

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        x = self.act(self.norm(self.proj(x)))  # (B, D, H/stride, W/stride), rounded up
        return to_tokens(x), (int(x.shape[2]), int(x.shape[3]))


class ConvPosEnc(Module):
    """Conditional position encoding (arXiv 2102.10882): x + depthwise 3x3 of x, on (B, N, D)."""

    def __init__(self, rng: Rng, dim: int) -> None:
        self.proj = Conv2d(rng, dim, dim, 3, groups=dim, bias=True)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x + to_tokens(self.proj(to_map(x, size)))


class Mlp(Module):
    """Two linear layers with an exact GELU between: (B, N, D) -> (B, N, hidden) -> (B, N, D)."""

    def __init__(self, rng: Rng, dim: int, hidden: int, drop_rate: float) -> None:
        self.fc1, self.act, self.fc2 = Linear(rng, dim, hidden), GELU(), Linear(rng, hidden, dim)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x)).dropout(self.drop_rate)  # (B, N, hidden)
        return self.fc2(x).dropout(self.drop_rate)  # (B, N, D)


class GMABlock(Module):
    """Position, attention and MLP, each a residual branch on tokens (B, N, D)."""

    def __init__(
        self,
        rng: Rng,
        dim: int,
        hidden: int,
        drop_path_rate: float,
        drop_rate: float,
        attention: AttentionConfig,
    ) -> None:
        self.cpe: Any = ConvPosEnc(rng, dim) if attention.cpe else None
        self.norm1 = LayerNorm(rng, dim, eps=1e-6)
        self.att = GroupMixAttention(dim, rng, drop_rate, attention)
        self.norm2 = LayerNorm(rng, dim, eps=1e-6)
        self.mlp = Mlp(rng, dim, hidden, drop_rate)
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x if self.cpe is None else self.cpe(x, size)
        x = x + drop_path(self.att(self.norm1(x), size), self.drop_path_rate)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate)


class GMAStage(Module):
    """The blocks of one resolution."""

    def __init__(self, blocks: Iterable[GMABlock]) -> None:
        self.gma_stage = list(blocks)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        for block in self.gma_stage:
            x = run_part(block, [block], x, size)
        return x


class FeatureInfo(list[dict[str, int]]):
    """Channels and stride of each feature map, with timm's interface."""

    def channels(self) -> list[int]:
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        return [info["reduction"] for info in self]


class GroupMixFormer(Module):
    """The network: images (B, 3, H, W), normalized, at least 32x32 -> logits (B, num_classes).

    `seed` makes the published initialization reproducible; with None the weights have no
    values and take no memory until `load_state_dict` fills them. Source: arXiv 2311.15157, table 1.
    """

    def __init__(self, config: GroupMixFormerConfig, seed: int | None = 0) -> None:
        rng = None if seed is None else np.random.default_rng(seed)
        dims, rates = config.embedding_dims, config.drop_path_rates()
        self.config, self.settings = config, Settings()
        self.conv_stem = ConvStem(rng, config.in_chans, dims[0])
        self.patch_embed_layers = [
            PatchEmbedLayer(rng, dims[max(i - 1, 0)], dims[i], stride=1 if i == 0 else 2)
            for i in range(STAGES)
        ]
        self.groupmixformer_backbone = [
            GMAStage(
                GMABlock(
                    rng, dims[i], config.mlp_hidden(i), rate, config.drop_rate, config.attention
                )
                for rate in rates[i]
            )
            for i in range(STAGES)
        ]
        self.norm4 = BatchNorm(rng, dims[-1])
        self.head = Linear(rng, dims[-1], config.num_classes) if config.num_classes else None

    def __repr__(self) -> str:
        name = variant_name(self.config) or type(self).__name__
        count = sum(math.prod(map(int, tensor.shape)) for tensor in self.parameters())
        stages = zip(self.config.embedding_dims, self.config.serial_depths, STRIDES, strict=True)
        lines = [
            f"  stage {i}: {depth} block{'s' if depth > 1 else ''} of {dim} channels, "
            f"stride {stride}"
            for i, (dim, depth, stride) in enumerate(stages, 1)
        ]
        classes = self.config.num_classes
        head = f"{classes} class{'es' if classes > 1 else ''}" if classes else "no head"
        return "\n".join([f"{name}: {count / 1e6:.1f} M parameters, {head}", *lines])

    @property
    def feature_info(self) -> FeatureInfo:
        """`num_chs` and `reduction` (stride in pixels) of each map of `forward_features`."""
        widths = zip(self.config.embedding_dims, STRIDES, strict=True)
        return FeatureInfo({"num_chs": dim, "reduction": stride} for dim, stride in widths)

    def reset_classifier(self, num_classes: int, seed: int = 0) -> None:
        """Replace the head with a new one; 0 removes it, and calls give pooled features (B, D4)."""
        self.config = replace(self.config, num_classes=num_classes)
        self.settings = replace(self.settings, classes=())
        rng, width = np.random.default_rng(seed), self.config.embedding_dims[-1]
        self.head = Linear(rng, width, num_classes) if num_classes else None

    def reorder_classes(self, order: Sequence[int]) -> None:
        """Class i becomes what class `order[i]` was: the head's rows and the classes' names."""
        if self.head is None:
            raise ValueError("classes to reorder: expected a head, found none")
        for name in ("weight", "bias"):
            rows = getattr(self.head, name)
            setattr(self.head, name, tensor_from_numpy(rows.numpy()[list(order)], rows.device))
        if self.settings.classes:
            names = tuple(self.settings.classes[i] for i in order)
            self.settings = replace(self.settings, classes=names)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> four maps (B, D_i, ceil(H/s), ceil(W/s)), s = 4, 8, 16, 32.

        Raises ValueError for anything but at least 32x32 pixels in `config.in_chans` channels.
        """
        check_pictures(x, self.config.in_chans)
        x, maps = run_part(self.conv_stem, [self.conv_stem], x), []
        for embed, stage in zip(self.patch_embed_layers, self.groupmixformer_backbone, strict=True):
            tokens, size = run_part(embed, [embed], x)
            x = to_map(stage(tokens, size), size)
            maps.append(x)
        return maps

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map (B, D4, h, w) -> logits (B, num_classes), or pooled features (B, D4)."""
        modules = [self.norm4] if self.head is None else [self.norm4, self.head]
        return run_part(self._pool_and_classify, modules, x)

    def _pool_and_classify(self, x: Tensor) -> Tensor:
        x = self.norm4(x).mean(axis=(2, 3))  # (B, D4)
        return x if self.head is None else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x)[-1])

    def trace(self, x: Tensor) -> dict[str, Tensor]:
        """Every intermediate by its module's name, in the order of computation; the parts of a
        module with several outputs are `name#0`, `name#1`. The tensors are not realized."""
        names = {id(module): name for name, module in self.named_modules()}
        trace: dict[str, Tensor] = {}

        def note(module: Module, output: Any) -> None:
            name = names.get(id(module), "")
            parts = [output] if isinstance(output, Tensor) else output
            tensors = [part for part in parts if isinstance(part, Tensor)]
            if len(tensors) == 1:
                trace[name or "logits"] = tensors[0]
            else:
                trace.update({f"{name}#{i}": part for i, part in enumerate(tensors)})

        with record(note):
            self(x)
        return trace


class FeatureNetwork(Module):
    """A network without its head: images (B, 3, H, W) -> the maps of the stages in `out_indices`,
    0 to 3, as timm's `features_only`. Raises ValueError for other stages."""

    def __init__(self, body: GroupMixFormer, out_indices: Sequence[int] = range(STAGES)) -> None:
        if not out_indices or not all(-STAGES <= i < STAGES for i in out_indices):
            raise ValueError(
                f"out_indices: expected stages from 0 to {STAGES - 1}, found {tuple(out_indices)}"
            )
        body.reset_classifier(0)
        self.body, self.config, self.out_indices = body, body.config, tuple(out_indices)

    @property
    def feature_info(self) -> FeatureInfo:
        return FeatureInfo(self.body.feature_info[i] for i in self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body.forward_features(x)
        return [maps[i] for i in self.out_indices]


def check_pictures(x: Tensor, in_chans: int) -> None:
    """Raise ValueError for anything but (B, in_chans, H, W) of at least 32x32 pixels."""
    if x.ndim != 4 or x.shape[1] != in_chans or min(x.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"images: expected (B, {in_chans}, H, W) with H and W of at least {MIN_SIZE}, "
            f"found {tuple(x.shape)}"
        )


@cache
def state_shapes(config: GroupMixFormerConfig) -> Mapping[str, tuple[int, ...]]:
    """The names and shapes of the state dict of a network of this configuration."""
    context = copy_context()
    context.run(empty_tensor.set, cache(Tensor.empty))  # one for each shape, in a fifth of the time
    with without_device():
        state = get_state_dict(context.run(GroupMixFormer, config, seed=None))
    return MappingProxyType({name: tuple(map(int, t.shape)) for name, t in state.items()})


def list_models() -> list[str]:
    """The names that `create_model` takes, smallest network first."""
    return list(VARIANTS)


def create_model(
    name: str, num_classes: int = 1000, seed: int = 0, **changes: Any
) -> GroupMixFormer:
    """A network with fresh weights: the published initialization, the same for the same `seed`.

    `name` may be short (`tiny`). `changes` replace fields of the variant's configuration
    (`drop_path_rate=0.2`). Raises ValueError for an unknown name or an impossible configuration.
    """
    name = full_name(name)
    if name not in VARIANTS:
        raise ValueError(f"model {name!r}: expected one of {', '.join(VARIANTS)}")
    try:
        config = replace(VARIANTS[name], num_classes=num_classes, **changes)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from None
    return GroupMixFormer(config, seed)
