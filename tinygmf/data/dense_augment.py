"""Augmentations that keep boxes, masks and class maps in step with their picture.

Pictures are resized by a random factor and cropped or padded to one size (large-scale jitter, arXiv
2012.07177, section 3), mirrored and recoloured. Boxes are as in `annotations`; every function draws
only from the generator that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tinygmf.data.annotations import IGNORE, Annotations
from tinygmf.data.augment import colour_jitter
from tinygmf.data.outlines import mask_boxes
from tinygmf.image import MEAN

PADDING = tuple(round(255 * mean) for mean in MEAN.tolist())  # zero, once normalized
Pair = tuple[Image.Image, Annotations]


@dataclass(frozen=True)
class DenseAugment:
    """The augmentation of a training picture.

    `size`: side of the resulting square, in pixels; `scale`: smallest and largest factor, where 1
    makes the picture just fit into the square; `flip`: how often it is mirrored; `colour`: the
    largest change of brightness, contrast and saturation, as a share.
    """

    size: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.4

    def __call__(self, picture: Image.Image, known: Annotations, rng: np.random.Generator) -> Pair:
        """An RGB picture and its annotations -> both for size x size pixels."""
        factor = rng.uniform(*self.scale) * self.size / max(picture.size)
        width, height = (max(1, round(side * factor)) for side in picture.size)
        x0, y0 = (
            int(rng.integers(min(0, side - self.size), max(0, side - self.size) + 1))
            for side in (width, height)
        )
        x1, y1 = x0 + self.size, y0 + self.size
        seen = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
        picture, known = resize(picture, known, width, height, seen)
        part = x0 - seen[0], y0 - seen[1], x1 - seen[0], y1 - seen[1]
        picture, known = crop(picture, known, part)
        if rng.random() < self.flip:
            picture, known = flip(picture, known)
        if self.colour:
            picture = colour_jitter(picture, self.colour, rng)
        return picture, known


def flip(picture: Image.Image, known: Annotations) -> Pair:
    """Mirror left and right."""
    x0, y0, x1, y1 = known.boxes.T
    mirrored = replace(
        known,
        boxes=np.stack([picture.width - x1, y0, picture.width - x0, y1], 1),
        masks=None if known.masks is None else known.masks[:, :, ::-1],
        class_map=None if known.class_map is None else known.class_map[:, ::-1],
    )
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored


def resize(
    picture: Image.Image,
    known: Annotations,
    width: int,
    height: int,
    part: tuple[int, int, int, int] | None = None,
) -> Pair:
    """Resize to width x height pixels: the picture bilinearly and antialiased, masks and class maps
    by the pixel that the new one's centre lies in; of the result, `part` (x0, y0, x1, y1) alone."""
    x0, y0, x1, y1 = part or (0, 0, width, height)
    across, down = width / picture.width, height / picture.height
    rows, columns = (
        ((np.arange(first, last) + 0.5) * (old / new)).astype(int)
        for first, last, new, old in (
            (y0, y1, height, picture.height),
            (x0, x1, width, picture.width),
        )
    )
    masks, class_map = known.masks, known.class_map
    resized = replace(
        known,
        boxes=known.boxes * np.array([across, down] * 2, np.float32)
        - np.array([x0, y0] * 2, np.float32),
        areas=known.areas * np.float32(across * down),
        masks=None if masks is None else masks[:, rows[:, None], columns],
        class_map=None if class_map is None else class_map[rows[:, None], columns],
    )
    box = (x0 / across, y0 / down, min(x1 / across, picture.width), min(y1 / down, picture.height))
    picture = picture.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box)
    return picture, fitted(resized, *picture.size)


def crop(picture: Image.Image, known: Annotations, part: tuple[int, int, int, int]) -> Pair:
    """Crop to (x0, y0, x1, y1), which may reach outside: there the picture gets ImageNet's mean
    colour, the class map `IGNORE`. Objects that fall outside entirely are dropped."""
    x0, y0, x1, y1 = part
    width, height = x1 - x0, y1 - y0
    cut = Image.new("RGB", (width, height), PADDING)
    cut.paste(picture, (-x0, -y0))
    masks, class_map = known.masks, known.class_map
    moved = replace(
        known,
        boxes=known.boxes - np.array([x0, y0, x0, y0], np.float32),
        masks=None if masks is None else _cut(masks, part, False),
        class_map=None if class_map is None else _cut(class_map, part, IGNORE),
    )
    return cut, fitted(moved, width, height)


def _cut(planes: np.ndarray, part: tuple[int, int, int, int], outside: int) -> np.ndarray:
    """Crop (…, H, W), filling what lies outside."""
    x0, y0, x1, y1 = part
    height, width = planes.shape[-2:]
    found = np.full((*planes.shape[:-2], y1 - y0, x1 - x0), outside, planes.dtype)
    inside = planes[..., max(0, y0) : max(0, min(y1, height)), max(0, x0) : max(0, min(x1, width))]
    top, left = max(0, -y0), max(0, -x0)
    found[..., top : top + inside.shape[-2], left : left + inside.shape[-1]] = inside
    return found


def fitted(known: Annotations, width: int, height: int) -> Annotations:
    """Clip objects to a picture of width x height; those entirely outside are dropped.

    If there are masks, each box becomes the smallest one around its mask.
    """
    if known.masks is not None:
        boxes = mask_boxes(known.masks)
    else:
        boxes = known.boxes.clip(0, np.array([width, height, width, height], np.float32))
    left = np.all(boxes[:, 2:] > boxes[:, :2], 1)
    return replace(known, boxes=boxes).take(left)
