"""Folders of masks: for each picture a file of class numbers, grey or with a palette.

`images/…/x.jpg` with `masks/…/x.png` (or `annotations`, `labels`), Pascal VOC's
`SegmentationClass`, ADE20K's and Cityscapes' own layouts. 255 is ignored, except
in black and white masks of two classes, where it is the second.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.data.annotations import BACKGROUND, IGNORE, Annotations
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.dense_files import (
    PICTURE_FOLDERS,
    by_parts,
    class_names,
    listed,
    partners,
    pictures_below,
    split_by_folder,
    with_background,
)
from tinygmf.engine.predictor import read_ahead
from tinygmf.image import MAX_PIXELS, ImageError, load_image

MASK_FOLDERS = "masks", "mask", "annotations", "labels", "SegmentationClass", "gt"
ENDINGS = ".png", "_mask.png", "_seg.png", "_label.png", ".bmp", ".tif", ".tiff", ".gif"
VOC = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
]
GREYS = 8  # times as many values as occur: if they reach further, they are no classes' numbers
UNKNOWN = -1  # in a table of classes by value
CITYSCAPES = {  # number in `labelIds`: class to train on
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"},
    **{19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky"},
    **{24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"},
    **{32: "motorcycle", 33: "bicycle"},
}


@dataclass(frozen=True)
class MaskSample:
    """The files of a picture and its mask."""

    picture: Path
    mask: Path

    def __str__(self) -> str:
        return str(self.picture)


def find_masks(root: Path) -> list[MaskSample]:
    """Pictures below a folder that have a mask, or should have, as others in their folder do."""
    pairs, missing = [], []
    for picture in pictures_below(root):
        places = [way for way in _mask_places(picture, root) if _key(way) != _key(picture)]
        found = next((place for place in places if place.is_file()), None)
        if found:
            pairs.append(MaskSample(picture, found))
        elif near := next((place for place in places if place.parent.is_dir()), None):
            missing.append(MaskSample(picture, near))
    folders = {pair.picture.parent for pair in pairs}
    masks = {_key(pair.mask) for pair in pairs}
    missing = [pair for pair in missing if pair.picture.parent in folders]
    return [pair for pair in [*pairs, *missing] if _key(pair.picture) not in masks]


def _key(path: Path) -> str:
    """The same for names that some systems take for the same."""
    return str(path).lower()


def _mask_places(picture: Path, root: Path) -> list[Path]:
    if not picture.stem.endswith("_leftImg8bit"):
        return partners(picture, PICTURE_FOLDERS, MASK_FOLDERS, ENDINGS)
    below = picture.relative_to(root).parts
    folder = root.joinpath(*("gtFine" if part == "leftImg8bit" else part for part in below[:-1]))
    stem = picture.stem.removesuffix("_leftImg8bit")
    return [folder / f"{stem}_gtFine_label{kind}.png" for kind in ("TrainIds", "Ids")]


def mask_dataset(root: Path, samples: list[MaskSample], seed: int = 0) -> DenseDataset:
    """Class names come from Cityscapes, `classes.txt` or ADE20K's `objectInfo150.txt`; without
    them, all masks are read to count the classes. Raises DataError if there is nothing in the
    masks to train on."""
    parts = listed(root, "Segmentation")
    samples = [sample for sample in samples if not parts or sample.picture.stem in parts]
    if not samples:
        raise DataError(f"{root}: expected masks of the pictures in ImageSets, found none")
    names, table = _classes(root, samples)
    if parts:
        train, val = by_parts(samples, [parts[sample.picture.stem] for sample in samples])
    else:
        train, val = split_by_folder(samples, [sample.picture for sample in samples], root, seed)
    data = DenseDataset(str(root), "segment", names, train, val, partial(load_masked, table=table))
    data.broken |= {
        str(pair): f"expected {pair.mask}, found none"
        for pair in samples
        if not pair.mask.is_file()
    }
    return data


def _classes(root: Path, samples: list[MaskSample]) -> tuple[list[str], np.ndarray]:
    """Names, and the class of each of the values 0 to 255."""
    table = np.full(256, UNKNOWN)
    table[IGNORE] = IGNORE
    names, first = class_names(root), 0
    mask = samples[0].mask
    if mask.name.endswith("labelIds.png"):
        table[:], names = IGNORE, list(CITYSCAPES.values())
        table[list(CITYSCAPES)] = range(len(names))
        return names, table
    if mask.name.endswith("labelTrainIds.png"):
        names = list(CITYSCAPES.values())
    elif mask.parent.name == "SegmentationClass":
        names = with_background(names or VOC)
    elif (root / "annotations" / "training").is_dir() and not (root / "classes.txt").is_file():
        first, table[0] = 1, IGNORE  # ADE20K: 0 means unlabeled
    if len(names) in (0, 2) and _black_and_white(samples):
        table[[0, IGNORE]] = 0, 1
        return names or [BACKGROUND, "object"], table
    if not names:
        names = [f"class {value}" for value in range(first, _count(root, samples))]
    known = min(len(names), IGNORE - first)  # more are refused when the data set is checked
    table[first : first + known] = range(known)
    return names, table


def _values(samples: list[MaskSample]) -> Iterator[tuple[set[int], str]]:
    """The values in each mask, or none of them and what is wrong with it."""

    def read(sample: MaskSample) -> tuple[set[int], str]:
        try:
            values = read_mask(sample.mask)
        except ImageError as error:
            return set(), str(error)
        least, most = int(values.min()), int(values.max())
        if least < 0 or most > IGNORE:
            strange = least if least < 0 else most
            return set(), f"{sample.mask}: expected values from 0 to {IGNORE}, found {strange}"
        return set(np.unique(values).tolist()), ""

    return read_ahead(read, samples)


def _black_and_white(samples: list[MaskSample]) -> bool:
    """Whether 0 and 255 are the values in the masks that can be read."""
    seen: set[int] = set()
    for values, _ in _values(samples):
        seen |= values
        if not seen <= {0, IGNORE}:
            return False  # without reading the rest
    return seen == {0, IGNORE}


def _count(root: Path, samples: list[MaskSample]) -> int:
    """The number of classes in masks without names: the values are taken for their numbers.

    Raises DataError if no mask can be read, or if the values are greys rather than numbers."""
    found = list(_values(samples))
    values = set().union(*(values for values, _ in found))
    if not values:
        why = found[0][1]
        raise DataError(f"{root}: expected masks to count the classes in, found none: {why}")
    most = max(values - {IGNORE}, default=0)
    if most > GREYS * len(values):
        shown = ", ".join(map(str, sorted(values)[:6])) + (", …" if len(values) > 6 else "")
        raise DataError(
            f"{root}: expected classes numbered 0, 1, 2 … in the masks ({IGNORE}: ignored), found "
            f"the values {shown}: renumber them, or name all classes in classes.txt"
        )
    return most + 1


def load_masked(sample: MaskSample, table: np.ndarray) -> tuple[Image.Image, Annotations]:
    """The picture and its class map. Raises ImageError if one is unreadable or does not fit."""
    picture = load_image(sample.picture)
    values = read_mask(sample.mask, picture.size)
    if values.min() < 0 or values.max() >= len(table) or (table[values] == UNKNOWN).any():
        known = np.flatnonzero(table != UNKNOWN)
        strange = values[~np.isin(values, known)][0]
        raise ImageError(f"{sample.mask}: expected a known class, found the value {strange}")
    return picture, Annotations(class_map=table[values].astype(np.uint8))


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The numbers (H, W) in a picture with one channel or a palette; the palette's colours do not
    matter. Raises ImageError, also if its size is not `size` (width, height)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block forever
            raise ImageError(f"{path}: expected a mask, found a folder or device")
        with Image.open(path, formats=["PNG", "BMP", "GIF", "TIFF"]) as image:
            expected = size or image.size
            if image.size != expected or image.width * image.height > MAX_PIXELS:
                sizes = [f"{width}x{height}" for width, height in (expected, image.size)]
                raise ImageError(f"{path}: expected a mask of {sizes[0]} pixels, found {sizes[1]}")
            return _numbers(path, image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: expected the picture's mask, found none") from None
    except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
        raise ImageError(f"{path}: expected a mask, found {error}") from None


def _numbers(path: Path, image: Image.Image) -> np.ndarray:
    """The number of each pixel, (H, W). Raises ImageError."""
    packed = re.match("L;([24])", str(_raw_mode(image)))
    values = np.asarray(image)
    if packed:  # Pillow stretched the numbers of 2 or 4 bits to 0 to 255
        return values // (255 // (2 ** int(packed[1]) - 1))
    if image.mode in ("LA", "RGBA"):
        values, alpha = values[..., :-1], values[..., -1]
        if values.min() == values.max() and alpha.min() < alpha.max():
            raise ImageError(
                f"{path}: expected a number per pixel, found one colour and transparency that "
                "varies: write a grey or palette PNG"
            )
    if values.ndim == 3 and (values == values[..., :1]).all():  # grey, saved in colour
        values = values[..., 0]
    if values.ndim != 2:
        raise ImageError(f"{path}: expected a number per pixel, found colours: write a palette PNG")
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int32)
        if (whole != values).any():  # NaN too
            strange = values[whole != values][0]
            raise ImageError(f"{path}: expected whole numbers, found {strange:g}: round them")
        return whole
    return values.astype(np.uint8) if values.dtype == bool else values


def _raw_mode(image: Image.Image) -> object:
    """How the pixels lie in the file, in Pillow's words, before they are read."""
    tiles = getattr(image, "tile", None)
    found = tiles[0][3] if tiles else None
    return found[0] if isinstance(found, tuple) and found else found
