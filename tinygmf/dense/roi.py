"""RoIAlign and its inverse: a map's values inside a box, and a mask pasted into its box.

Sources: Mask R-CNN (arXiv 1703.06870); arithmetic of torchvision 0.28's `MultiScaleRoIAlign`,
`roi_align` (`aligned` false) and `paste_masks_in_image`. Boxes are (n, 4) as in `boxes.py`.

A bin's value is the mean of a grid of samples, each interpolated bilinearly between four places.
Bilinear weights are products of row and column weights, so a box is described by its samples in
each direction, in NumPy. The map's values are then looked up (`loops.sampling.pool`, for inference)
or multiplied by two matrices with the same weights (`pool_by_matrices`, whose gradient is again two
products).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tinygrad import Tensor

from tinygmf.dense.pictures import resized

Array = np.ndarray
Size = tuple[int, int]

CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # of FPN's equation 1
POINTS = 2  # samples per bin in each direction, torchvision's `sampling_ratio`


class Samples(NamedTuple):
    """The S samples of n boxes in one direction: the two nearest places (n, S, 2) int32 and their
    weights (n, S, 2) float32. A sample beyond the map gets the border's value."""

    places: Array
    weights: Array


def scales(picture: Size, grids: Sequence[Size]) -> list[float]:
    """The side of each level divided by the picture's, rounded to a power of two; computed from the
    heights, as in torchvision."""
    return [2.0 ** round(math.log2(rows / picture[0])) for rows, _ in grids]


def levels_of(boxes: Array, level_scales: Sequence[float]) -> Array:
    """The level that each box is pooled from: (n,) int64; 224x224 pixels go to stride 16."""
    first, last = (-math.log2(scale) for scale in (level_scales[0], level_scales[-1]))
    side = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    with np.errstate(divide="ignore"):
        level = np.log2(side / np.float32(CANONICAL_SIDE))
    level = np.floor(np.float32(CANONICAL_LEVEL) + level + np.float32(1e-6))
    return (level.clip(first, last) - first).astype(np.int64)


def samples(low: Array, high: Array, side: Array | int, bins: int, points: int) -> Samples:
    """`bins` x `points` samples between two corners (n,), in places of a map with `side` places.

    Corners less than one place apart count as one apart, so samples of a small box at the border
    may lie beyond it. They get the border's value, as in torchvision's Python version of
    `roi_align`; the compiled one drops those more than a place beyond.
    """
    step = np.maximum(high - low, np.float32(1)) / np.float32(bins)  # (n,)
    offsets = (np.arange(points, dtype=np.float32) + np.float32(0.5)) / np.float32(points)
    offsets = (np.arange(bins, dtype=np.float32)[:, None] + offsets).ravel()  # (S,)
    position = low[:, None] + offsets * step[:, None]  # (n, S)
    last = np.broadcast_to(np.asarray(side) - 1, low.shape)[:, None]
    position = position.clip(0, last)
    first = position.astype(np.int32)
    part = np.where(first < last, position - first, 0).astype(np.float32)
    places = np.stack([first, np.minimum(first + 1, last)], axis=2).astype(np.int32)
    weights = np.stack([1 - part, part], axis=2) / np.float32(points)
    return Samples(places, weights)


class Lookups(NamedTuple):
    """What `pool` needs for n boxes in the concatenated levels of a batch: `rows.places` hold the
    index of the row's first value, `columns.places` the offset from there."""

    rows: Samples
    columns: Samples


def lookups(boxes: Array, pictures: Array, picture: Size, grids: Sequence[Size], bins: int):
    """The `Lookups` of boxes (n, 4) in the pictures (n,) of a batch."""
    level_scales = scales(picture, grids)
    level = levels_of(boxes, level_scales)
    scale = np.array(level_scales, np.float32)[level]
    height, width = np.array(grids)[level].T
    sizes = [rows * columns for rows, columns in grids]
    first = np.cumsum([0, *sizes[:-1]])[level] + pictures * sum(sizes)
    x0, y0, x1, y1 = (boxes * scale[:, None]).T
    rows = samples(y0, y1, height, bins, POINTS)
    flat = first[:, None, None] + rows.places * width[:, None, None]
    columns = samples(x0, x1, width, bins, POINTS)
    return Lookups(Samples(flat.astype(np.int32), rows.weights), columns)


def matrix(sampled: Samples, side: int, bins: int) -> Array:
    """The same samples as a matrix of weights: (n, bins, side)."""
    n, count, _ = sampled.places.shape
    bin_of = np.arange(count) // (count // bins)
    index = (np.arange(n)[:, None] * bins + bin_of)[..., None] * side + sampled.places
    flat = np.bincount(index.ravel(), sampled.weights.ravel(), minlength=n * bins * side)
    return flat.reshape(n, bins, side).astype(np.float32)


def matrices(boxes: Array, picture: Size, grids: Sequence[Size], bins: int):
    """For each level the matrices of rows (n, bins, h) and columns (n, bins, w); zero for boxes of
    other levels."""
    level_scales = scales(picture, grids)
    level, found = levels_of(boxes, level_scales), []
    for i, ((height, width), scale) in enumerate(zip(grids, level_scales, strict=True)):
        x0, y0, x1, y1 = (boxes * np.float32(scale)).T
        rows = matrix(samples(y0, y1, height, bins, POINTS), height, bins)
        columns = matrix(samples(x0, x1, width, bins, POINTS), width, bins)
        found.append((rows * (level == i)[:, None, None], columns))
    return found


def pool_by_matrices(levels: Sequence[Tensor], weights: Sequence[Sequence[Tensor]]) -> Tensor:
    """Levels (B, C, h, w), each with rows (B, n, bins, h) and columns (B, n, bins, w) ->
    (B * n, C, bins, bins)."""
    total: Tensor | None = None
    for x, (rows, columns) in zip(levels, weights, strict=True):
        batch, channels, height, width = x.shape
        n, bins = rows.shape[1:3]
        flat = x.permute(0, 2, 1, 3).reshape(batch, height, channels * width)
        part = rows.reshape(batch, n * bins, height) @ flat  # (B, n * bins, C * w)
        part = part.reshape(batch, n, bins * channels, width) @ columns.transpose(2, 3)
        total = part if total is None else total + part
    assert total is not None  # (B, n, bins * C, bins)
    return total.reshape(batch * n, bins, channels, bins).transpose(1, 2)


def crop(masks: Array, boxes: Array, bins: int) -> Array:
    """The part of each mask (n, H, W) inside its box, by RoIAlign to (bins, bins) with as many
    samples as a bin has pixels, rounded up: (n, bins, bins) float32, the mask head's targets."""
    return np.stack([_crop(*pair, bins) for pair in zip(masks, boxes, strict=True)])


def _crop(mask: Array, box: Array, bins: int) -> Array:
    x0, y0, x1, y1 = box[:, None]
    sides = []
    for low, high, side in ((y0, y1, mask.shape[0]), (x0, x1, mask.shape[1])):
        points = math.ceil(max(float((high - low)[0]), 1) / bins)
        sides.append(matrix(samples(low, high, side, bins, points), side, bins)[0])
    return sides[0] @ mask.astype(np.float32) @ sides[1].T


def paste(mask: Array, box: Array, picture: Size) -> Array:
    """Paste a mask head's probabilities (M, M) into a picture (H, W) float32, zero off the box.

    As in torchvision, a rim of one zero is added and the box grown to match, its corners are
    truncated to whole pixels, and the mask is resized bilinearly to the pixels from corner to
    corner, both included.
    """
    side = len(mask)
    padded = np.pad(mask, 1)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((side + 2) / side)
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    x0, y0, x1, y1 = (int(v) for v in np.concatenate([centre - half, centre + half]))
    height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    grown = resized(padded, (height, width))
    whole = np.zeros(picture, np.float32)
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y1 + 1, picture[0]), min(x1 + 1, picture[1])
    whole[top:bottom, left:right] = grown[top - y0 : bottom - y0, left - x0 : right - x0]
    return whole
