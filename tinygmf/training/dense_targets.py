"""A dense network's targets for a batch: arrays of fixed shapes, made in NumPy at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinygmf.data.annotations import IGNORE, Annotations
from tinygmf.dense import roi
from tinygmf.dense.boxes import grid_anchors
from tinygmf.dense.detections import Candidates, proposals
from tinygmf.dense.detector import grids_of
from tinygmf.dense.maskrcnn import MASK_BINS
from tinygmf.dense.settings import MaskRCNNSettings, RetinaNetSettings, sizes_of_levels
from tinygmf.dense.targets import Objects, Sampling, anchor_targets, roi_targets, rpn_targets

Array = np.ndarray


class Known(NamedTuple):
    """The annotations of a batch, and the generator for its random choices."""

    pictures: list[Annotations]
    rng: np.random.Generator


class Outputs(NamedTuple):
    """What Mask R-CNN's first program computes for a batch: objectness (B, anchors, 1) and deltas
    (B, anchors, 4)."""

    objectness: Array
    deltas: Array


class Targets(Protocol):
    """Makes a network's targets, its last inputs (`dense_gradient`), from annotations."""

    def arrays(self, known: Known, outputs: Outputs | None = None) -> list[Array]: ...


def objects(known: Annotations) -> Objects:
    """The objects to learn from: crowds are left out, as in torchvision's reference."""
    counted = known.take(~known.ignored)
    return Objects(counted.boxes, counted.labels, counted.masks)


class SegmentationTargets:
    def __init__(self, network: Any, size: int) -> None:
        self.size, config = size, network.config
        self.ratio = config.dropout_ratio
        self.widths = [config.channels]
        self.widths += [config.auxiliary.channels] if config.auxiliary else []

    def arrays(self, known: Known, outputs: Outputs | None = None) -> list[Array]:
        batch = len(known.pictures)
        labels = np.empty((batch, self.size, self.size), np.int32)
        for i, one in enumerate(known.pictures):
            labels[i] = IGNORE if one.class_map is None else one.class_map
        draws = [known.rng.random((batch, 1, 1, width)) for width in self.widths]
        kept = [(draw >= self.ratio) / (1 - self.ratio) for draw in draws]
        return [labels, *(one.astype(np.float32) for one in kept)]


class RetinaNetTargets:
    def __init__(self, network: Any, size: int) -> None:
        self.settings: RetinaNetSettings = network.settings
        anchors = network.config.num_anchors
        self.anchors = np.concatenate(anchors_of(self.settings, anchors, size, first=1))

    def arrays(self, known: Known, outputs: Outputs | None = None) -> list[Array]:
        thresholds = self.settings.fg_iou_thresh, self.settings.bg_iou_thresh
        return list(anchor_targets(self.anchors, [*map(objects, known.pictures)], *thresholds))


def anchors_of(settings: Any, num_anchors: int, size: int, first: int) -> list[Array]:
    """The anchors of square pictures on every level, from stage `first` on."""
    sizes = sizes_of_levels(settings, num_anchors)
    picture = size, size
    return grid_anchors(picture, grids_of(picture, first), sizes, settings.aspect_ratios)


class MaskRCNNTargets:
    def __init__(self, network: Any, size: int) -> None:
        self.settings: MaskRCNNSettings = network.settings
        self.size, self.bins = (size, size), network.config.box_bins
        self.levels = anchors_of(self.settings, network.config.num_anchors, size, first=0)
        self.grids = grids_of(self.size, 0)[:4]
        self.places = self.settings.box_batch_size_per_image
        self.mask_places = max(1, int(self.places * self.settings.box_positive_fraction))

    def arrays(self, known: Known, outputs: Outputs | None = None) -> list[Array]:
        s, pictures = self.settings, [*map(objects, known.pictures)]
        sampling = Sampling(s.rpn_batch_size_per_image, s.rpn_positive_fraction, known.rng)
        anchors = np.concatenate(self.levels)
        rpn = rpn_targets(anchors, pictures, s.rpn_fg_iou_thresh, s.rpn_bg_iou_thresh, sampling)
        found = roi_targets(
            self.proposed(outputs, len(pictures)),
            pictures,
            self.places,
            self.mask_places,
            s.bbox_reg_weights,
            s.box_fg_iou_thresh,
            s.box_bg_iou_thresh,
            Sampling(self.places, s.box_positive_fraction, known.rng),
        )
        boxes = found.labels.reshape(-1), found.deltas.reshape(-1, 4)
        side = found.masks.shape[-1]
        masks = found.mask_labels.reshape(-1), found.masks.reshape(-1, side, side)
        box_lookups = self.lookups(found.boxes, self.bins)
        return [*rpn, *boxes, *box_lookups, *masks, *self.lookups(found.mask_boxes, MASK_BINS)]

    def proposed(self, outputs: Outputs | None, batch: int) -> list[Array]:
        """The proposals (n, 4) of each picture; none if there are no outputs yet."""
        if outputs is None:
            return [np.zeros((0, 4), np.float32)] * batch
        return [
            proposals(self.candidates(*one), self.levels, self.size, self.settings, training=True)
            for one in zip(*outputs, strict=True)
        ]

    def candidates(self, logits: Array, deltas: Array) -> Sequence[Candidates]:
        """All anchors of each level."""
        ends = np.cumsum([len(own) for own in self.levels])[:-1]
        parts = (np.split(values, ends) for values in (logits, deltas))
        return [Candidates(np.arange(len(a)), a, b) for a, b in zip(*parts, strict=True)]

    def lookups(self, boxes: Array, bins: int) -> list[Array]:
        batch, places, _ = boxes.shape
        pictures = np.repeat(np.arange(batch), places)
        found = roi.lookups(boxes.reshape(-1, 4), pictures, self.size, self.grids, bins)
        return [*found.rows, *found.columns]


TARGETS: dict[str, Any] = {
    "upernet": SegmentationTargets,
    "semantic_fpn": SegmentationTargets,
    "retinanet": RetinaNetTargets,
    "maskrcnn": MaskRCNNTargets,
}
