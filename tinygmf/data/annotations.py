"""The annotations of one picture.

Boxes are (x0, y0, x1, y1) in pixels: the picture's upper left corner is (0, 0), its lower right
one is (W, H), and the pixel in row y, column x reaches from (x, y) to (x + 1, y + 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

TASKS = "segment", "detect", "instance"
BACKGROUND = "background"
IGNORE = 255  # in a class map: a pixel that counts neither way
FLAGS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


class AnnotationError(ValueError):
    """An annotation that cannot be used; the message says what was expected and what was found."""


def read_flag(name: str, found: Any) -> bool:
    """0, 1, true or false, as such or as text; if there is nothing, False.

    Raises AnnotationError for anything else."""
    text = "" if found is None else str(found).strip().lower()
    if text not in FLAGS:
        raise AnnotationError(f"expected {name} 0 or 1, found {found!r:.40}")
    return FLAGS[text]


@dataclass
class Annotations:
    """The n objects of a picture, or the class of each of its pixels, depending on the task.

    boxes (n, 4) float32; labels (n,) int64, indices of the classes, 0 being the background;
    ignored (n,) bool: crowds and difficult objects, which count neither as misses nor as errors;
    areas (n,) float32 in pixels, by which COCO tells small from large; masks (n, H, W) bool for
    instances; class_map (H, W) uint8, `IGNORE` where unknown, for semantic segmentation.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: np.ndarray = field(default_factory=lambda: np.zeros(0, np.bool_))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    masks: np.ndarray | None = None
    class_map: np.ndarray | None = None

    def take(self, chosen: np.ndarray) -> Annotations:
        """The chosen objects, by indices or by a mask (n,)."""
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            ignored=self.ignored[chosen],
            areas=self.areas[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )


def paint_classes(masks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Masks (n, H, W) and labels (n,) -> class map (H, W) uint8, small objects over large ones."""
    class_map = np.zeros(masks.shape[1:], np.uint8)
    for i in np.argsort(-np.count_nonzero(masks, (1, 2)), kind="stable"):
        class_map[masks[i]] = labels[i]
    return class_map
