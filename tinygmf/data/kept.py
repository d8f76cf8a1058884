"""Decoded pictures, kept in memory: decoding 12 megapixels takes a tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from threading import Lock

from PIL import Image

from tinygmf.data.augment import BatchRecipe
from tinygmf.image import PUBLISHED

MOST_BYTES = 2**29


class KeptPictures:
    """RGB pictures by key, up to `most` bytes; those beyond are made again each time."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.left = most
        self._pictures: dict[Hashable, Image.Image] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """The picture with this key, made if it is not there."""
        if (kept := self._pictures.get(key)) is not None:
            return kept
        picture = make()
        size = 3 * picture.width * picture.height
        with self._lock:
            if size <= self.left and key not in self._pictures:
                self.left -= size
                self._pictures[key] = picture
        return picture


def reduced(picture: Image.Image, recipe: BatchRecipe) -> Image.Image:
    """The picture, reduced as far as training allows: its smallest random crop and its centre must
    still have as many pixels as the network's input."""
    side = math.ceil(recipe.size / min(math.sqrt(recipe.crop), PUBLISHED.crop))
    if (short := min(picture.size)) <= side:
        return picture
    width, height = (max(1, round(length * side / short)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
