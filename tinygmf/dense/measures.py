"""How good class maps and detections are, in the field's own measures.

Class maps are measured by their confusion matrix, counted as in mmsegmentation; boxes and masks by
COCO's average precision, which pycocotools computes from the JSON that COCO's server takes.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygmf.data.annotations import IGNORE

MISSING = (
    "average precision: expected pycocotools, found none: run pip install 'tinygmf[detection]'"
)


class MeasureError(ValueError):
    """Something that cannot be measured; the message is one line that says what to do."""


@dataclass
class SegmentationScore:
    """Counts: of pictures, and of their pixels: `confusion[t, p]` pixels of class t were classified
    as p."""

    classes: list[str]
    pictures: int = 0
    confusion: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def add(self, found: np.ndarray, truth: np.ndarray) -> None:
        """Count a picture's class maps, both of one shape; ignore pixels whose truth is 255.

        Raises ValueError if the shapes differ or a value is not a class.
        """
        if found.shape != truth.shape:
            raise ValueError(f"class map: expected {truth.shape}, found {found.shape}")
        counted = truth != IGNORE
        pairs = np.stack([truth[counted], found[counted]]).astype(np.int64)
        size = len(self.classes)
        if pairs.size and not 0 <= pairs.min() <= pairs.max() < size:
            raise ValueError(f"class map: expected classes below {size}, found {pairs.max()}")
        counts = np.bincount(pairs[0] * size + pairs[1], minlength=size * size)
        self.confusion += counts.reshape(size, size)
        self.pictures += 1

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class; NaN if it is neither present nor predicted."""
        hits = np.diag(self.confusion)
        return _ratio(hits, self.confusion.sum(0) + self.confusion.sum(1) - hits)

    @property
    def recall(self) -> np.ndarray:
        """The share of each class's pixels that was found; NaN if it is not present."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that are present or were predicted."""
        return float(np.nanmean(self.iou)) if self.confusion.any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    def table(self) -> list[dict[str, Any]]:
        """A row for each class: its name, IoU, the share of its pixels found, its pixels."""
        columns = (self.classes, self.iou, self.recall, self.confusion.sum(1))
        return [
            {"class": name, "iou": float(iou), "recall": float(recall), "pixels": int(pixels)}
            for name, iou, recall, pixels in zip(*columns, strict=True)
        ]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


@dataclass
class DetectionScore:
    """COCO's average precision on so many pictures; NaN if there are no objects.

    `ap` is the mean over the overlaps 0.5, 0.55 … 0.95, `ap50` and `ap75` are at a single one;
    `ap_small` is for objects below 32x32 pixels, `ap_large` from 96x96 on; `by_class` has `ap` and
    `ap50` of each class.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    by_class: dict[str, tuple[float, float]]
    pictures: int


def average_precision(
    truth: dict[str, Any], results: list[dict], kind: str = "bbox"
) -> DetectionScore:
    """Measure boxes ("bbox") or masks ("segm").

    `truth` is COCO's annotation file, `results` COCO's results: image_id, category_id, score, and
    bbox (x, y, width, height) or segmentation (run-length code). Raises MeasureError without
    pycocotools, and for results with pictures or classes that are not in the truth.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MeasureError(MISSING) from None
    _check(truth, results)
    if kind == "segm":  # or pycocotools would use the box's area for the mask's
        results = [{key: result[key] for key in result if key != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, and modifies both arguments
        known, found = COCO(), COCO()
        known.dataset = truth | {"annotations": [dict(note) for note in truth["annotations"]]}
        known.createIndex()
        if results:
            found = known.loadRes([dict(result) for result in results])
        judge = COCOeval(known, found, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = np.where(judge.stats < 0, np.nan, judge.stats)[:6].tolist()
    ap, ap50, ap75, small, medium, large = stats
    rows, pictures = _by_class(truth, judge), len(truth["images"])
    return DetectionScore(ap, ap50, ap75, small, medium, large, rows, pictures)


def _by_class(truth: dict[str, Any], judge: Any) -> dict[str, tuple[float, float]]:
    # (overlaps, recalls, classes, sizes, most detections) -> (classes, overlaps), of all sizes
    precision = judge.eval["precision"][:, :, :, 0, -1].mean(1).T
    precision[precision < 0] = np.nan
    names = {category["id"]: category["name"] for category in truth["categories"]}
    rows = zip(judge.params.catIds, precision, strict=True)
    return {names[id]: (float(row.mean()), float(row[0])) for id, row in rows}


def _check(truth: dict[str, Any], results: list[dict]) -> None:
    for key, entries in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in truth[entries]}
        for result in results:
            if result[key] not in known:
                raise MeasureError(
                    f"results: expected {key} among the {entries} of the annotations, found "
                    f"{result[key]!r}: they belong to another data set"
                )
