"""Decoded or drawn pictures, kept in memory: decoding 12 megapixels takes a tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

from PIL import Image

from tinygmf.data.augment import BatchRecipe
from tinygmf.image import PUBLISHED

MOST_BYTES = 2**29

Value = TypeVar("Value")


def bytes_of(picture: Image.Image) -> int:
    return 3 * picture.width * picture.height


class Kept(Generic[Value]):
    """Values by key, up to `most` bytes by `size`; those beyond are made again each time."""

    def __init__(self, size: Callable[[Value], int], most: int = MOST_BYTES) -> None:
        self.size, self.left = size, most
        self._values: dict[Hashable, Value] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value with this key, made if it is not there. Nobody may change it."""
        if (kept := self._values.get(key)) is not None:
            return kept
        value = make()
        size = self.size(value)
        with self._lock:
            if size <= self.left and key not in self._values:
                self.left -= size
                self._values[key] = value
        return value


def kept_pictures() -> Kept[Image.Image]:
    return Kept(bytes_of)


def reduced(picture: Image.Image, recipe: BatchRecipe) -> Image.Image:
    """The picture, reduced as far as training allows: its smallest random crop and its centre must
    still have as many pixels as the network's input."""
    side = math.ceil(recipe.size / min(math.sqrt(recipe.crop), PUBLISHED.crop))
    if (short := min(picture.size)) <= side:
        return picture
    width, height = (max(1, round(length * side / short)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
