"""What defines a GroupMixFormer: four widths, four depths, four MLP ratios.

Variants are data. The five published ones are those of the authors' configuration files;
`groupmixformer_nano` is ours, for teaching on 32x32 images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

STAGES = 4
NUM_HEADS = 8  # always, in every published configuration
STRIDES = (4, 8, 16, 32)  # of the four stages' maps, in pixels

# The published evaluation: ImageNet's mean and standard deviation of red, green and blue, on a
# scale of 0 to 1, and the share of the shorter side that the central crop keeps.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP = 224 / 256
PUBLISHED_SIZE = 224  # pixels
LARGEST_SIZE = 10_000_000  # pixels of a side: more is a slip, or nonsense in a file
SMALLEST_CROP = 1e-6

AGGREGATORS = ("convolution", "average", "maximum", "minimum", "none")


@dataclass(frozen=True)
class AttentionConfig:
    """The attention of every block. The defaults are the published network; anything else is an
    ablation, to be trained from fresh weights.

    Raises ValueError, in one line, for an impossible combination.
    """

    aggregator: str = "convolution"  # how a group becomes its proxy; "none": all stay tokens
    kernels: tuple[int, int, int] = (3, 5, 7)  # kernel sizes of the aggregators, odd; 1: tokens
    non_attention: bool = True  # without it the fifth segment is tokens, and there are 10 heads
    cpe: bool = True  # the position encoding before each block
    crpe: bool = True  # the position encoding inside attention
    softmax: bool = False  # softmax(QKᵀ)V, with its N x N map, instead of linear attention

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernels", tuple(self.kernels))
        if self.aggregator not in AGGREGATORS:
            raise ValueError(
                f"aggregator: expected one of {', '.join(AGGREGATORS)}, found {self.aggregator!r}"
            )
        if len(self.kernels) != 3 or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels: expected three odd sizes, found {self.kernels}")

    @property
    def heads(self) -> int:
        """Heads of D/10 channels: two for each segment that takes part in attention."""
        return NUM_HEADS if self.non_attention else NUM_HEADS + 2


@dataclass(frozen=True)
class GroupMixFormerConfig:
    """The whole architecture. `embedding_dims` are the widths D of the four stages (multiples of
    10), `serial_depths` their numbers of blocks, `mlp_ratios` the hidden width / D of their MLPs.

    Raises ValueError, in one line, for an impossible configuration.
    """

    embedding_dims: tuple[int, ...]
    serial_depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    num_classes: int = 1000
    drop_path_rate: float = 0.0  # stochastic depth of the last block; rises linearly from 0
    drop_rate: float = 0.0  # dropout after the MLP's layers and the ensemble layer
    in_chans: int = 3  # channels of an image; with 1 it is grey
    attention: AttentionConfig = AttentionConfig()  # anything else is an ablation

    def __post_init__(self) -> None:
        for name in ("embedding_dims", "serial_depths", "mlp_ratios"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != STAGES or any(value <= 0 for value in values):
                raise ValueError(f"{name}: expected {STAGES} positive numbers, found {values}")
        if any(dim % 10 for dim in self.embedding_dims):
            raise ValueError(
                f"embedding_dims: expected multiples of 10 (five segments, two heads in each), "
                f"found {self.embedding_dims}"
            )
        if self.num_classes < 0:
            raise ValueError(f"num_classes: expected 0 (no head) or more, found {self.num_classes}")
        if self.in_chans < 1:
            raise ValueError(f"in_chans: expected at least 1 channel, found {self.in_chans}")
        for name in ("drop_path_rate", "drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= rate < 1, found {getattr(self, name)}")

    @property
    def is_published_form(self) -> bool:
        """Whether the attention is the published one, not an ablation."""
        return self.attention == AttentionConfig()

    def require_published_form(self, what: str) -> None:
        """Raise ValueError, in one line, for an ablation; `what` needs the published attention."""
        if not self.is_published_form:
            raise ValueError(
                f"{what}: expected the published attention, found the ablation {self.attention}; "
                "call the model itself"
            )

    def require_colour(self, what: str) -> None:
        """Raise ValueError, in one line, for a network that does not take RGB; `what` needs RGB."""
        if self.in_chans != 3:
            raise ValueError(
                f"{what}: expected a network for pictures with 3 channels, found one with "
                f"{self.in_chans}: call the model itself, with arrays (B, {self.in_chans}, H, W)"
            )

    def mlp_hidden(self, stage: int) -> int:
        """Width of the hidden layer of the MLPs of one stage (0 to 3)."""
        return int(self.embedding_dims[stage] * self.mlp_ratios[stage])

    def drop_path_rates(self) -> tuple[tuple[float, ...], ...]:
        """Stochastic-depth rate of every block, stage by stage: linear from 0 to the last block."""
        last = max(sum(self.serial_depths) - 1, 1)
        starts = [sum(self.serial_depths[:i]) for i in range(STAGES)]
        return tuple(
            tuple(self.drop_path_rate * (start + j) / last for j in range(depth))
            for start, depth in zip(starts, self.serial_depths, strict=True)
        )

    @classmethod
    def from_state_dict(cls, shapes: Mapping[str, tuple[int, ...]]) -> GroupMixFormerConfig:
        """Infer the configuration from a checkpoint's keys and shapes, number of classes included.

        `drop_path_rate` is not in the weights: it is that of the listed variant with this
        architecture, else 0. Raises ValueError if this is not a GroupMixFormer.
        """
        try:
            dims = tuple(shapes[f"patch_embed_layers.{i}.norm.weight"][0] for i in range(STAGES))
            depths = tuple(_count_blocks(shapes, i) for i in range(STAGES))
            hidden = [shapes[_block_key(i, 0, "mlp.fc1.weight")][0] for i in range(STAGES)]
            in_chans = shapes["conv_stem.proj1.weight"][1]
        except (KeyError, IndexError) as missing:
            raise ValueError(f"not a GroupMixFormer: it has no tensor {missing}") from None
        head = shapes.get("head.weight")
        config = cls(
            embedding_dims=dims,
            serial_depths=depths,
            mlp_ratios=tuple(_ratio(h, d) for h, d in zip(hidden, dims, strict=True)),
            num_classes=head[0] if head else 0,
            in_chans=in_chans,
        )
        name = variant_name(config)
        return replace(config, drop_path_rate=VARIANTS[name].drop_path_rate) if name else config


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says about its network besides the weights; it affects no shape."""

    image_size: int | None = None  # side of the training images, in pixels
    classes: tuple[str, ...] = ()  # names in class order; empty where unknown
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = CROP

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Read the settings from a checkpoint's metadata; other values are ignored.

        Raises ValueError, in one line, for a value of the wrong kind.
        """
        known: dict[str, Any] = {}
        for name, expected, holds in (
            (
                "image_size",
                f"a number of pixels, at most {LARGEST_SIZE:,},",
                lambda v: v is None or (type(v) is int and 0 < v <= LARGEST_SIZE),
            ),
            ("classes", "a list of names", lambda v: _is_list(v, lambda x: isinstance(x, str))),
            ("mean", "three positive numbers", lambda v: _is_list(v, _is_positive) and len(v) == 3),
            ("std", "three positive numbers", lambda v: _is_list(v, _is_positive) and len(v) == 3),
            (
                "crop",
                f"a share of the side, {SMALLEST_CROP} to 1,",
                lambda v: _is_positive(v) and SMALLEST_CROP <= v <= 1,
            ),
        ):
            if name not in values:
                continue
            value = values[name]
            if not holds(value):
                raise ValueError(f"metadata: expected {expected} in {name}, found {value!r}")
            known[name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _block_key(stage: int, block: int, name: str) -> str:
    return f"groupmixformer_backbone.{stage}.gma_stage.{block}.{name}"


def _count_blocks(shapes: Mapping[str, tuple[int, ...]], stage: int) -> int:
    block = re.compile(rf"groupmixformer_backbone\.{stage}\.gma_stage\.(\d{{1,6}})\.")
    return len({match[1] for key in shapes if (match := block.match(key))})


def _ratio(hidden: int, dim: int) -> float:
    """The ratio with int(dim * ratio) == hidden; plain division may give one float less."""
    if hidden % dim == 0:
        return hidden // dim
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _variant(dims: str, depths: str, ratios: str, drop_path: float) -> GroupMixFormerConfig:
    widths, blocks, factors = (tuple(map(int, text.split())) for text in (dims, depths, ratios))
    return GroupMixFormerConfig(widths, blocks, factors, drop_path_rate=drop_path)


VARIANTS = {
    "groupmixformer_nano": _variant("20 40 80 80", "1 1 1 1", "2 2 2 2", 0.0),
    "groupmixformer_miny": _variant("40 80 160 160", "3 3 12 4", "4 4 4 4", 0.1),
    "groupmixformer_tiny": _variant("80 160 200 240", "4 4 12 4", "4 4 4 4", 0.1),
    "groupmixformer_small": _variant("80 160 320 320", "2 4 12 4", "4 4 4 4", 0.2),
    "groupmixformer_base": _variant("200 240 320 480", "8 8 12 8", "2 2 4 4", 0.5),
    "groupmixformer_large": _variant("240 320 360 480", "8 10 30 10", "4 4 2 2", 0.1),
}


def full_name(name: str) -> str:
    """`nano` -> `groupmixformer_nano`; any other name as it is."""
    long = f"groupmixformer_{name}"
    return long if long in VARIANTS else name


def variant_name(config: GroupMixFormerConfig) -> str | None:
    """The listed variant with this architecture, whatever its classes and dropout; else None."""

    def shape(config: GroupMixFormerConfig) -> tuple[object, ...]:
        return config.embedding_dims, config.serial_depths, config.mlp_ratios, config.attention

    return next((name for name, known in VARIANTS.items() if shape(known) == shape(config)), None)
