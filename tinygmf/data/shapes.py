"""Coloured shapes, drawn on demand: ten classes to learn from without any file."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from tinygmf.data.dataset import Dataset

SHAPES = (
    "circle",
    "ring",
    "triangle",
    "square",
    "diamond",
    "pentagon",
    "star",
    "cross",
    "bar",
    "moon",
)
Corners = list[tuple[float, float]]  # each an angle, in turns, and a distance, in radii
TRAIN, VALIDATE = 16000, 1000  # pictures
SCALE = 4  # drawn larger and then reduced: smooth edges


def regular(corners: int, *distances: float) -> Corners:
    """Corners at equal angles, with the given distances in turn."""
    return [(i / corners, distances[i % len(distances)]) for i in range(corners)]


def rectangle(length: float, width: float, turn: float = 0) -> Corners:
    """A rectangle of half a length and half a width, in radii."""
    angle = math.atan2(width, length) / (2 * math.pi)
    reach = math.hypot(length, width)
    return [(a + turn, reach) for a in (angle, 0.5 - angle, 0.5 + angle, -angle)]


POLYGONS = {
    "triangle": [regular(3, 1)],
    "square": [regular(4, 1)],
    "diamond": [regular(4, 1.1, 0.55)],
    "pentagon": [regular(5, 1)],
    "star": [regular(10, 1.1, 0.42)],
    "cross": [rectangle(1, 0.25), rectangle(1, 0.25, 0.25)],
    "bar": [rectangle(1.1, 0.25)],
}


def shapes(size: int = 32, seed: int = 0) -> Dataset:
    """Pictures of one shape each, of random colour, place, size and rotation, on a noisy ground."""

    def load(number: int) -> Image.Image:
        return shape_picture(number % len(SHAPES), size, np.random.default_rng([seed, number]))

    train, val = list(range(TRAIN)), list(range(TRAIN, TRAIN + VALIDATE))
    labels, held_out = (np.array(part) % len(SHAPES) for part in (train, val))
    return Dataset("shapes", list(SHAPES), train, labels, val, held_out, load)


def shape_picture(kind: int, size: int, rng: np.random.Generator) -> Image.Image:
    """One shape of class `kind`, RGB, size x size."""
    side = size * SCALE
    ground, colour = contrasting_colours(rng)
    noise = rng.normal(0, 8, (size, size, 3))
    back = Image.fromarray((ground + noise).clip(0, 255).astype(np.uint8))
    radius = side * rng.uniform(0.24, 0.36)
    centre = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - radius) * 0.6
    mask = Image.new("L", (side, side))
    draw_shape(ImageDraw.Draw(mask), SHAPES[kind], centre, radius, rng.uniform(0, 2 * math.pi))
    mask = mask.resize((size, size), Image.Resampling.BOX)
    back.paste(tuple(map(int, colour)), (0, 0), mask)
    return back


def contrasting_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two clearly different colours."""
    while True:
        ground, colour = rng.uniform(0, 255, (2, 3))
        if np.abs(ground - colour).max() > 110:
            return ground, colour


def draw_shape(
    draw: ImageDraw.ImageDraw, name: str, centre: np.ndarray, radius: float, turn: float
) -> None:
    """Draw a shape in white, rotated by `turn` radians."""

    def disc(middle: np.ndarray, r: float, fill: int = 255) -> None:
        draw.ellipse((*(middle - r), *(middle + r)), fill=fill)

    if name in ("circle", "ring", "moon"):
        disc(centre, radius)
    if name == "ring":
        disc(centre, radius * 0.55, 0)
    elif name == "moon":
        disc(centre + radius * 0.6 * np.array([math.cos(turn), math.sin(turn)]), radius * 0.8, 0)
    for corners in POLYGONS.get(name, ()):
        angles = np.array([2 * math.pi * angle + turn for angle, _ in corners])
        reach = radius * np.array([distance for _, distance in corners])
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None] + centre
        draw.polygon([tuple(point) for point in points], fill=255)
