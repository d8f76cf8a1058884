"""The dense network a run starts from: its widths, anchors and thresholds as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinygmf.dense.segmentation import AuxiliaryConfig

NARROW = 32  # channels of the heads on `scenes`

# For `scenes`: small pictures, few objects; the anchors suit objects of 20 to 80 pixels
SCENES: dict[str, dict[str, Any]] = {
    "upernet": {"auxiliary": None},
    "semantic_fpn": {"auxiliary": None},
    "retinanet": {"num_convs": 2, "topk_candidates": 200, "detections_per_img": 50},
    "maskrcnn": {
        "anchor_sizes": ((20, 28), (40, 56), (80, 113), (160, 226), (320, 452)),
        "num_anchors": 6,
        "rpn_pre_nms_top_n_train": 200,
        "rpn_post_nms_top_n_train": 100,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 50,
        "rpn_batch_size_per_image": 64,
        "box_batch_size_per_image": 32,
        "box_detections_per_img": 30,
    },
}


def head_options(head: str, channels: int | None, small: bool) -> dict[str, Any]:
    """The options of a head for `create_model`. All widths follow from `channels`, by default the
    libraries' own; `small` is for `scenes`."""
    if channels is not None and channels < 1:
        raise ValueError(f"--channels: expected at least 1, found {channels}")
    own = dict(SCENES[head]) if small else {}
    width = channels or (NARROW if small else None)
    if width is None:
        return own
    own["channels"] = width
    if head == "semantic_fpn":
        own["neck_channels"] = width
    if head in ("semantic_fpn", "upernet") and "auxiliary" not in own:
        own["auxiliary"] = AuxiliaryConfig(channels=width)
    if head == "maskrcnn":
        convs = 2 if small else 4
        own |= {"representation": 4 * width, "mask_channels": (width,) * convs}
        own["mask_reduced"] = width
    return own


def named(model: Any, classes: list[str], size: int) -> Any:
    """Record the classes and the picture size in the network's settings, for its checkpoint."""
    longest = max(size, round(size * 5 / 3))
    model.settings = replace(
        model.settings, classes=tuple(classes), min_size=size, max_size=longest
    )
    return model
