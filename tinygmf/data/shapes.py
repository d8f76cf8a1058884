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
TRAIN, VALIDATE = 16000, 1000  # pictures
SCALE = 4  # drawn larger and then reduced: smooth edges


def shapes(size: int = 32, seed: int = 0) -> Dataset:
    """Pictures of one shape each, of any colour, place, size and turn, on a noisy ground."""

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
    """Two colours that differ clearly."""
    while True:
        ground, colour = rng.uniform(0, 255, (2, 3))
        if np.abs(ground - colour).max() > 110:
            return ground, colour


def draw_shape(
    draw: ImageDraw.ImageDraw, name: str, centre: np.ndarray, radius: float, turn: float
) -> None:
    def polygon(*corners: tuple[float, float]) -> None:
        """Corners as (angle in turns, distance in radii)."""
        angles = np.array([2 * math.pi * angle + turn for angle, _ in corners])
        reach = radius * np.array([distance for _, distance in corners])
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None] + centre
        draw.polygon([tuple(point) for point in points], fill=255)

    def disc(middle: np.ndarray, r: float, fill: int = 255) -> None:
        draw.ellipse((*(middle - r), *(middle + r)), fill=fill)

    def rectangle(length: float, width: float, extra: float = 0) -> None:
        angle = math.atan2(width, length) / (2 * math.pi)
        reach = math.hypot(length, width)
        polygon(*((a + extra, reach) for a in (angle, 0.5 - angle, 0.5 + angle, -angle)))

    if name in ("circle", "ring", "moon"):
        disc(centre, radius)
    if name == "ring":
        disc(centre, radius * 0.55, 0)
    elif name == "moon":
        disc(centre + radius * 0.6 * np.array([math.cos(turn), math.sin(turn)]), radius * 0.8, 0)
    elif name == "star":
        polygon(*((i / 10, 0.42 if i % 2 else 1.1) for i in range(10)))
    elif name == "cross":
        rectangle(1, 0.25)
        rectangle(1, 0.25, 0.25)
    elif name == "bar":
        rectangle(1.1, 0.25)
    elif name == "diamond":
        polygon(*((i / 4, 0.55 if i % 2 else 1.1) for i in range(4)))
    elif name in ("triangle", "square", "pentagon"):
        corners = {"triangle": 3, "square": 4, "pentagon": 5}[name]
        polygon(*((i / corners, 1) for i in range(corners)))
