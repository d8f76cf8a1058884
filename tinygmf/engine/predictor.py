"""The inference engine: pictures in, logits out.

The network is folded, compiled once for its picture size, batch size and device, and kept on disk;
threads decode pictures ahead of the device. Any number of pictures runs through a program for a
fixed number; the last ones are padded.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tinygrad import Tensor

from tinygmf.config import PUBLISHED_SIZE, STRIDES, GroupMixFormerConfig
from tinygmf.engine import program_cache
from tinygmf.engine.devices import open_device
from tinygmf.engine.folded import FoldedGroupMixFormer
from tinygmf.engine.launcher import Launcher
from tinygmf.image import Picture, preprocess, usual_names
from tinygmf.model import MIN_SIZE, GroupMixFormer
from tinygmf.tensors import DTYPES, on_cpu, read_tensor, tensor_from_numpy, write_tensor
from tinygmf.threads import thread_count
from tinygmf.weights.checkpoint import NetworkWeights, load_weights

LARGEST = 1 << 20  # numbers of the largest map, 4 MB: about what two cores' own caches hold

Item = TypeVar("Item")
Result = TypeVar("Result")


class Predictor:
    """Runs a network on pictures: `Predictor(model)(["cat.jpg"])` -> logits.

    `model` is a `GroupMixFormer`, the file of one, or what `load_weights` read from it; for the
    last two no module is built. `image_size` is the side in pixels of the square that pictures are
    resized and cropped to, by default the one that the network's file names, else 224. `batch_size`
    is the most pictures in one batch, of which a program on the CPU device takes as many at a time
    as the caches hold; `dtype` the type of the products ("float32", "float16" or "bfloat16"; sums
    and norms stay float32), `device` a tinygrad device, by default the best that opens. The first
    call compiles, unless an earlier process did. Raises ValueError for an impossible size or dtype,
    DeviceError for a device that does not open.
    """

    def __init__(
        self,
        model: GroupMixFormer | NetworkWeights | str | os.PathLike[str],
        image_size: int | None = None,
        *,
        batch_size: int = 1,
        dtype: str = "float32",
        device: str | None = None,
        progress: bool = True,
    ) -> None:
        if isinstance(model, str | os.PathLike):
            model = load_weights(model)
        if image_size is None:
            image_size = model.settings.image_size or PUBLISHED_SIZE
        if image_size < MIN_SIZE:
            raise ValueError(f"image_size: expected at least {MIN_SIZE} pixels, found {image_size}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
        self.image_size, self.batch_size, self.progress = image_size, batch_size, progress
        self.dtype, self.config = dtype, model.config
        self.device = open_device(device)
        self._at_once = pictures_at_once(batch_size, image_size, model.config, self.device)
        self._program: Callable | None = None
        self._lock = Lock()  # the program's memory holds one batch at a time
        self.use_weights(model)

    def use_weights(self, model: GroupMixFormer | NetworkWeights) -> None:
        """Use the weights of a network with the same configuration; the program stays.

        Later changes to the model do not affect the predictor until this is called again.
        """
        if replace(model.config, drop_path_rate=0) != replace(self.config, drop_path_rate=0):
            raise ValueError(f"model: expected {self.config}, found {model.config}")
        self.settings = model.settings
        weights = model if isinstance(model, NetworkWeights) else NetworkWeights.of(model)
        self.network = FoldedGroupMixFormer(
            weights.config, weights.arrays, DTYPES[self.dtype], self.device
        )
        if self._program is not None:
            self._use(self._program)

    def __call__(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
        """Pictures -> logits (N, num_classes), float32.

        A picture is a file name, a Pillow image or an array of pixels (see `pixels.array_to_rgb`),
        all treated alike; or floats (3, size, size) of the network's own size, already normalized.
        Raises ImageError for an unreadable picture, ValueError if the answers are not finite.
        """
        if isinstance(pictures, np.ndarray):
            pictures = list(pictures if pictures.ndim == 4 else pictures[None])
        elif isinstance(pictures, str | os.PathLike | Image.Image):
            pictures = [pictures]
        arrays = read_ahead(self.read, pictures)
        batches = [self.run(np.stack(batch)) for batch in chunks(arrays, self.batch_size)]
        width = self.config.num_classes or self.config.embedding_dims[-1]
        return np.concatenate([np.empty((0, width), np.float32), *batches])

    def top(self, picture: Picture, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes of one picture with their probabilities, likeliest first.

        Names are those in the network's file, else ImageNet's for 1,000 classes, else numbers.
        """
        if not self.config.num_classes:
            raise ValueError("top: expected a network with a head, found one without")
        [row] = probabilities(self([picture]))
        names = self.settings.classes or usual_names(self.config.num_classes)
        return [(names[i], float(row[i])) for i in ranking(row[None])[0][:count]]

    def read(self, picture: Picture) -> np.ndarray:
        """One picture -> (3, size, size) float32, resized, cropped and normalized as published."""
        own = self._shape[1:]
        if isinstance(picture, np.ndarray) and picture.dtype.kind == "f" and picture.shape == own:
            return picture.astype(np.float32, copy=False)
        return preprocess(picture, self.image_size, self.settings, self.config.in_chans)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Normalized pictures (n, 3, size, size), n <= batch_size -> logits (n, num_classes)."""
        [logits] = self._run(batch, slice(-1, None))
        return logits

    def outputs(self, batch: np.ndarray) -> list[np.ndarray]:
        """As `run`, by the same program -> four maps (n, D_i, ceil(size/s), ceil(size/s)) for the
        strides s = 4, 8, 16, 32, and the logits."""
        *maps, logits = self._run(batch, slice(None))
        return [*(one.transpose(0, 3, 1, 2) for one in maps), logits]

    def _run(self, batch: np.ndarray, wanted: slice) -> list[np.ndarray]:
        """The wanted results of the program, for as many pictures as there are."""
        if batch.shape[1:] != self._shape[1:] or not 0 < len(batch) <= self.batch_size:
            most = (self.batch_size, *self._shape[1:])
            raise ValueError(f"pictures: expected 1 up to {most}, found {batch.shape}")
        with self._lock:
            starts = range(0, len(batch), self._at_once)
            parts = [self._launch(batch[i : i + self._at_once], wanted) for i in starts]
        answers = [np.concatenate(same) for same in zip(*parts, strict=True)]
        if not all(np.isfinite(answer).all() for answer in answers):
            narrow = "; try float32" if self.dtype != "float32" else ""
            raise ValueError(
                "the network's answers: expected finite numbers, found others: its weights or the "
                f"pictures are not finite, or have numbers too large for {self.dtype}{narrow}"
            )
        return answers

    def _launch(self, batch: np.ndarray, wanted: slice) -> list[np.ndarray]:
        """Each wanted result for as many pictures as the program takes, or fewer."""
        if self._program is None:
            self._use(
                program_cache.load_or_compile(
                    self.key,
                    self.network.forward,
                    *self.arguments(),
                    device=self.device,
                    progress=self.progress,
                )
            )
        full = batch
        if len(batch) < self._at_once:
            full = np.zeros(self._shape, np.float32)
            full[: len(batch)] = batch
        write_tensor(self._input, full.astype(np.float32, copy=False))
        return [read_tensor(result)[: len(batch)] for result in self._launcher()[wanted]]

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Of the program's input."""
        size, channels = self.image_size, self.config.in_chans
        return self._at_once, channels, size, size

    def arguments(self) -> tuple[Tensor, list[Tensor]]:
        """The program's arguments: memory for its input, and the weights."""
        zeros = np.zeros(self._shape, np.float32)
        return tensor_from_numpy(zeros, self.device), self.network.weights

    def _use(self, program: Callable) -> None:
        self._program = program
        self._input, weights = self.arguments()
        self._launcher = Launcher(program, self._input, weights)

    @property
    def key(self) -> dict[str, Any]:
        """What the program depends on, besides the device and the versions."""
        return program_cache.program_key(self.config, self._shape, self.dtype)

    def tune(self, beam: int = 2) -> tuple[float, float]:
        """Search for faster kernels and keep the program if it is faster than the current one.

        `beam` is the number of candidates to follow for each kernel: 2 takes minutes, 4 longer.
        Returns the seconds of one run before and after.
        """
        before, old = self._seconds(), self._program
        assert old is not None  # `_seconds` has compiled or loaded it
        program = program_cache.compile_program(
            self.network.forward, *self.arguments(), progress=self.progress, beam=beam
        )
        self._use(program)
        after = self._seconds()
        if after < before:
            program_cache.replace_entry(self.key, program, self.device)
            return before, after
        self._use(old)
        return before, before

    def _seconds(self, repeats: int = 5) -> float:
        """The seconds of the fastest of several runs, after one that compiles or loads."""
        batch = np.zeros((self.batch_size, *self._shape[1:]), np.float32)
        self.run(batch)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.run(batch)
            times.append(time.perf_counter() - start)
        return min(times)


def pictures_at_once(
    batch_size: int, image_size: int, config: GroupMixFormerConfig, device: str
) -> int:
    """How many pictures of a batch a program takes: on the CPU no more than have their largest map
    in the caches, or each kernel would fetch anew what the one before it has written."""
    if not on_cpu(device):
        return batch_size
    tokens = math.ceil(image_size / STRIDES[0]) ** 2
    numbers = 3 * config.embedding_dims[0] * tokens  # queries, keys and values of the first stage
    runs = math.ceil(batch_size / max(1, LARGEST // numbers))
    return math.ceil(batch_size / runs)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes: (N, num_classes) -> the same shape, rows that sum to 1."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def ranking(logits: np.ndarray) -> np.ndarray:
    """The classes of each row (…, classes), likeliest first; of equals the lower number first."""
    return (-logits).argsort(axis=-1, kind="stable")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(read, items)`, in order, computed by threads a little ahead of the consumer."""
    workers = thread_count()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
