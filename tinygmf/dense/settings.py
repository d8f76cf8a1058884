"""What a dense checkpoint holds besides weights: sizes, anchors and thresholds, under the names and
with the defaults of mmsegmentation 1.2 and torchvision 0.28. None of it affects a tensor's shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from tinygmf.config import LARGEST_SIZE, Settings

Anchors = tuple[Any, ...]  # one size per level, or a tuple of sizes per level


@dataclass(frozen=True)
class DenseSettings(Settings):
    """`min_size` and `max_size` in pixels: a picture's shorter side is resized to `min_size`,
    unless the longer one would then exceed `max_size`."""

    min_size: int = 800
    max_size: int = 1333

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The settings in a checkpoint's metadata; other entries are ignored.

        Raises ValueError, in one line, for a value of the wrong kind.
        """
        common = asdict(Settings.from_json(values))
        own = {f.name: f.default for f in fields(cls) if f.name not in common}
        if common["image_size"]:
            own["min_size"] = common["image_size"]
        return cls(**common).changed(**own | {k: values[k] for k in own if k in values})

    def changed(self, **changes: Any) -> Self:
        """The settings with other values; ValueError for an unknown name or a wrong kind."""
        named = {ALIASES.get((type(self).__name__, k), k): v for k, v in changes.items()}
        known = {f.name: f.default for f in fields(self)}
        for name, value in named.items():
            if name not in known:
                raise ValueError(f"settings: expected one of {', '.join(known)}, found {name!r}")
            named[name] = _like(known[name], value, name)
        return replace(self, **named)


def _like(default: Any, value: Any, name: str) -> Any:
    """The value, if it is of the same kind as the default; lists become tuples."""
    if isinstance(default, tuple) and isinstance(value, list | tuple) and value:
        if all(isinstance(v, list | tuple) for v in value) and name == "anchor_sizes":
            return tuple(_like((1.0,), v, name) for v in value)
        if not isinstance(default[0] if default else "", str) and all(map(_is_positive, value)):
            return tuple(value)
    elif isinstance(default, float) and type(value) in (int, float) and 0 <= value < math.inf:
        return float(value)
    elif type(default) is int and type(value) is int and 0 < value <= LARGEST_SIZE:
        return value
    elif default is None or default == ():
        return value  # image_size and classes, which `Settings` checks
    raise ValueError(f"settings: expected {name} as in {default!r}, found {value!r}")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


@dataclass(frozen=True)
class SegmentationSettings(DenseSettings):
    """UPerNet and Semantic FPN; `pool_scales` and `dropout_ratio` follow the configuration."""

    min_size: int = 512
    max_size: int = 2048
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    dropout_ratio: float = 0.1


@dataclass(frozen=True)
class RetinaNetSettings(DenseSettings):
    """The arguments of torchvision's `RetinaNet`. `anchor_sizes` has one size in pixels for each of
    five levels, subdivided into as many parts of an octave as the network has anchors for."""

    anchor_sizes: Anchors = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_img: int = 300
    topk_candidates: int = 1000
    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.4


@dataclass(frozen=True)
class MaskRCNNSettings(DenseSettings):
    """The arguments of torchvision's `MaskRCNN`. `score_thresh`, `nms_thresh` and
    `detections_per_img` stand for those that start with `box_`."""

    anchor_sizes: Anchors = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    bbox_reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)


ALIASES = {
    ("MaskRCNNSettings", name): f"box_{name}"
    for name in ("score_thresh", "nms_thresh", "detections_per_img")
}


def sizes_of_levels(
    settings: RetinaNetSettings | MaskRCNNSettings, num_anchors: int, levels: int = 5
) -> list[tuple[float, ...]]:
    """The anchor sizes of each level: times the number of aspect ratios, `num_anchors` in all.

    A single size per level stands for itself times 2^(i/n), i < n, truncated to whole pixels, as in
    torchvision's default. Raises ValueError if the numbers do not match.
    """
    sizes, ratios = settings.anchor_sizes, len(settings.aspect_ratios)
    n = num_anchors // ratios
    if not isinstance(sizes[0], tuple):
        sizes = tuple((s, *(int(s * 2 ** (i / n)) for i in range(1, n))) for s in sizes)
    if len(sizes) != levels or any(len(own) * ratios != num_anchors for own in sizes):
        raise ValueError(
            f"anchors: expected {num_anchors} per place on {levels} levels, as the network has; "
            f"found anchor_sizes {settings.anchor_sizes} and aspect_ratios "
            f"{settings.aspect_ratios}; give others"
        )
    return list(sizes)
