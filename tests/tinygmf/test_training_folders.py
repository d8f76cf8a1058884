"""Data sets on disk: whole ones are read, damaged and hostile ones are one clear line."""

import gzip
import os
import struct

import pytest

from tinygmf.training.data import DataError
from tinygmf.training.folders import open_folder


def idx(count: int, body: bytes, *sizes: int) -> bytes:
    return struct.pack(f">{2 + len(sizes)}I", 2049 + 2 * bool(sizes), count, *sizes) + body


PICTURES = idx(10, bytes(10 * 784), 28, 28)
LABELS = idx(10, bytes(range(10)))


@pytest.fixture
def fashion(tmp_path):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(PICTURES))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(LABELS)
    return tmp_path


@pytest.fixture
def cifar(tmp_path):
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = [bytes([label]) + bytes([label]) * 3072 for label in range(10)]
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


def test_fashion_mnist_packed_or_not(fashion):
    data = open_folder(fashion, seed=0)
    assert (len(data.train), len(data.val)) == (10, 10)
    assert data.load(data.train[0]).size == (28, 28)
    data.check(10)


def test_cifar10(cifar):
    data = open_folder(cifar, seed=0)
    assert (len(data.train), len(data.val)) == (50, 10)
    assert data.load(data.train[13]).getpixel((5, 5)) == (3, 3, 3)
    assert data.train_labels[13] == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b\x08" + bytes(20), "cannot be unpacked"),
        ("train-images-idx3-ubyte.gz", gzip.compress(PICTURES)[:-20], "cannot be unpacked"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(1 << 26)), "expected 0 entries"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(PICTURES + b"\0"), "expected 10 entries"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(2**32 - 1, b"")), "expected 4294967295"),
        ("t10k-labels-idx1-ubyte", idx(9, bytes(9)), "expected a label from 0 to 9 for each"),
        ("t10k-labels-idx1-ubyte", idx(10, bytes([200] * 10)), "expected a label from 0 to 9"),
        ("t10k-labels-idx1-ubyte", b"", "expected a label from 0 to 9"),
    ],
)
def test_a_damaged_file_is_named(fashion, name, content, message):
    (fashion / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_folder(fashion, seed=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs mkfifo")
def test_a_pipe_is_not_waited_for(cifar):
    (cifar / "data_batch_3.bin").unlink()
    os.mkfifo(cifar / "data_batch_3.bin")
    with pytest.raises(DataError, match=r"data_batch_3.bin: expected a file, found a folder or"):
        open_folder(cifar, seed=0)


def test_a_name_with_a_line_break_is_still_one_line(tmp_path):
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / "test_batch.bin").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path / "a\nb", seed=0)
    assert len(str(caught.value).splitlines()) == 1
