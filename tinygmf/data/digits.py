"""The 1,797 handwritten digits of scikit-learn as pictures of 32x32, with one fixed split.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tinygmf.data.dataset import DataError, Dataset

SIZE = 32  # pixels
MISSING = "digits: expected scikit-learn, which has them, found none: run pip install scikit-learn"


def digits_split(
    fold: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train_images (1437, 8, 8) uint8, train_labels, test_images (360, 8, 8), test_labels,
    and test_indices, the held-out digits' places in scikit-learn's order.

    Values go from 0 to 16. The split is fixed and stratified: every fifth digit of each class is
    held out, starting at number `fold`, 0 to 4. The recipe was chosen on fold 0, which the
    package's network was not trained on either; no choice was made on the other folds.
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
    test = np.sort(by_class[fold::5])
    train = np.setdiff1d(np.arange(len(labels)), test)
    return images[train], labels[train], images[test], labels[test], test


def digit_picture(digit: np.ndarray) -> Image.Image:
    """Return a digit (8, 8), values 0 to 16, as an RGB picture of 32x32, white on black."""
    grey = Image.fromarray((digit.astype(np.float32) * (255 / 16)).round().astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def digits(fold: int = 0) -> Dataset:
    """The digits as a data set, with a fifth held out: see `digits_split`."""
    train, train_labels, test, test_labels, _ = digits_split(fold)
    names = [str(digit) for digit in range(10)]
    pictures, held_out = [[digit_picture(digit) for digit in part] for part in (train, test)]
    return Dataset(
        "digits", names, pictures, train_labels, held_out, test_labels, lambda picture: picture
    )
