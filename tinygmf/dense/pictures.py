"""From pictures to a network's input, and from maps back, resized as in the peers' code: bilinear,
pixel centres at half, borders repeated, no antialiasing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tinygrad import Tensor

from tinygmf.image import load_image
from tinygmf.model import MIN_SIZE

Array = np.ndarray
Size = tuple[int, int]  # (H, W)
Picture = str | os.PathLike[str] | Image.Image | np.ndarray

DIVISOR = 32  # sides of a network's input are multiples of it
ROWS = 64  # rows of a large map resized at a time


def each(pictures: Picture | Iterable[Picture]) -> Iterator[Array]:
    """The pixels (H, W, 3) uint8 of each picture: a file name, a Pillow image or such an array.

    Raises ImageError for an unreadable file, ValueError for another array.
    """
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        pictures = list(pictures)
    if isinstance(pictures, str | os.PathLike | Image.Image | np.ndarray):
        pictures = [pictures]
    for picture in pictures:
        if not isinstance(picture, np.ndarray):
            image = picture if isinstance(picture, Image.Image) else load_image(Path(picture))
            picture = np.asarray(image.convert("RGB"))
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"pictures: expected (H, W, 3) uint8, found {picture.shape} {picture.dtype}; "
                "give normalized tensors to `run`"
            )
        yield picture


def as_batch(x: Tensor | Array) -> Array:
    """Normalized pictures as a float32 array (B, 3, H, W); ValueError for another shape."""
    batch = x.numpy() if isinstance(x, Tensor) else np.asarray(x)
    if batch.ndim != 4 or batch.shape[1] != 3 or min(batch.shape[2:]) < MIN_SIZE or not len(batch):
        raise ValueError(
            f"pictures: expected (B, 3, H, W) with H and W of at least {MIN_SIZE}, "
            f"found {batch.shape}"
        )
    return np.ascontiguousarray(batch, np.float32)


def normalized(pixels: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(H, W, 3) from 0 to 255 -> float32, minus the mean, divided by the standard deviation."""
    scaled = pixels.astype(np.float32) / 255
    return (scaled - np.array(mean, np.float32)) / np.array(std, np.float32)


def padded(x: Array) -> Array:
    """(H, W, 3) -> (1, 3, H', W'), padded with zeros on the right and below to multiples of 32."""
    rim = [(0, -side % DIVISOR) for side in x.shape[:2]]
    return np.ascontiguousarray(np.pad(x, [*rim, (0, 0)]).transpose(2, 0, 1)[None])


def between(side: int, new_side: int) -> tuple[Array, Array, Array]:
    """For each of `new_side` places: the two nearest of `side` places, and the second's weight."""
    ratio = np.float32(side / new_side)
    position = (np.arange(new_side, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)
    position = position.clip(0, side - 1)
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, side - 1), (position - low).astype(np.float32)


def resized(x: Array, size: Size) -> Array:
    """(H, W, …) float32 -> (*size, …)."""
    for axis in (0, 1):
        if x.shape[axis] != size[axis]:
            low, high, part = between(x.shape[axis], size[axis])
            part = part.reshape(-1, *[1] * (x.ndim - 1 - axis))
            x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def best_class(logits: Array, size: Size) -> Array:
    """Logits (H, W, K) -> the best class of each pixel after resizing, the first of equals: (*size)
    int32."""
    low, high, part = between(logits.shape[0], size[0])
    classes = np.empty(size, np.int32)
    for start in range(0, size[0], ROWS):
        here = slice(start, start + ROWS)
        down = part[here, None, None]
        rows = logits[low[here]] * (1 - down) + logits[high[here]] * down
        classes[here] = resized(rows, (len(rows), size[1])).argmax(axis=2)
    return classes
