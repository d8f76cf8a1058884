"""Pictures from files: folders with one folder for each class, CIFAR-10 and Fashion-MNIST."""

from __future__ import annotations

import gzip
import io
import math
import stat
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.evaluate import PICTURES
from tinygmf.image import load_image
from tinygmf.training.data import DataError, Dataset

CIFAR_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
MAX_ENTRIES = 2**20  # of an idx file: 0.8 GB of pictures
HELD_OUT = 5  # without a folder `val`, every fifth picture of each class is held out


def folder_pictures(folder: Path, seed: int = 0) -> Dataset:
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `CLASS/*.jpg`, split by the seed.

    Raises DataError where the folders do not say what the classes are.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of pictures, found none: check the name")
    parts = [path for path in (folder / "train", folder / "val") if path.is_dir()]
    if len(parts) == 1:
        raise DataError(f"{folder}: expected train and val, found {parts[0].name} alone: add it")
    roots = parts or [folder]
    classes = sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()})
    if not classes:
        raise DataError(f"{folder}: expected one folder for each class, found none")
    found = [_find(root, classes) for root in roots]
    if not parts:
        found = _split(*found[0], seed)
    (train, train_labels), (val, val_labels) = found
    return Dataset(str(folder), classes, train, train_labels, val, val_labels, load_image)


def _find(root: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """The pictures below a folder, in the order of their names, and their classes."""
    pairs = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in PICTURES
    ]
    return [path for path, _ in pairs], np.array([label for _, label in pairs], np.int64)


def _split(paths: list[Path], labels: np.ndarray, seed: int) -> list[tuple[list[Path], np.ndarray]]:
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of each picture within its class
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    held_out = rank % HELD_OUT == 0
    return [
        ([path for path, chosen in zip(paths, part, strict=True) if chosen], labels[part])
        for part in (~held_out, held_out)
    ]


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10's binary version (`data_batch_1.bin` …, `test_batch.bin`).

    Source: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
    """
    train = np.concatenate([_records(folder / f"data_batch_{i}.bin") for i in range(1, 6)])
    test = _records(folder / "test_batch.bin")
    pictures = [rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for rows in (train, test)]
    return Dataset(
        "cifar10", CIFAR_CLASSES, *_arrays(pictures[0], train[:, 0], pictures[1], test[:, 0])
    )


def _records(path: Path) -> np.ndarray:
    values = np.frombuffer(_content(path), np.uint8)
    if not values.size or values.size % 3073 or values.reshape(-1, 3073)[:, 0].max() > 9:
        raise DataError(f"{path}: expected CIFAR-10's records of 3073 bytes, found something else")
    return values.reshape(-1, 3073)


def fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST's four files (`train-images-idx3-ubyte.gz` …), packed or unpacked.

    Source: https://github.com/zalandoresearch/fashion-mnist
    """
    parts = []
    for part in ("train", "t10k"):
        pictures = _idx(folder, f"{part}-images-idx3-ubyte", (28, 28))
        labels = _idx(folder, f"{part}-labels-idx1-ubyte", ())
        if len(labels) != len(pictures) or labels.max(initial=0) > 9:
            raise DataError(
                f"{folder}: expected a label from 0 to 9 for each of {len(pictures)} pictures in "
                f"{part}, found others: fetch them again"
            )
        parts += [pictures, labels]
    return Dataset("fashion-mnist", FASHION_CLASSES, *_arrays(*parts))


def _idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The entries of an idx file, each of this shape; never more of it than the header declares."""
    path = folder / f"{name}.gz"
    packed = path.exists()
    path = path if packed else folder / name
    content = io.BytesIO(_content(path))
    try:
        file = gzip.GzipFile(fileobj=content) if packed else content
        count = int.from_bytes(file.read(8 + 4 * len(shape))[4:8], "big")
        expected = min(count, MAX_ENTRIES) * math.prod(shape)
        values = np.frombuffer(file.read(expected + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}): fetch it again") from None
    if values.size != count * math.prod(shape):
        raise DataError(f"{path}: expected {count} entries, found a damaged file: fetch it again")
    return values.reshape(-1, *shape)


def _content(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe has no end
            raise DataError(f"{path}: expected a file, found a folder or device: fetch it again")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}: fetch it again") from None


def _arrays(train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray):
    """The last five fields of a data set of arrays, (H, W, 3) or (H, W)."""
    labels = train_labels.astype(np.int64), val_labels.astype(np.int64)
    return list(train), labels[0], list(val), labels[1], _to_picture


def _to_picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def open_folder(folder: Path, seed: int) -> Dataset:
    """Whatever the folder holds, recognised by its files."""
    if (folder / "test_batch.bin").exists():
        return cifar10(folder)
    if list(folder.glob("train-images-idx3-ubyte*")):
        return fashion_mnist(folder)
    return folder_pictures(folder, seed)
