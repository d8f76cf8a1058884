"""The 1,797 handwritten digits of scikit-learn as pictures of 32x32, with one fixed split.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

SIZE = 32  # pixels
CLASSES = 10
MISSING = "the digits come with scikit-learn, which is not here: run pip install scikit-learn"


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line that says what to do."""


def digits_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train_images (1437, 8, 8) uint8, train_labels, test_images (360, 8, 8), test_labels,
    and test_indices, the held-out digits' places in scikit-learn's order.

    Values go from 0 to 16. The split is fixed and stratified: every fifth digit, class by class.
    Raises DataError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(MISSING) from None
    data = load_digits()
    images, labels = data.images.astype(np.uint8), data.target.astype(np.int64)
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.sort(by_class[::5])
    train = np.setdiff1d(np.arange(len(labels)), test)
    return images[train], labels[train], images[test], labels[test], test


def digit_picture(digit: np.ndarray) -> Image.Image:
    """Return a digit (8, 8), values 0 to 16, as an RGB picture of 32x32, white on black."""
    grey = Image.fromarray((digit.astype(np.float32) * (255 / 16)).round().astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def jitter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture turned by up to 12 degrees, scaled by up to 12 % in each direction and
    moved by up to 3 pixels; what comes in from outside is black."""
    angle = math.radians(rng.uniform(-12, 12))
    shear = math.radians(rng.uniform(-8, 8))
    sx, sy = np.exp(rng.uniform(-0.12, 0.12, 2))
    dx, dy = rng.uniform(-3, 3, 2)
    a, b = math.cos(angle) / sx, math.sin(angle + shear) / sx
    d, e = -math.sin(angle) / sy, math.cos(angle + shear) / sy
    centre = (SIZE - 1) / 2
    c = centre - a * (centre + dx) - b * (centre + dy)
    f = centre - d * (centre + dx) - e * (centre + dy)
    matrix = (a, b, c, d, e, f)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
