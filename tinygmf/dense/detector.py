"""Detection and instance masks in any picture: `Detector`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any

import numpy as np
from tinygrad import Tensor

from tinygmf.dense import roi
from tinygmf.dense.boxes import grid_anchors
from tinygmf.dense.detections import (
    Candidates,
    Detections,
    box_detections,
    in_picture,
    proposals,
    retinanet_detections,
    sigmoid,
)
from tinygmf.dense.folded import FoldedMaskRCNN, FoldedRetinaNet
from tinygmf.dense.maskrcnn import MASK_BINS, MaskRCNN
from tinygmf.dense.pictures import Picture, Size, as_batch, each, normalized, padded, resized
from tinygmf.dense.programs import Program
from tinygmf.dense.retinanet import RetinaNet
from tinygmf.dense.settings import sizes_of_levels
from tinygmf.engine.devices import open_device
from tinygmf.tensors import read_tensor

Array = np.ndarray


class Detector:
    """Runs a detector on pictures: `Detector(model, score_thresh=0.5)(["street.jpg"])`.

    Pictures are resized as in torchvision: the shorter side to `min_size` pixels, unless the longer
    would exceed `max_size`; bilinear, sides rounded down; then padded on the right and below to
    multiples of 32. Boxes and masks refer to the original picture. `thresholds` replace the model's
    settings under torchvision's names (`settings.py`): `score_thresh`, `nms_thresh`,
    `detections_per_img`, `topk_candidates`, `rpn_pre_nms_top_n_test`, `anchor_sizes`, `min_size`, …
    Each padded size has its own set of programs, compiled once and kept. `device` is as in
    `Predictor`. Raises ValueError for an unknown name or an impossible value.
    """

    def __init__(
        self,
        model: RetinaNet | MaskRCNN,
        *,
        device: str | None = None,
        progress: bool = True,
        **thresholds: Any,
    ) -> None:
        settings: Any = model.settings.changed(**thresholds)
        self.device, self.progress = open_device(device), progress
        self.settings = settings
        self.sizes = sizes_of_levels(settings, model.config.num_anchors)
        self.network: Any
        if isinstance(model, RetinaNet):
            self.network = FoldedRetinaNet(model, settings.topk_candidates, self.device)
        else:
            self.network = FoldedMaskRCNN(model, settings.rpn_pre_nms_top_n_test, self.device)
        self._runs: dict[tuple[int, ...], Any] = {}
        self._lock = Lock()

    def __call__(self, pictures: Picture | Iterable[Picture]) -> list[Detections]:
        """A picture is a file name, a Pillow image or an array (H, W, 3) uint8.

        Raises ImageError for an unreadable file.
        """
        return [self._one(pixels) for pixels in each(pictures)]

    def run(self, x: Tensor | Array) -> list[Detections]:
        """Normalized pictures (B, 3, H, W), not resized -> the detections in each picture."""
        batch = as_batch(x)
        size = batch.shape[2], batch.shape[3]
        return [in_picture(*found, size, size) for found in self._run(batch, size)]

    def _one(self, pixels: Array) -> Detections:
        picture = pixels.shape[0], pixels.shape[1]
        size = self.size(picture)
        x = resized(normalized(pixels, self.settings.mean, self.settings.std), size)
        (found,) = self._run(padded(x), size)
        return in_picture(*found, size, picture)

    def size(self, picture: Size) -> Size:
        """The size that a picture (H, W) is resized to."""
        short, long = (np.float32(side) for side in sorted(picture))
        scale = min(self.settings.min_size / short, self.settings.max_size / long)
        height, width = (max(int(side * float(scale)), 1) for side in picture)
        return height, width

    def _run(self, x: Array, size: Size) -> list[tuple[Detections, Array | None]]:
        """The detections in pictures of `size` before padding, and the masks' probabilities."""
        with self._lock:
            if x.shape not in self._runs:
                kind = _Boxes if isinstance(self.network, FoldedRetinaNet) else _Masks
                self._runs[x.shape] = kind(self, x)
            return self._runs[x.shape](x, size)

    def program(
        self, what: str, inputs: Array | list[Array], *fixed: Tensor, topk: bool = False
    ) -> Program:
        """The network's function of this name, as a program."""
        key: dict[str, Any] = {"network": asdict(self.network.config), "output": what}
        key |= {"topk": self.network.topk} if topk else {}
        key |= {"fixed": [list(map(int, tensor.shape)) for tensor in fixed]}
        return Program(
            key,
            getattr(self.network, what),
            inputs,
            self.network.weights,
            *fixed,
            device=self.device,
            progress=self.progress,
        )


def grids_of(picture: Size, first: int, levels: int = 5) -> list[Size]:
    """The pyramid's sizes, from stage `first` on: each half the one before, rounded up."""
    height, width = picture
    sizes = []
    for _ in range(first + 2 + levels):
        sizes.append((height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return sizes[first + 2 :]


def by_picture(outputs: Sequence[Tensor], batch: int) -> list[list[Candidates]]:
    """The candidates of each picture, level by level."""
    arrays = [read_tensor(tensor) for tensor in outputs]
    levels = [arrays[i : i + 3] for i in range(0, len(arrays), 3)]
    return [[Candidates(*(a[b] for a in level)) for level in levels] for b in range(batch)]


class _Boxes:
    """RetinaNet for one input shape."""

    def __init__(self, detector: Detector, x: Array) -> None:
        self.settings = detector.settings
        picture = x.shape[2], x.shape[3]
        ratios = self.settings.aspect_ratios
        self.anchors = grid_anchors(picture, grids_of(picture, 1), detector.sizes, ratios)
        self.candidates = detector.program("candidates", x, topk=True)

    def __call__(self, x: Array, size: Size) -> list[tuple[Detections, Array | None]]:
        levels = by_picture(self.candidates(x), len(x))
        return [(retinanet_detections(o, self.anchors, size, self.settings), None) for o in levels]


class _Masks:
    """Mask R-CNN for one input shape."""

    def __init__(self, detector: Detector, x: Array) -> None:
        self.settings, self.detector = detector.settings, detector
        self.batch, self.picture = len(x), (x.shape[2], x.shape[3])
        self.grids = grids_of(self.picture, 0)
        ratios = self.settings.aspect_ratios
        self.anchors = grid_anchors(self.picture, self.grids, detector.sizes, ratios)
        self.candidates = detector.program("candidates", x, topk=True)
        self.flat = self.candidates(x)[0]
        found = sum(min(len(a), self.settings.rpn_pre_nms_top_n_test) for a in self.anchors)
        self.places = min(self.settings.rpn_post_nms_top_n_test, found)
        classes = detector.network.config.num_classes - 1
        self.most = min(self.settings.box_detections_per_img, self.places * max(classes, 1))
        self.boxes = self._second("boxes", self.places)
        self.masks = self._second("masks", self.most)

    def _second(self, what: str, places: int) -> Program:
        none = [np.zeros((0, 4), np.float32)] * self.batch
        inputs = self._lookups(none, places, what, self.picture)
        return self.detector.program(what, inputs, self.flat)

    def _lookups(self, boxes: Sequence[Array], places: int, what: str, size: Size) -> list[Array]:
        """The program's inputs for the boxes of each picture, padded to `places` with boxes without
        area."""
        filled = [np.pad(own, ((0, places - len(own)), (0, 0))) for own in boxes]
        pictures = np.repeat(np.arange(self.batch), places)
        bins = self.detector.network.config.box_bins if what == "boxes" else MASK_BINS
        found = roi.lookups(np.concatenate(filled), pictures, size, self.grids[:4], bins)
        return [*found.rows, *found.columns]

    def __call__(self, x: Array, size: Size) -> list[tuple[Detections, Array | None]]:
        levels = by_picture(self.candidates(x)[1:], self.batch)
        own = [proposals(o, self.anchors, size, self.settings) for o in levels]
        outputs = self.boxes(*self._lookups(own, self.places, "boxes", size))
        logits, deltas = (read_tensor(t).reshape(self.batch, self.places, -1) for t in outputs)
        found = []
        for b, boxes in enumerate(own):
            n = len(boxes)
            found.append(box_detections(logits[b, :n], deltas[b, :n], boxes, size, self.settings))
        lookups = self._lookups([f.boxes for f in found], self.most, "masks", size)
        masks = read_tensor(self.masks(*lookups)[0])  # (B * most, 28, 28, K)
        masks = masks.reshape(self.batch, self.most, *masks.shape[1:])
        return [(f, sigmoid(own_masks(m, f.labels))) for f, m in zip(found, masks, strict=True)]


def own_masks(masks: Array, labels: Array) -> Array:
    """From masks (places, 28, 28, K) those of the n labels' own classes: (n, 28, 28)."""
    return masks[np.arange(len(labels)), :, :, labels]
