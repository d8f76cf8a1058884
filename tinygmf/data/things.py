"""Objects from annotation files: checked, loaded with their pictures, split for validation.

The readers of COCO's, Pascal VOC's and YOLO's files produce samples of things, which are handled
alike from then on.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tinygmf.data.annotations import Annotations, paint_classes
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.mask_folders import read_mask
from tinygmf.data.outlines import decode, polygon_mask
from tinygmf.image import ImageError, load_image

MOST_MASKS = 2**31  # bytes of one picture's masks
PIXEL, SHARE = 1, 0.01  # how far a box may stick out unreported: files round, or count from 1
Outline = list[np.ndarray] | np.ndarray | int | None  # see Thing


class Thing(NamedTuple):
    """An object; `name` says where it is in its file. `outline`: polygons (k, 2), run lengths, its
    value in the sample's mask file, or None. If `area` is None, the mask's or the box's is used."""

    name: str
    label: int
    box: tuple[float, float, float, float]
    outline: Outline = None
    ignored: bool = False
    area: float | None = None


@dataclass
class Sample:
    """A picture and the things in it, according to `file`. `size`: the width and height that the
    annotations refer to, None if they are shares of the picture's sides; `id` is COCO's, or else
    the picture's name."""

    file: Path
    picture: Path
    things: list[Thing]
    size: tuple[int, int] | None
    id: Any = None
    mask: Path | None = None

    def __post_init__(self) -> None:
        self.id = str(self.picture) if self.id is None else self.id

    def __str__(self) -> str:
        return str(self.picture)


def usable(samples: list[Sample], task: str, broken: dict[str, str]) -> list[Sample]:
    """The samples whose picture exists, with their valid things; `broken` records the rest. A box
    that sticks out is clipped to its picture and recorded too."""
    kept = []
    for sample in samples:
        if not os.path.isfile(sample.picture):
            where = f"{sample.file}: image {sample.id}"
            broken[where] = f"expected picture {sample.picture}, found none"
            continue
        checked = [_checked(thing, sample, task, broken) for thing in sample.things]
        sample.things = [thing for thing in checked if thing is not None]
        kept.append(sample)
    return kept


def _checked(thing: Thing, sample: Sample, task: str, broken: dict[str, str]) -> Thing | None:
    where, (width, height) = f"{sample.file}: {thing.name}", sample.size or (1, 1)
    x0, y0, x1, y1 = thing.box
    corners = "(" + ", ".join(f"{value:g}" for value in thing.box) + ")"
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not all(map(math.isfinite, thing.box)) or x1 <= x0 or y1 <= y0:
        broken[where] = f"expected a box with an area, found {corners}"
    elif cut[2] <= cut[0] or cut[3] <= cut[1]:
        broken[where] = f"expected a box inside the picture of {width}x{height}, found {corners}"
    elif task != "detect" and thing.outline is None:
        broken[where] = "expected a mask, found only a box"
    else:
        slack = PIXEL if sample.size else SHARE
        if max(abs(a - b) for a, b in zip(cut, thing.box, strict=True)) > slack:
            broken[where] = f"clipped to the picture of {width}x{height}: its box was {corners}"
        return thing._replace(box=cut)
    return None


def things_dataset(
    name: str,
    task: str,
    classes: list[str],
    parts: tuple[list[Sample], list[Sample]],
    broken: dict[str, str],
    category_ids: list[int] | None = None,
) -> DenseDataset:
    """A data set from samples for training and validation. Raises DataError if all are bad."""
    train, val = (usable(samples, task, broken) for samples in parts)
    for samples, part in ((train, "train"), (val, "validate")):
        if not any(sample.things for sample in samples):
            bad = [f"{where}: {why}" for where, why in broken.items()]
            more = f" that can be used; {len(bad)} are bad, the first: {bad[0]}" if bad else ""
            raise DataError(f"{name}: expected annotated objects to {part} on, found none{more}")
    load = partial(load_sample, task=task, broken=broken)
    return DenseDataset(name, task, classes, train, val, load, broken, category_ids or [])


def load_sample(
    sample: Sample, task: str, broken: dict[str, str]
) -> tuple[Image.Image, Annotations]:
    """A sample's picture, and its things in the form that the task needs. Raises ImageError if the
    picture or its masks cannot be read or have another size."""
    picture = load_image(sample.picture)
    if sample.size not in (None, picture.size):
        expected, found = (f"{width}x{height}" for width, height in (sample.size, picture.size))
        raise ImageError(
            f"{sample.picture}: expected {expected} pixels as in {sample.file}, found {found}"
        )
    scale = np.array(picture.size if sample.size is None else (1, 1), np.float32)
    known = _boxes(sample.things, scale)
    if task == "detect":
        return picture, known
    masks = _masks(sample, picture, scale)
    if task == "segment":
        return picture, Annotations(class_map=paint_classes(masks, known.labels))
    known.masks, pixels = masks, np.array([np.count_nonzero(mask) for mask in masks], int)
    known.areas = np.where([thing.area is None for thing in sample.things], pixels, known.areas)
    for place in np.flatnonzero(pixels == 0):
        where = f"{sample.file}: {sample.things[place].name}"
        broken[where] = "expected a mask, found an empty one"
    return picture, known if pixels.all() else known.take(pixels > 0)


def _boxes(things: list[Thing], scale: np.ndarray) -> Annotations:
    """Everything but the masks."""
    boxes = np.array([thing.box for thing in things], np.float32).reshape(-1, 4) * np.tile(scale, 2)
    pairs = zip(things, np.prod(boxes[:, 2:] - boxes[:, :2], 1), strict=True)
    return Annotations(
        boxes,
        np.array([thing.label for thing in things], np.int64),
        np.array([thing.ignored for thing in things], bool),
        np.array([own if thing.area is None else thing.area for thing, own in pairs], np.float32),
    )


def _masks(sample: Sample, picture: Image.Image, scale: np.ndarray) -> np.ndarray:
    """(n, H, W) bool."""
    width, height = picture.size
    if len(sample.things) * width * height > MOST_MASKS:
        raise ImageError(f"{sample.picture}: expected fewer objects, found {len(sample.things)}")
    values = read_mask(sample.mask, picture.size) if sample.mask else np.zeros((height, width))

    def draw(outline: Outline) -> np.ndarray:
        if isinstance(outline, list):
            return polygon_mask([polygon * scale for polygon in outline], height, width)
        if isinstance(outline, np.ndarray):
            return decode(outline, height, width)
        assert outline is not None  # `usable` drops things without one
        return np.equal(values, outline)

    masks = np.zeros((len(sample.things), height, width), bool)
    for mask, thing in zip(masks, sample.things, strict=True):
        mask[:] = draw(thing.outline)
    return masks
