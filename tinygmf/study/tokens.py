"""Photographs, and tokens made from them, to try attention on without a network.

The photographs come with scikit-learn and scikit-image: nothing is downloaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.image import load_image, resize_and_crop

PHOTOGRAPHS = {  # name: package, and the file in it
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
}


def photograph(name: str, size: int) -> Image.Image:
    """One of `PHOTOGRAPHS`, resized and cropped to a square of `size` pixels.

    Raises ValueError for an unknown name, or if the package that has it is missing.
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(f"photograph: expected {', '.join(PHOTOGRAPHS)}, found {name!r}")
    package, file = PHOTOGRAPHS[name]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"{name}: expected {package}, found none: pip install 'tinygmf[data]'")
    return resize_and_crop(load_image(Path(found.origin).parent / file), size)


def patch_tokens(picture: Image.Image, patch: int, dim: int) -> np.ndarray:
    """A picture (H, W) as H/patch * W/patch tokens (N, D), read row by row.

    A token holds the first D principal components of its patch's pixels: what differs most between
    patches comes first, then finer and finer detail. A square root compresses their spread, so that
    detail counts beside colour, and their overall variance is 1. Raises ValueError for more
    components than a patch has numbers, or than there are patches.
    """
    pixels = np.asarray(picture, np.float64) / 255  # (H, W, 3)
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    cut = pixels[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch, 3)
    patches = cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)  # (N, 3 * patch * patch)
    if dim > min(patches.shape):
        raise ValueError(f"dim: expected at most {min(patches.shape)}, found {dim}")
    centred = patches - patches.mean(0)
    left, spread, directions = np.linalg.svd(centred, full_matrices=False)
    signs = np.where(directions.sum(1) < 0, -1, 1)  # else they depend on the library's version
    tokens = (left * signs * np.sqrt(spread))[:, :dim]
    return tokens / tokens.std()  # (N, D)
