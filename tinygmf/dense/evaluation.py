"""Measuring a dense network on the held-out part of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from tinygmf.data.annotations import IGNORE, Annotations
from tinygmf.data.classes import SHOWN, ClassIndex
from tinygmf.data.coco import coco_results, coco_truth
from tinygmf.data.dense_data import DenseDataset
from tinygmf.dense.detector import Detector
from tinygmf.dense.measures import DetectionScore, SegmentationScore, average_precision
from tinygmf.dense.segmenter import Segmenter
from tinygmf.files import printable


def renumbered(data: DenseDataset, names: Sequence[str]) -> DenseDataset:
    """The data with its classes numbered, by name, as in a network's `names`. The background of
    objects is 0 in both, whatever it is called.

    Raises ValueError if the network does not know one of the classes.
    """
    if list(names) == data.classes:
        return data
    first = int(data.task != "segment")
    index = ClassIndex(names[first:], numbers=False)
    found = {name: index(name) for name in data.classes[first:]}
    if others := [printable(name) for name, number in found.items() if number is None]:
        shown = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
        raise ValueError(
            f"{data.name}: expected the network's {len(index.names)} classes ({index}), found "
            f"others: {shown}: choose other weights or other data, or name the "
            "network's classes with --classes"
        )
    numbers = [0] * first + [first + number for number in found.values() if number is not None]
    table = np.full(max(len(numbers), IGNORE + 1), IGNORE)
    table[: len(numbers)] = numbers

    def load(source: Any) -> tuple[Image.Image, Annotations]:
        picture, known = data.load(source)
        if known.class_map is not None:
            known = replace(known, class_map=table[known.class_map].astype(np.uint8))
        return picture, replace(known, labels=table[known.labels])

    return replace(data, classes=list(names), load=load, category_ids=[])


def score_segmentation(model: Any, data: DenseDataset, **options: Any) -> SegmentationScore:
    """Count the class maps of all held-out pictures, at their own sizes. The options are
    `Segmenter`'s."""
    segment, score = Segmenter(model, **options), SegmentationScore(data.classes)
    for _, picture, known in data.validation():
        assert known.class_map is not None
        score.add(segment(picture)[0].classes, known.class_map)
    return score


def score_detection(model: Any, data: DenseDataset, **options: Any) -> dict[str, DetectionScore]:
    """COCO's average precision by kind: "bbox", then "segm" if the network and the annotations have
    masks. The options are `Detector`'s."""
    results = detection_results(model, data, **options)
    truth = coco_truth(data)
    kinds = ["bbox"]
    if data.task == "instance" and any("segmentation" in result for result in results):
        kinds.append("segm")
    return {kind: average_precision(truth, results, kind) for kind in kinds}


def detection_results(model: Any, data: DenseDataset, **options: Any) -> list[dict[str, Any]]:
    """The detections in all held-out pictures, in the form that COCO's server takes."""
    detect, results = Detector(model, **options), []
    for place, (source, picture, _) in enumerate(data.validation()):
        image_id = getattr(source, "id", place)
        found = detect(np.asarray(picture))[0]
        results += coco_results(image_id, found, data.category_ids)
    return results
