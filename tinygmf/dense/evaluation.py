"""Measuring a dense network on the held-out part of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygmf.data.coco import coco_results, coco_truth
from tinygmf.data.dense_data import DenseDataset
from tinygmf.dense.detector import Detector
from tinygmf.dense.measures import DetectionScore, SegmentationScore, average_precision
from tinygmf.dense.segmenter import Segmenter


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
