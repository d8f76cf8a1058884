"""Scenes: shapes cut from photographs and laid on other photographs, drawn on demand.

Every object's mask, box and class are exact, so one generator serves classification, segmentation
and detection. The photographs come with scikit-image; training and held-out pictures are made from
different photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tinygmf.data.annotations import BACKGROUND, Annotations, paint_classes
from tinygmf.data.dataset import DataError, Dataset
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.kept import Kept
from tinygmf.data.outlines import mask_boxes
from tinygmf.data.shapes import draw_shape
from tinygmf.image import load_image

SHAPES = "circle", "ring", "triangle", "square", "star", "cross"
SIZE = 128  # pixels
TRAIN, VALIDATE = 16000, 500  # pictures
SCALE = 4  # drawn larger and then reduced: smooth edges
UPRIGHT = {"triangle": -90, "square": 45, "star": -90}  # degrees that make them stand
TILT = math.radians(20)  # the most an object leans to either side
SEEN = 0.6  # the least part of an object that must be visible
PATCH = 96  # pixels: side of the patch that identifies a photograph

TRAINING_PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "coffee.png", "grass.png"),
    *("hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png"),
)
HELD_OUT_PHOTOGRAPHS = "chelsea.png", "gravel.png", "moon.png", "retina.jpg", "rocket.jpg"
PARTS = {"retina.jpg": (220, 220, 1190, 1190)}  # left, top, right, bottom: outside, all is black


@dataclass
class Scene:
    """A picture (H, W, 3) uint8 and its n objects, the farthest first.

    masks (n, H, W) bool show the visible part of each; labels (n,) from 1, indices into
    ("background", *SHAPES).
    """

    picture: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


@cache
def photographs(held_out: bool) -> list[list[np.ndarray]]:
    """The photographs, each (H, W, 3) uint8, at full size and at smaller and smaller ones.

    Raises DataError without scikit-image.
    """
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise DataError(
            "scenes: expected scikit-image, which has the photographs, found none: run pip "
            "install 'tinygmf[data]'"
        )
    folder = Path(found.origin).parent / "data"
    names = HELD_OUT_PHOTOGRAPHS if held_out else TRAINING_PHOTOGRAPHS
    return [smaller(load_image(folder / name).crop(PARTS.get(name))) for name in names]


def smaller(photo: Image.Image) -> list[np.ndarray]:
    """A photograph and reductions of it, each 4/5 of the last, as long as they fill a scene."""
    levels = [np.asarray(photo)]
    while 0.8 * min(levels[-1].shape[:2]) >= SIZE:
        height, width = (round(0.8 * side) for side in levels[-1].shape[:2])
        levels.append(np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS)))
    return levels


@cache
def noise() -> np.ndarray:
    """Normal noise, somewhat larger than a scene, made once: it takes longer than painting does."""
    return np.random.default_rng(0).standard_normal((2 * SIZE, 2 * SIZE, 3), np.float32)


def scenes(task: str, seed: int = 0) -> DenseDataset:
    """The scenes as a data set for segmentation or detection; see `TASKS`.

    Drawing takes half as long as training on them. So those to segment, which are seen in a dozen
    epochs, are kept as they are drawn: 1 GB.
    """
    kept = Kept(bytes_drawn, 2**30 if task == "segment" else 0)

    def load(number: int) -> tuple[Image.Image, Annotations]:
        pixels, known = kept.get(number, lambda: draw(number))
        return Image.fromarray(pixels), known

    def draw(number: int) -> tuple[np.ndarray, Annotations]:
        found = scene(number, seed, number >= TRAIN)
        return found.picture, annotated(found, task)

    photographs(False), photographs(True)  # report anything missing right away
    train, val = list(range(TRAIN)), list(range(TRAIN, TRAIN + VALIDATE))
    return DenseDataset("scenes", task, [BACKGROUND, *SHAPES], train, val, load)


def bytes_drawn(drawn: tuple[np.ndarray, Annotations]) -> int:
    """The bytes of a picture and its class map, if it has one."""
    pixels, known = drawn
    return pixels.nbytes + (0 if known.class_map is None else known.class_map.nbytes)


def annotated(found: Scene, task: str) -> Annotations:
    """The annotations of a scene for a task."""
    masks, labels = found.masks, found.labels
    if task == "segment":
        return Annotations(class_map=paint_classes(masks, labels))
    areas = np.count_nonzero(masks, (1, 2)).astype(np.float32)
    ignored = np.zeros(len(labels), bool)
    shown = masks if task == "instance" else None
    return Annotations(mask_boxes(masks), labels, ignored, areas, shown)


def scene_shapes(seed: int = 0) -> Dataset:
    """The scenes as a classification data set: which shape lies in the middle?"""

    def load(number: int) -> Image.Image:
        found = scene(number, seed, number >= TRAIN, number % len(SHAPES))
        return Image.fromarray(found.picture)

    return _classified("scenes-shape", list(SHAPES), load)


def scene_photographs(seed: int = 0) -> Dataset:
    """Patches of photographs as a classification data set: which photograph is it from?

    Training patches come from its left three fifths, held-out ones from its right third.
    """
    photos = [levels[0] for held_out in (False, True) for levels in photographs(held_out)]
    names = [Path(name).stem for name in (*TRAINING_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS)]

    def load(number: int) -> Image.Image:
        photo = photos[number % len(photos)]
        width = photo.shape[1]
        part = photo[:, : width * 3 // 5] if number < TRAIN else photo[:, width * 2 // 3 :]
        return Image.fromarray(crop([part], PATCH, np.random.default_rng([seed, number])))

    return _classified("scenes-photograph", names, load)


def _classified(name: str, classes: list[str], load: Callable[[int], Image.Image]) -> Dataset:
    train, val = list(range(TRAIN)), list(range(TRAIN, TRAIN + VALIDATE))
    labels, held_out = (np.array(part) % len(classes) for part in (train, val))
    return Dataset(name, classes, train, labels, val, held_out, load)


@dataclass
class Shape:
    """A shape of class `kind`: coverage (side, side) from 0 to 1, its first pixel at row, column.

    Part of it may lie outside the picture.
    """

    kind: int
    coverage: np.ndarray
    row: int
    column: int

    @property
    def place(self) -> tuple[slice, ...]:
        """The rows and columns of the picture that the coverage lies on."""
        side, firsts = len(self.coverage), (self.row, self.column)
        return tuple(slice(max(0, first), min(first + side, SIZE)) for first in firsts)

    @property
    def part(self) -> tuple[slice, ...]:
        """The rows and columns of the coverage that lie inside the picture."""
        firsts = self.row, self.column
        pairs = zip(self.place, firsts, strict=True)
        return tuple(slice(inside.start - first, inside.stop - first) for inside, first in pairs)

    def mask(self) -> np.ndarray:
        """(H, W) bool: the pixels of the picture that are at least half covered."""
        mask = np.zeros((SIZE, SIZE), bool)
        mask[self.place] = self.coverage[self.part] >= 0.5
        return mask


def scene(number: int, seed: int = 0, held_out: bool = False, middle: int | None = None) -> Scene:
    """Scene `number` of a seed, always the same: up to five objects, the nearest last.

    With `middle`, the nearest one has this shape and lies in the middle of the picture.
    """
    rng = np.random.default_rng([seed, held_out, middle is not None, number])
    photos = photographs(held_out)
    ground, *others = (photos[i] for i in rng.permutation(len(photos)))
    things = layout(rng, middle)
    light = complex(np.exp(1j * rng.uniform(0, 2 * math.pi)))  # the direction it comes from: x + iy
    far = blurred(Image.fromarray(crop(ground, SIZE, rng)), rng.uniform(0.4, 1.4))
    canvas = toned(np.asarray(far), rng) * np.float32(rng.uniform(0.6, 1))
    for thing in things:
        paint(canvas, thing, others[rng.integers(len(others))], light, rng)
    masks = seen([thing.mask() for thing in things])
    labels = np.array([thing.kind + 1 for thing in things], np.int64)
    return Scene(finished(canvas, light, rng), masks, labels)


def layout(rng: np.random.Generator, middle: int | None) -> list[Shape]:
    """Up to five shapes, the nearest last, with at least `SEEN` of each visible."""
    things: list[Shape] = []
    wanted = int(rng.integers(2, 6))
    for _ in range(6 * wanted):
        farther = [random_shape(rng, None if things else middle), *things]
        masks = [thing.mask() for thing in farther]
        areas = [np.count_nonzero(thing.coverage >= 0.5) for thing in farther]
        if (np.count_nonzero(seen(masks), (1, 2)) >= SEEN * np.array(areas)).all():
            things = farther
        if len(things) == wanted:
            break
    return things


def random_shape(rng: np.random.Generator, middle: int | None) -> Shape:
    """A shape of any class, size, rotation and place; or a large one of class `middle` there."""
    anywhere = middle is None
    kind = int(rng.integers(len(SHAPES))) if middle is None else middle
    radius = SIZE * math.exp(rng.uniform(math.log(0.15 if anywhere else 0.2), math.log(0.3)))
    at = SIZE * (rng.uniform(0.05, 0.95, 2) if anywhere else rng.uniform(0.45, 0.55, 2))
    side = 2 * math.ceil(1.1 * radius + 0.06 * SIZE)  # the reach of a star, and room for its shadow
    column, row = np.floor(at - side / 2).astype(int)
    drawn = Image.new("L", (side * SCALE, side * SCALE))
    centre = (at - (column, row)) * SCALE
    turn = math.radians(UPRIGHT.get(SHAPES[kind], 0)) + rng.uniform(-TILT, TILT)
    draw_shape(ImageDraw.Draw(drawn), SHAPES[kind], centre, radius * SCALE, turn)
    coverage = np.asarray(drawn.reduce(SCALE), np.float32) / 255
    return Shape(kind, coverage, int(row), int(column))


def seen(masks: list[np.ndarray]) -> np.ndarray:
    """Masks (H, W), the nearest last -> (n, H, W): each without the part that nearer ones hide."""
    shown, nearer = [], np.zeros_like(masks[0])
    for mask in reversed(masks):
        shown.append(mask & ~nearer)
        nearer |= mask
    return np.stack(shown[::-1])


def paint(
    canvas: np.ndarray,
    thing: Shape,
    photo: list[np.ndarray],
    light: complex,
    rng: np.random.Generator,
) -> None:
    """Draw a shape cut from a photograph, and its shadow, on the canvas (H, W, 3), in place."""
    patch, alpha = canvas[thing.place], thing.coverage[thing.part][..., None]
    behind = colour(patch)
    side = len(thing.coverage)
    choices = [toned(crop(photo, side, rng), rng) for _ in range(2)]
    skin = max(choices, key=lambda choice: np.abs(colour(choice) - behind).max())
    drawn = Image.fromarray(np.uint8(255 * thing.coverage))
    dx, dy = (round(part) for part in (-light.real * 3, -light.imag * 3))
    shadow = np.roll(as_floats(blurred(drawn, 2)), (dy, dx), (0, 1))  # the rim that wraps is empty
    patch *= 1 - rng.uniform(0.4, 0.7) * shadow[thing.part][..., None]
    shade = shading(drawn, light, rng)[..., None]
    patch += alpha * ((skin * shade)[thing.part] - patch)


def shading(drawn: Image.Image, light: complex, rng: np.random.Generator) -> np.ndarray:
    """A shape's brightness, (side, side), about 1: rounded rims, lighter towards the light."""
    down, right = np.gradient(as_floats(blurred(drawn, rng.uniform(1, 2))))
    facing = -(right * light.real + down * light.imag)
    across = np.linspace(-1, 1, len(facing), dtype=np.float32)
    towards = across * light.real + across[:, None] * light.imag
    return 1 + rng.uniform(1, 2.5) * facing + rng.uniform(0.1, 0.3) * towards


def crop(photo: list[np.ndarray], side: int, rng: np.random.Generator) -> np.ndarray:
    """A random square (side, side, 3) of the photograph at a random size, mirrored at random."""
    level = photo[rng.integers(len(photo))]
    top, left = rng.integers(np.array(level.shape[:2]) - side + 1)
    part = level[top : top + side, left : left + side]
    return np.ascontiguousarray(part[:, ::-1]) if rng.random() < 0.5 else part


def toned(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32 from 0 to 1 in new colours: grey gets one, dark is lightened."""
    pixels = as_floats(picture)
    red, green, blue = colour(pixels)
    gains = rng.uniform(0.55, 1.1, 3) if red == green == blue else rng.uniform(0.8, 1.2, 3)
    lighter = min(1.0, max(0.5, float(green) + 0.6))
    return pixels**lighter * gains.astype(np.float32) * np.float32(rng.uniform(0.85, 1.3))


def colour(pixels: np.ndarray) -> np.ndarray:
    """The approximate mean colour of (H, W, 3)."""
    return pixels[::4, ::4].reshape(-1, 3).mean(0)


def blurred(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(radius))


def as_floats(picture: Image.Image | np.ndarray) -> np.ndarray:
    """Values from 0 to 1, float32."""
    return np.asarray(picture, np.float32) / 255


def finished(canvas: np.ndarray, light: complex, rng: np.random.Generator) -> np.ndarray:
    """The picture as a camera would take it: light falloff, blur, noise; (H, W, 3) uint8."""
    across = np.linspace(-1, 1, len(canvas), dtype=np.float32)
    fall = 1 + rng.uniform(0, 0.2) * (across * light.real + across[:, None] * light.imag)
    top, left = rng.integers(SIZE + 1, size=2)
    grain = noise()[top : top + SIZE, left : left + SIZE] * np.float32(rng.uniform(0.5, 3))
    sharp = Image.fromarray((255 * (canvas * fall[..., None]).clip(0, 1)).astype(np.uint8))
    pixels = np.asarray(blurred(sharp, rng.uniform(0.2, 0.7)))
    return (pixels + grain).clip(0, 255).astype(np.uint8)
