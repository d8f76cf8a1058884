"""CIFAR-10 and Fashion-MNIST: from files in their own formats, or fetched by tinygrad.

Every tenth training picture of each class is held out for validation: recipes and epochs are chosen
on those. The test pictures are only for the figure that is reported.
"""

from __future__ import annotations

import gzip
import io
import math
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.data.dataset import DataError, Dataset, every_nth
from tinygmf.files import one_line

CIFAR_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
HELD_OUT = 10
MOST_ENTRIES = 2**20  # of an IDX file: 0.8 GB of pictures
RECORD = 1 + 3 * 32 * 32  # bytes: the class, then the red, green and blue planes

FASHION_SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
FASHION_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
PICTURES_MAGIC, LABELS_MAGIC = 2051, 2049  # bytes, of three dimensions and of one


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10's binary version: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.

    Raises DataError, which names the file, if one is missing or damaged.
    """
    names = *(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"
    *train, test = (_records(folder / name) for name in names)
    planes = [records[:, 1:].reshape(-1, 3, 32, 32) for records in (np.concatenate(train), test)]
    labels = np.concatenate([records[:, 0] for records in train]), test[:, 0]
    return _dataset("cifar10", CIFAR_CLASSES, planes[0], labels[0], planes[1], labels[1])


def _records(path: Path) -> np.ndarray:
    """The records of a file, (N, 3073)."""
    values = np.frombuffer(_content(path, CIFAR_SOURCE), np.uint8)
    if not values.size or values.size % RECORD:
        raise DataError(
            f"{path}: expected CIFAR-10's records of {RECORD} bytes, found {values.size} bytes: "
            f"fetch {CIFAR_SOURCE} again"
        )
    records = values.reshape(-1, RECORD)
    _check_labels(path, records[:, 0], CIFAR_SOURCE)
    return records


def fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST's four files (`train-images-idx3-ubyte.gz` …), packed or unpacked.

    Raises DataError, which names the file, if one is missing or damaged.
    """
    arrays: list[np.ndarray] = []
    for part in ("train", "t10k"):
        pictures = _idx(folder / f"{part}-images-idx3-ubyte", PICTURES_MAGIC, (28, 28))
        path = folder / f"{part}-labels-idx1-ubyte"
        labels = _idx(path, LABELS_MAGIC, ())
        if len(labels) != len(pictures):
            raise DataError(
                f"{path}: expected {len(pictures)} classes, one for each picture, found "
                f"{len(labels)}: fetch both files from {FASHION_SOURCE} again"
            )
        _check_labels(path, labels, FASHION_SOURCE)
        arrays += pictures, labels
    return _dataset("fashion-mnist", FASHION_CLASSES, *arrays)


def _idx(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """The entries of an IDX file, (N, *shape). Its header holds the magic number, N and the shape
    as big-endian numbers of four bytes. A packed file beside it takes precedence."""
    packed = path.with_name(f"{path.name}.gz")
    path = packed if packed.exists() else path
    content = _unpacked(path) if path == packed else _content(path, FASHION_SOURCE)
    sizes = 2 + len(shape)
    head = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(sizes)]
    length = 4 * sizes + head[1] * math.prod(shape)
    if len(content) < 4 * sizes:
        expected, found = f"a header of {4 * sizes} bytes", f"{len(content)} bytes"
    elif head[0] != magic:
        expected, found = f"the magic number {magic}", str(head[0])
    elif tuple(head[2:]) != shape:
        expected, found = "pictures of 28x28", "x".join(map(str, head[2:]))
    elif len(content) != length or not head[1]:
        expected, found = f"{head[1] or 'some'} entries in {length} bytes", f"{len(content)} bytes"
    else:
        return np.frombuffer(content, np.uint8, offset=4 * sizes).reshape(-1, *shape)
    raise DataError(
        f"{path}: expected {expected}, found {found}: fetch it from {FASHION_SOURCE} again"
    )


def _unpacked(path: Path) -> bytes:
    """Unpack an IDX file, but at most one byte more than its header declares."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(_content(path, FASHION_SOURCE))) as file:
            head = file.read(16)
            count = min(int.from_bytes(head[4:8], "big"), MOST_ENTRIES)
            return head + file.read(count * 28 * 28 + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a complete gzip file, found one that cannot be unpacked ({error}): "
            f"fetch it from {FASHION_SOURCE} again"
        ) from None


def _content(path: Path, source: str) -> bytes:
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
        found = "a folder, a pipe or a device"
    except OSError as error:
        found = str(error.strerror)
    raise DataError(f"{path}: expected a file of the data set, found {found}: fetch {source}")


def _check_labels(path: Path, labels: np.ndarray, source: str) -> None:
    if labels.max() > 9:
        place = int(labels.argmax())
        raise DataError(
            f"{path}: expected classes from 0 to 9, found {labels[place]} in entry {place + 1}: "
            f"fetch it from {source} again"
        )


def fetch_cifar10() -> Dataset:
    """CIFAR-10, which tinygrad's loader fetches once and keeps in its own cache.

    Raises DataError if it cannot be fetched.
    """
    from tinygrad.nn.datasets import cifar

    return _fetch("cifar10", CIFAR_CLASSES, CIFAR_SOURCE, cifar)


def fetch_fashion_mnist() -> Dataset:
    """Fashion-MNIST, which tinygrad's loader fetches once and keeps in its own cache.

    Raises DataError if it cannot be fetched.
    """
    from tinygrad.nn.datasets import mnist

    return _fetch("fashion-mnist", FASHION_CLASSES, FASHION_SOURCE, lambda: mnist(fashion=True))


def _fetch(name: str, classes: list[str], source: str, loader: Callable[[], tuple]) -> Dataset:
    """The data set of a loader that returns tensors: pictures (N, C, H, W) and classes, twice."""
    try:
        tensors = loader()
    except Exception as error:  # whatever goes wrong with the network, the disk or a partial file
        raise DataError(
            f"{name}: expected to fetch it, found {one_line(str(error)) or type(error).__name__}: "
            f"check the network, or fetch {source} yourself, unpack it and name its folder"
        ) from None
    return _dataset(name, classes, *(tensor.numpy() for tensor in tensors))


def _dataset(
    name: str,
    classes: list[str],
    pictures: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
) -> Dataset:
    """A data set from byte arrays: pictures (N, 3, H, W), or grey (N, 1, H, W) or (N, H, W)."""
    held_out = every_nth(labels, HELD_OUT)
    return Dataset(
        name,
        classes,
        *(list(pictures[~held_out]), labels[~held_out].astype(np.int64)),
        *(list(pictures[held_out]), labels[held_out].astype(np.int64)),
        planes_to_picture,
        test=list(test),
        test_labels=test_labels.astype(np.int64),
    )


def planes_to_picture(planes: np.ndarray) -> Image.Image:
    """Bytes (3, H, W), (1, H, W) or (H, W) -> an RGB picture."""
    if len(planes) == 3:
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    return Image.fromarray(planes.reshape(planes.shape[-2:])).convert("RGB")


READERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": cifar10,
    "fashion-mnist": fashion_mnist,
}


def recognize(folder: Path) -> str | None:
    """The name of the data set whose files are in the folder; None for a folder of pictures.

    Raises DataError for CIFAR-10's Python version, whose files are programs.
    """
    if list(folder.glob("*_batch*.bin")):
        return "cifar10"
    if list(folder.glob("*-idx?-ubyte*")):
        return "fashion-mnist"
    if (folder / "data_batch_1").exists():
        raise DataError(
            f"{folder}: expected CIFAR-10's binary version, found its Python version: "
            f"fetch {CIFAR_SOURCE}"
        )
    return None
