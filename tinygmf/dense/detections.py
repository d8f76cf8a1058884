"""From a program's candidates to detections, in NumPy, in torchvision 0.28's order.

The settings fix the number of candidates; nothing here grows with the number of anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tinygmf.dense.boxes import Size, clip, decode, suppress_by_class, wide_enough
from tinygmf.dense.roi import paste
from tinygmf.dense.settings import MaskRCNNSettings, RetinaNetSettings

Array = np.ndarray


@dataclass(frozen=True)
class Detections:
    """What was found in a picture, best first; the arrays are empty if nothing was.

    boxes: (n, 4) float32, (x0, y0, x1, y1) in pixels, as in `boxes.py`, inside the picture.
    scores: (n,) float32, from 0 to 1.
    labels: (n,) int64, as in training; Mask R-CNN's start at 1.
    masks: (n, H, W) bool, pixels with a probability above 0.5; None if the network has no masks.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """The detections with at least this score."""
        chosen = self.scores >= score
        masks = None if self.masks is None else self.masks[chosen]
        return Detections(self.boxes[chosen], self.scores[chosen], self.labels[chosen], masks)


class Candidates(NamedTuple):
    """The candidates of one level and picture: indices of anchors (k,), their scores (k, K) before
    the sigmoid, their deltas (k, 4)."""

    places: Array
    logits: Array
    deltas: Array

    def in_order(self) -> Candidates:
        """Sort by place, so that equal scores are taken in the order of the anchors."""
        order = np.argsort(self.places, kind="stable")
        return Candidates(*(array[order] for array in self))


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def retinanet_detections(
    levels: Sequence[Candidates],
    anchors: Sequence[Array],
    picture: Size,
    settings: RetinaNetSettings,
) -> Detections:
    """Decode and clip the best `topk_candidates` pairs of anchor and class above `score_thresh` on
    each level; suppress within each class; keep the best `detections_per_img`."""
    found = []
    for candidates, own in zip(levels, anchors, strict=True):
        places, logits, deltas = candidates.in_order()
        scores = sigmoid(logits).ravel()
        pairs = np.flatnonzero(scores > np.float32(settings.score_thresh))
        order = np.argsort(-scores[pairs], kind="stable")[: settings.topk_candidates]
        pairs = pairs[order]
        rows = pairs // logits.shape[1]
        boxes = clip(decode(deltas[rows], own[places[rows]]), picture)
        found.append((boxes, scores[pairs], pairs % logits.shape[1]))
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return kept(boxes, scores, labels, settings.nms_thresh, settings.detections_per_img)


def kept(boxes: Array, scores: Array, labels: Array, nms_thresh: float, at_most: int) -> Detections:
    keep = suppress_by_class(boxes, scores, labels, nms_thresh, at_most)
    return Detections(boxes[keep], scores[keep], labels[keep].astype(np.int64))


def proposals(
    levels: Sequence[Candidates],
    anchors: Sequence[Array],
    picture: Size,
    settings: MaskRCNNSettings,
    training: bool = False,
) -> Array:
    """Boxes (n, 4), best first: the best `rpn_pre_nms_top_n` of each level, decoded, clipped, at
    least 0.001 pixels wide and high, suppressed by level; at most `rpn_post_nms_top_n` in all."""
    when = "train" if training else "test"
    most = getattr(settings, f"rpn_pre_nms_top_n_{when}")
    found = []
    for i, (candidates, own) in enumerate(zip(levels, anchors, strict=True)):
        places, logits, deltas = candidates.in_order()
        order = np.argsort(-logits[:, 0], kind="stable")[:most]
        boxes = clip(decode(deltas[order], own[places[order]]), picture)
        found.append((boxes, sigmoid(logits[order, 0]), np.full(len(order), i)))
    boxes, scores, level = (np.concatenate(parts) for parts in zip(*found, strict=True))
    good = wide_enough(boxes, 1e-3) & (scores >= np.float32(settings.rpn_score_thresh))
    boxes, scores, level = boxes[good], scores[good], level[good]
    most = getattr(settings, f"rpn_post_nms_top_n_{when}")
    return boxes[suppress_by_class(boxes, scores, level, settings.rpn_nms_thresh, most)]


def box_detections(
    logits: Array, deltas: Array, own: Array, picture: Size, settings: MaskRCNNSettings
) -> Detections:
    """From proposals (n, 4), class logits (n, K) and deltas (n, 4 K): every class but 0 of every
    proposal, if above `box_score_thresh` and at least 0.01 pixels wide and high, suppressed by
    class; the best `box_detections_per_img`."""
    n, classes = logits.shape
    power = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    scores = (power / power.sum(axis=1, keepdims=True))[:, 1:].ravel()
    boxes = decode(deltas.reshape(n, classes, 4), own[:, None], settings.bbox_reg_weights)
    boxes = clip(boxes, picture)[:, 1:].reshape(-1, 4)
    labels = np.tile(np.arange(1, classes), n)
    good = (scores > np.float32(settings.box_score_thresh)) & wide_enough(boxes, 1e-2)
    return kept(
        boxes[good],
        scores[good],
        labels[good],
        settings.box_nms_thresh,
        settings.box_detections_per_img,
    )


def in_picture(
    found: Detections, probabilities: Array | None, network: Size, picture: Size
) -> Detections:
    """The detections, moved to a picture of another size; given a mask head's probabilities
    (n, 28, 28), with masks pasted into it."""
    ratio = np.array(picture, np.float32) / np.array(network, np.float32)
    boxes = found.boxes * ratio[[1, 0, 1, 0]]
    if probabilities is None:
        return replace(found, boxes=boxes)
    masks = np.zeros((len(boxes), *picture), bool)
    for i, (mask, box) in enumerate(zip(probabilities, boxes, strict=True)):
        masks[i] = paste(mask, box, picture) > 0.5
    return replace(found, boxes=boxes, masks=masks)
