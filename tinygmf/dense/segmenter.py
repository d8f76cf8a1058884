"""Semantic segmentation of any picture: `Segmenter`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from threading import Lock

import numpy as np
from tinygrad import Tensor

from tinygmf.dense.folded import FoldedSegmentation
from tinygmf.dense.pictures import (
    Picture,
    Size,
    as_batch,
    best_class,
    each,
    normalized,
    padded,
    resized,
)
from tinygmf.dense.programs import Program
from tinygmf.dense.segmentation import SegmentationNetwork
from tinygmf.engine.devices import open_device
from tinygmf.tensors import read_tensor

Array = np.ndarray


@dataclass(frozen=True)
class Segmentation:
    """The classes of a picture's pixels.

    classes: (H, W) int32, the class of each pixel of the original picture, from 0.
    names: of the classes, in order; empty if the checkpoint does not name them.
    """

    classes: Array
    names: tuple[str, ...] = ()


class Segmenter:
    """Runs a segmentation network on pictures: `Segmenter(model)(["street.jpg"])`.

    Pictures are resized as in mmsegmentation: the shorter side to `min_size` pixels, unless the
    longer would exceed `max_size`; bilinear, sides rounded; then padded on the right and below to
    multiples of 32. The logits are resized to the original picture, where the best class is taken,
    the first of equals. Each padded size has its own program, compiled once and kept. `device` is
    as in `Predictor`.
    """

    def __init__(
        self,
        model: SegmentationNetwork,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        device: str | None = None,
        progress: bool = True,
    ) -> None:
        sizes = {"min_size": min_size, "max_size": max_size}
        given = {k: v for k, v in sizes.items() if v is not None}
        self.settings = model.settings.changed(**given)
        self.config, self.progress = model.config, progress
        self.device = open_device(device)
        self.network = FoldedSegmentation(model, self.device)
        self._programs: dict[tuple[str, tuple[int, ...]], Program] = {}
        self._lock = Lock()

    def __call__(self, pictures: Picture | Iterable[Picture]) -> list[Segmentation]:
        """A picture is a file name, a Pillow image or an array (H, W, 3) uint8.

        Raises ImageError for an unreadable file.
        """
        return [self._one(pixels) for pixels in each(pictures)]

    def run(self, x: Tensor | Array) -> Array:
        """Normalized pictures (B, 3, H, W), not resized -> the class of each pixel (B, H, W) int32:
        the best of the logits, resized bilinearly to the picture, the first of equals."""
        return self._run("classes", as_batch(x))

    def _one(self, pixels: Array) -> Segmentation:
        picture = pixels.shape[0], pixels.shape[1]
        size = self.size(picture)
        shrunk = np.rint(resized(pixels.astype(np.float32), size))
        x = padded(normalized(shrunk, self.settings.mean, self.settings.std))
        logits = self._run("logits", x)[0]  # (h, w, K)
        if size == picture == x.shape[2:]:
            return Segmentation(best_class(logits, size), self.settings.classes)
        whole = resized(logits, (x.shape[2], x.shape[3]))[: size[0], : size[1]]
        return Segmentation(best_class(whole, picture), self.settings.classes)

    def size(self, picture: Size) -> Size:
        """The size that a picture (H, W) is resized to."""
        short, long = sorted(picture)
        scale = min(self.settings.min_size / short, self.settings.max_size / long)
        height, width = (max(int(side * scale + 0.5), 1) for side in picture)
        return height, width

    def _run(self, what: str, x: Array) -> Array:
        with self._lock:
            place = (what, x.shape)
            if place not in self._programs:
                self._programs[place] = Program(
                    {"network": asdict(self.config), "output": what},
                    getattr(self.network, what),
                    x,
                    self.network.weights,
                    device=self.device,
                    progress=self.progress,
                )
            return read_tensor(self._programs[place](x)[0])
