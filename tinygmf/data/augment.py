"""Augmentation of pictures and of batches.

Every function draws only from the generator it is given, so the same seed gives the same pictures
in any process and on any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from tinygmf.config import PUBLISHED_SIZE, Settings
from tinygmf.image import PUBLISHED, normalize, preprocess

ENHANCERS = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color


def option(default: Any, text: str) -> Any:
    """A field of a recipe, and so an option of `tinygmf train`."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BatchRecipe:
    """How pictures become batches. The defaults are the published recipe's (`training.recipe`).

    Raises ValueError, in one line, for an impossible value.
    """

    batch_size: int = option(128, "pictures in one step")
    size: int = option(PUBLISHED_SIZE, "picture size in pixels")
    seed: int = option(0, "of the new weights, the order and the augmentation")

    label_smoothing: float = option(0.1, "share of each target that is spread over all classes")
    mixup: float = option(0.8, "alpha of mixup; 0 for none")
    cutmix: float = option(1.0, "alpha of cutmix; 0 for none")
    mix_probability: float = option(1.0, "how often a batch is mixed")
    mix_switch: float = option(0.5, "how often cutmix is chosen where both are on")

    crop: float = option(0.08, "smallest share of the area in a random crop; 1 for none")
    centre: float | None = option(
        None, "share of the side seen without a random crop; by default the network's own"
    )
    flip: float = option(0.5, "how often a picture is mirrored")
    colour: float = option(0.4, "largest change of brightness, contrast and saturation")
    erase: float = option(0.25, "how often a rectangle is replaced by noise")
    rotate: float = option(0.0, "largest rotation, in degrees")
    stretch: float = option(0.0, "largest change of width and of height, as a share")
    shift: float = option(0.0, "largest shift, as a share of the side")

    def __post_init__(self) -> None:
        self._require("batch_size", self.batch_size >= 1, "at least 1")
        self._require("size", self.size >= 32, "at least 32 pixels")
        self._require("seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "0 <= value < 1")
        self._require("crop", 0 < self.crop <= 1, "above 0, at most 1")
        centre = 1 if self.centre is None else self.centre
        self._require("centre", 0 < centre <= 1, "above 0, at most 1")
        for name in ("mix_probability", "mix_switch", "flip", "erase", "colour", "shift"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in ("mixup", "cutmix", "rotate", "stretch"):
            self._require(name, getattr(self, name) >= 0, "0 or more")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            option_name = "--" + name.replace("_", "-")
            raise ValueError(f"{option_name}: expected {expected}, found {getattr(self, name)!r}")


def training_picture(
    picture: Image.Image,
    recipe: BatchRecipe,
    rng: np.random.Generator,
    settings: Settings = PUBLISHED,
) -> np.ndarray:
    """RGB picture -> (3, size, size) float32, augmented and normalized."""
    if recipe.rotate or recipe.stretch or recipe.shift:
        picture = random_affine(picture, recipe, rng)
    if recipe.crop < 1:
        picture = random_crop(picture, recipe.size, recipe.crop, rng)
    if rng.random() < recipe.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.colour:
        picture = colour_jitter(picture, recipe.colour, rng)
    if recipe.crop < 1:
        array = normalize(picture, settings)
    else:
        array = preprocess(picture, recipe.size, settings)
    if rng.random() < recipe.erase:
        array = erase(array, rng)
    return np.ascontiguousarray(array)


def random_affine(
    picture: Image.Image, recipe: BatchRecipe, rng: np.random.Generator
) -> Image.Image:
    """Rotate, shear, stretch and shift a picture about its centre; the new border is black."""
    width, height = picture.size
    turn = math.radians(rng.uniform(-recipe.rotate, recipe.rotate))
    shear = math.radians(rng.uniform(-recipe.rotate, recipe.rotate)) * 2 / 3
    scale_x, scale_y = np.exp(rng.uniform(-recipe.stretch, recipe.stretch, 2))
    dx, dy = rng.uniform(-recipe.shift, recipe.shift, 2) * (width, height)
    a, b = math.cos(turn) / scale_x, math.sin(turn + shear) / scale_x
    d, e = -math.sin(turn) / scale_y, math.cos(turn + shear) / scale_y
    x, y = (width - 1) / 2, (height - 1) / 2
    matrix = (a, b, x - a * (x + dx) - b * (y + dy), d, e, y - d * (x + dx) - e * (y + dy))
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def random_crop(
    picture: Image.Image, size: int, smallest: float, rng: np.random.Generator
) -> Image.Image:
    """A random crop of at least `smallest` of the area, of 3:4 to 4:3, resized to a square."""
    width, height = picture.size
    for _ in range(10):
        area = width * height * rng.uniform(smallest, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:  # no crop of such a shape fits: take the centre
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def colour_jitter(picture: Image.Image, most: float, rng: np.random.Generator) -> Image.Image:
    """Scale brightness, contrast and saturation, in random order, by 1 - most to 1 + most."""
    for i in rng.permutation(len(ENHANCERS)):
        picture = ENHANCERS[i](picture).enhance(rng.uniform(1 - most, 1 + most))
    return picture


def erase(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill a rectangle of 2 to 33 % of the area with normal noise (arXiv 1708.04896)."""
    _, height, width = array.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = rng.standard_normal((3, h, w), dtype=np.float32)
            array = array.copy()
            array[:, top : top + h, left : left + w] = noise
            break
    return array


def targets(labels: np.ndarray, classes: int, smoothing: float) -> np.ndarray:
    """(B,) class numbers -> (B, classes) float32: 1 - smoothing on the class, the rest on all."""
    rows = np.full((len(labels), classes), smoothing / classes, np.float32)
    rows[np.arange(len(labels)), labels] += 1 - smoothing
    return rows


def mix(
    pictures: np.ndarray, rows: np.ndarray, recipe: BatchRecipe, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899) of a batch with its own reverse.

    Takes and returns pictures (B, 3, H, W) and target rows (B, classes).
    """
    if not (recipe.mixup or recipe.cutmix) or rng.random() >= recipe.mix_probability:
        return pictures, rows
    cut = bool(recipe.cutmix) and (not recipe.mixup or rng.random() < recipe.mix_switch)
    alpha = recipe.cutmix if cut else recipe.mixup
    share = float(rng.beta(alpha, alpha))  # of each picture that stays
    if not cut:
        return blend(pictures, share), blend(rows, share)
    height, width = pictures.shape[2:]
    centre = int(rng.integers(height)), int(rng.integers(width))
    top, bottom, left, right = cut_box(height, width, share, centre)
    mixed = pictures.copy()
    mixed[:, :, top:bottom, left:right] = pictures[::-1, :, top:bottom, left:right]
    return mixed, blend(rows, 1 - (bottom - top) * (right - left) / (height * width))


def blend(values: np.ndarray, share: float) -> np.ndarray:
    """`share` of each row plus the rest of the row at the mirrored place in the batch."""
    return (share * values + (1 - share) * values[::-1]).astype(np.float32)


def cut_box(
    height: int, width: int, share: float, centre: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a rectangle of area 1 - share about `centre`, clipped to fit."""
    side = math.sqrt(1 - share)
    half = int(height * side) // 2, int(width * side) // 2
    rows = np.clip([centre[0] - half[0], centre[0] + half[0]], 0, height)
    columns = np.clip([centre[1] - half[1], centre[1] + half[1]], 0, width)
    return int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1])
