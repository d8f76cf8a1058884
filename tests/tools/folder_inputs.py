"""Broken and hostile data sets on disk, each from a seed, for `fuzz_checkpoints.py`.

A data set is CIFAR-10's or Fashion-MNIST's files, or folders of pictures. Contents are changed at
random; files are left out, or a folder, a pipe, a device or a link to one stands in their place;
names hold control characters, or bytes that are no text.
"""

from __future__ import annotations

import gzip
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinygmf.data.dataset import DataError, Dataset
from tinygmf.data.folders import open_folder
from tinygmf.image import ImageError
from tinygmf.training.recipe import Recipe

Change = Callable[[random.Random, bytes], bytes]
RECIPE = Recipe(size=32, batch_size=1)
READ = ("open", "os.listdir", "os.scandir")  # what a reader of folders may do
NAMES = (
    *("cat", "dog", ".hidden", "a b", "a\nb", "\x1b[31m", "\udcff\udcfe", "ø", "train", "val"),
    *("n" * 255, "-rf", "a'\"b", "test_batch.bin", "train-images-idx3-ubyte"),
)
BOMB = gzip.compress(bytes(1 << 26))  # 64 MB in 64 KB
NUMBERS = (0, 1, 2, 9, 10, 255, 2**16, 2**24, 2**31, 2**32 - 1)


class FolderInputs:
    """Seeds of eight bytes; `build` writes the data set of one, `read` reads what was written."""

    files = (b"cifar", b"fashion", b"pictures")  # whole ones

    def __init__(self, pictures: list[bytes], change: Change) -> None:
        self.pictures, self.change = pictures, change
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # no disk needs to be written
        self.folder = Path(tempfile.mkdtemp(prefix="tinygmf-fuzz-", dir=memory)) / "data"

    def __call__(self, r: random.Random) -> bytes:
        return r.randbytes(8)

    def build(self, data: bytes) -> None:
        """The same seed writes the same files."""
        shutil.rmtree(os.fsencode(self.folder), ignore_errors=True)  # bytes: any name will do
        r = random.Random(data)
        name = data.decode() if data in self.files else r.choice(("cifar", "fashion", "pictures"))
        files = {"cifar": self._cifar, "fashion": self._fashion, "pictures": self._pictures}[name](
            r if data not in self.files else None
        )
        for path, content in files.items():
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place):  # under another file's name already
                continue
            if data in self.files or r.random() < 0.8:
                place.write_bytes(content)
            else:
                self._put(r, place, content)

    def _put(self, r: random.Random, place: Path, content: bytes) -> None:
        """Something else than the file that is expected, or a file with another content."""
        kind = r.randrange(12)
        if kind == 0:
            place.mkdir()
        elif kind == 1:
            os.mkfifo(place)
        elif kind == 2:
            place.symlink_to(r.choice((place.name, "/dev/zero", "/dev/stdin", "nowhere", "..")))
        elif kind == 3:
            place.write_bytes(r.choice((b"", BOMB, bytes(3073), b"\x1f\x8b")))
        elif kind == 4:
            other = place.with_name(r.choice(NAMES))
            if other != place and not other.exists():
                other.write_bytes(content)
                place.symlink_to(other)
        elif kind > 5:
            place.write_bytes(self.change(r, content))

    def _cifar(self, r: random.Random | None) -> dict[str, bytes]:
        def records(first: int) -> bytes:
            labels = (first, first + 1) * 2  # of each class one to train on and one held out
            return b"".join(bytes([label]) + bytes(3072) for label in labels)

        names = [f"data_batch_{i}.bin" for i in range(1, 6)]
        files = {name: records(2 * i) for i, name in enumerate(names)}
        return files | {"test_batch.bin": b"".join(files.values())}

    def _fashion(self, r: random.Random | None) -> dict[str, bytes]:
        files = {}
        for part in ("train", "t10k"):
            for kind, magic, sizes in (
                ("images-idx3", 2051, (20, 28, 28)),
                ("labels-idx1", 2049, (20,)),
            ):
                header = [magic, *sizes]
                if r and r.random() < 0.1:
                    header[r.randrange(len(header))] = r.choice(NUMBERS)
                body = bytes(20 * 784) if len(sizes) > 1 else bytes(range(10)) * 2
                content = struct.pack(f">{len(header)}I", *header) + body
                if r and r.random() < 0.1:
                    content = self.change(r, content)
                packed = r is None or r.random() < 0.7
                name = f"{part}-{kind}-ubyte" + ".gz" * packed
                files[name] = gzip.compress(content, 1) if packed else content
        return files

    def _pictures(self, r: random.Random | None) -> dict[str, bytes]:
        if r is None:
            names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(2)]
            return dict.fromkeys(names, self.pictures[0])
        roots = r.choice(([""], ["train", "val"], ["train"]))
        classes = r.sample(NAMES, r.choice((1, 2, 2, 3)))
        files = {}
        for root in roots:
            for name in classes:
                for i in range(r.randrange(4)):
                    picture = r.choice((str(i), *NAMES[:9])) + r.choice((".png", ".JPG", ".gif"))
                    files[os.path.join(root, name, picture)] = r.choice(self.pictures)
        return files

    def read(self, data: bytes) -> int:
        """Nothing, however much the folder held; DataError or ImageError as a user's error."""
        found = open_folder(self.folder, seed=0)
        found.check(1)
        rng = np.random.default_rng(0)
        for index in range(min(len(found.train), 2)):
            found.read(index, rng, RECIPE)
        load_some(found)
        return 0


def load_some(data: Dataset) -> None:
    for source in data.val[:2]:
        data.load(source)


ERRORS = DataError, ImageError
