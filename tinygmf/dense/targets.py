"""The targets of a detector, in NumPy: anchors and proposals matched with objects.

The rules are torchvision 0.28's for RetinaNet and Mask R-CNN. Everything has a fixed size, so that
one program trains on any picture: what does not count has weight zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinygmf.dense import roi
from tinygmf.dense.boxes import BACKGROUND, BETWEEN, encode, match
from tinygmf.dense.settings import MaskRCNNSettings

Array = np.ndarray


@dataclass(frozen=True)
class Objects:
    """What is in a picture: `boxes` (n, 4) float32 as in `boxes.py`, with a positive width and
    height, `labels` (n,) int64 and, for masks, `masks` (n, H, W) of zeros and ones. n may be 0."""

    boxes: Array
    labels: Array
    masks: Array | None = None


class Sampling(NamedTuple):
    """How many anchors or proposals of a picture to sample, and the largest share of them that may
    hold an object; `rng` chooses."""

    batch_size_per_image: int
    positive_fraction: float
    rng: np.random.Generator

    def choose(self, labels: Array) -> Array:
        """(n,) labels, -1 ignored, 0 background, above 0 objects -> (n,) bool."""
        positive, negative = np.flatnonzero(labels >= 1), np.flatnonzero(labels == 0)
        most = int(self.batch_size_per_image * self.positive_fraction)
        positive = self.rng.permutation(positive)[:most]
        negative = self.rng.permutation(negative)[: self.batch_size_per_image - len(positive)]
        chosen = np.zeros(len(labels), bool)
        chosen[positive] = chosen[negative] = True
        return chosen


def torchvision_sampling(
    settings: MaskRCNNSettings, rng: np.random.Generator
) -> tuple[Sampling, Sampling]:
    """Torchvision's sampling of anchors and of proposals."""
    return (
        Sampling(settings.rpn_batch_size_per_image, settings.rpn_positive_fraction, rng),
        Sampling(settings.box_batch_size_per_image, settings.box_positive_fraction, rng),
    )


def counted(labels: Array, sampling: Sampling | None) -> Array:
    """Which ones count: the sampled ones, or without sampling all that are not ignored."""
    return labels >= 0 if sampling is None else sampling.choose(labels)


class AnchorTargets(NamedTuple):
    """For a batch's anchors: `classes` (B, A) int32, an object's label, BACKGROUND or BETWEEN;
    `deltas` (B, A, 4), zero if there is no object."""

    classes: Array
    deltas: Array


def anchor_targets(
    anchors: Array, pictures: Sequence[Objects], fg_iou_thresh: float, bg_iou_thresh: float
) -> AnchorTargets:
    """Match anchors (A, 4) with the objects of each picture; an object always gets its best
    anchors."""
    classes, deltas = [], []
    for objects in pictures:
        matches = match(objects.boxes, anchors, fg_iou_thresh, bg_iou_thresh, keep_best=True)
        label, own = np.minimum(matches, 0), np.zeros_like(anchors)
        held = matches >= 0
        label[held] = objects.labels[matches[held]]
        own[held] = encode(objects.boxes[matches[held]], anchors[held])
        classes.append(label.astype(np.int32))
        deltas.append(own)
    return AnchorTargets(np.stack(classes), np.stack(deltas))


class RPNTargets(NamedTuple):
    """For a batch's anchors: `objects` (B, A), 1 if there is one; `counted` (B, A), 1 if the anchor
    counts; `deltas` (B, A, 4)."""

    objects: Array
    counted: Array
    deltas: Array


def rpn_targets(
    anchors: Array,
    pictures: Sequence[Objects],
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    sampling: Sampling | None = None,
) -> RPNTargets:
    alike = [Objects(p.boxes, np.ones(len(p.boxes), np.int64)) for p in pictures]
    classes, deltas = anchor_targets(anchors, alike, rpn_fg_iou_thresh, rpn_bg_iou_thresh)
    labels = np.select([classes == BETWEEN, classes == BACKGROUND], [-1, 0], 1)
    count = np.stack([counted(own, sampling) for own in labels])
    return RPNTargets((labels == 1).astype(np.float32), count.astype(np.float32), deltas)


class RoITargets(NamedTuple):
    """For R proposals of each picture, and M of them that hold objects: `boxes` (B, R, 4), `labels`
    (B, R) int32, -1 for unused places, `deltas` (B, R, 4); `mask_boxes` (B, M, 4), `mask_labels`
    (B, M), -1 for unused places, `masks` (B, M, side, side)."""

    boxes: Array
    labels: Array
    deltas: Array
    mask_boxes: Array
    mask_labels: Array
    masks: Array


def roi_targets(
    proposals: Sequence[Array],
    pictures: Sequence[Objects],
    places: int,
    mask_places: int,
    weights: Sequence[float] = (10, 10, 5, 5),
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    sampling: Sampling | None = None,
    mask_side: int = 28,
) -> RoITargets:
    """Sample from the proposals and the objects' own boxes. `places` and `mask_places` are R and M;
    what does not fit is left out."""
    found = []
    for own, objects in zip(proposals, pictures, strict=True):
        boxes = np.concatenate([own, objects.boxes]).astype(np.float32)
        matches = match(objects.boxes, boxes, box_fg_iou_thresh, box_bg_iou_thresh)
        labels = np.minimum(matches, 0)
        labels[matches >= 0] = objects.labels[matches[matches >= 0]]
        labels = np.select([matches == BETWEEN, matches == BACKGROUND], [-1, 0], labels)
        chosen = np.flatnonzero(counted(labels, sampling))[:places]
        boxes, labels, matches = boxes[chosen], labels[chosen], matches[chosen]
        held = np.flatnonzero(labels > 0)
        deltas = np.zeros_like(boxes)
        deltas[held] = encode(objects.boxes[matches[held]], boxes[held], weights)
        few = held[:mask_places]
        masks = np.zeros((len(few), mask_side, mask_side), np.float32)
        if objects.masks is not None and len(few):
            masks = roi.crop(objects.masks[matches[few]], boxes[few], mask_side)
        wide = [_fill(a, places) for a in (boxes, labels.astype(np.int32), deltas)]
        tight = (boxes[few], labels[few].astype(np.int32), masks)
        found.append((*wide, *(_fill(a, mask_places) for a in tight)))
    return RoITargets(*(np.stack(parts) for parts in zip(*found, strict=True)))


def _fill(array: Array, places: int) -> Array:
    """Pad with unused places at the end: -1 in labels (integers), zeros elsewhere."""
    value = -1 if array.dtype.kind == "i" else 0
    rims = [(0, places - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, rims, constant_values=value)
