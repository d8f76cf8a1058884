"""Boxes in NumPy: anchors, encoding, overlap, suppression, matching, without loops over anchors.

A box is (x0, y0, x1, y1) in pixels, float32, the upper left and the lower right corner. Corners are
points between pixels, so the width is x1 - x0 and the box of a whole picture is (0, 0, W, H).
Arithmetic and order are torchvision 0.28's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Size = tuple[int, int]  # (H, W)

MAX_GROWTH = math.log(1000 / 16)  # the most a side can grow in one decoding, as a logarithm
BACKGROUND, BETWEEN = -1, -2  # what `match` returns instead of an object's index
BY_CLASS_ABOVE = 1000  # boxes; with more, torchvision suppresses class by class


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Array:
    """The anchors of one place, centred on (0, 0): (ratios * sizes, 4), ratio by ratio, rounded to
    whole pixels (halves to even). A size is the square root of an area, a ratio height / width."""
    tall = np.sqrt(np.asarray(ratios, np.float32))
    scales = np.asarray(sizes, np.float32)
    widths = ((1 / tall)[:, None] * scales).ravel()
    heights = (tall[:, None] * scales).ravel()
    return (np.stack([-widths, -heights, widths, heights], axis=1) / 2).round()


def grid_anchors(
    picture: Size,
    grids: Sequence[Size],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
) -> list[Array]:
    """The anchors of every level, each (H_l * W_l * A, 4): row by row, place by place.

    Centres are multiples of picture side // grid side, from 0; nothing is clipped.
    """
    levels = []
    for (rows, columns), own in zip(grids, sizes, strict=True):
        y = np.arange(rows, dtype=np.float32) * (picture[0] // rows)
        x = np.arange(columns, dtype=np.float32) * (picture[1] // columns)
        y, x = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
        shifts = np.stack([x, y, x, y], axis=1)
        levels.append((shifts[:, None] + cell_anchors(own, ratios)).reshape(-1, 4))
    return levels


def encode(boxes: Array, anchors: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """The inverse of `decode`: offsets of the centre in units of the anchor's sides and logarithms
    of the ratios of sides, times `weights`. Both (n, 4) -> (n, 4)."""
    size, own = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    offset = (boxes[:, :2] + 0.5 * size - anchors[:, :2] - 0.5 * own) / own
    growth = np.log(size / own)
    return np.concatenate([offset, growth], axis=1) * np.asarray(weights, np.float32)


def decode(deltas: Array, anchors: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Apply deltas (…, 4) to anchors (…, 4), which broadcast -> boxes (…, 4), not clipped.

    A side grows at most by a factor of 62.5.
    """
    deltas = deltas / np.asarray(weights, np.float32)
    size = anchors[..., 2:] - anchors[..., :2]
    centre = deltas[..., :2] * size + (anchors[..., :2] + np.float32(0.5) * size)
    half = np.exp(np.minimum(deltas[..., 2:], np.float32(MAX_GROWTH))) * size * np.float32(0.5)
    return np.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Array, picture: Size) -> Array:
    """Clip boxes (…, 4) to the picture, (0, 0, W, H)."""
    height, width = picture
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def wide_enough(boxes: Array, side: float) -> Array:
    """(n,) bool: both sides are at least `side` pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(side)).all(axis=1)


def overlap(first: Array, second: Array) -> Array:
    """Intersection over union of each of (n, 4) with each of (m, 4): (n, m); 0 / 0 is nan."""
    corner = np.minimum(first[:, None, 2:], second[:, 2:])
    sides = (corner - np.maximum(first[:, None, :2], second[:, :2])).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    with np.errstate(invalid="ignore"):
        return shared / (area(first)[:, None] + area(second) - shared)


def area(boxes: Array) -> Array:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def suppress(boxes: Array, scores: Array, nms_thresh: float, at_most: int | None = None) -> Array:
    """Non-maximum suppression: indices of the boxes that overlap no better kept box by more than
    `nms_thresh`, best first, at most `at_most`.

    Equal scores keep their order, and an overlap of exactly `nms_thresh` is kept. The loop runs
    over the kept boxes.
    """
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while len(order) and len(keep) != at_most:
        best, order = order[0], order[1:]
        keep.append(best)
        shared = overlap(boxes[best : best + 1], boxes[order])[0].astype(np.float64)
        order = order[~(shared > nms_thresh)]
    return np.array(keep, np.int64)


def suppress_by_class(
    boxes: Array, scores: Array, classes: Array, nms_thresh: float, at_most: int | None = None
) -> Array:
    """`suppress` within each class: indices, best first.

    As in torchvision, up to 1,000 boxes are shifted apart by class, which rounds their corners; if
    there are more, each class is suppressed separately.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    if len(boxes) <= BY_CLASS_ABOVE:
        step = boxes.max() + np.float32(1)
        return suppress(
            boxes + (classes.astype(np.float32) * step)[:, None], scores, nms_thresh, at_most
        )
    kept = []
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        kept.append(own[suppress(boxes[own], scores[own], nms_thresh, at_most)])
    keep = np.sort(np.concatenate(kept))
    return keep[np.argsort(-scores[keep], kind="stable")][:at_most]


def match(objects: Array, boxes: Array, high: float, low: float, keep_best: bool = False) -> Array:
    """For each of `boxes` (n, 4) the index of the object (m, 4) that it overlaps most, if by at
    least `high`; BACKGROUND if by less than `low`; else BETWEEN: (n,) int64.

    With `keep_best`, the boxes that overlap an object most, including ties, are matched however
    small the overlap; each to the object that it itself overlaps most. Without objects, all are
    BACKGROUND.
    """
    if not len(objects):
        return np.full(len(boxes), BACKGROUND, np.int64)
    shared = overlap(objects, boxes)  # (m, n)
    best, most = shared.argmax(axis=0), shared.max(axis=0).astype(np.float64)
    matches = np.where(most < low, BACKGROUND, np.where(most < high, BETWEEN, best))
    if keep_best:
        chosen = (shared == shared.max(axis=1, keepdims=True)).any(axis=0)
        matches[chosen] = best[chosen]
    return matches
