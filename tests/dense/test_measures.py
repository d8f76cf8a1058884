"""Measures against their definitions, counted by hand or pixel by pixel."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygmf.data.annotations import IGNORE
from tinygmf.data.coco import coco_results
from tinygmf.dense.measures import MeasureError, SegmentationScore, average_precision

CLASSES = ["background", "cat", "dog"]


@given(st.integers(0, 2**32 - 1))
def test_class_maps_are_measured_as_sets_of_pixels_are(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, IGNORE], (2, 5, 7)).astype(np.uint8)
    found = rng.integers(0, 3, truth.shape)
    score = SegmentationScore(CLASSES)
    for pair in zip(found, truth, strict=True):  # picture by picture, as an evaluation does
        score.add(*pair)
    counted = {place for place, label in np.ndenumerate(truth) if label != IGNORE}
    theirs, ours = ({p: int(array[p]) for p in counted} for array in (truth, found))
    ious = []
    for label, row in enumerate(score.table()):
        there, seen = ({p for p in counted if has[p] == label} for has in (theirs, ours))
        assert row["class"] == CLASSES[label] and row["pixels"] == len(there)
        if there | seen:
            ious.append(len(there & seen) / len(there | seen))
            assert row["iou"] == pytest.approx(ious[-1])
        else:
            assert math.isnan(row["iou"])
        assert not there or row["recall"] == pytest.approx(len(there & seen) / len(there))
    if counted:
        right = sum(ours[p] == theirs[p] for p in counted)
        assert score.pixel_accuracy == pytest.approx(right / len(counted))
        assert score.mean_iou == pytest.approx(sum(ious) / len(ious))


def test_where_all_is_ignored_nothing_is_claimed():
    score = SegmentationScore(CLASSES)
    score.add(np.zeros((3, 3), int), np.full((3, 3), IGNORE))
    assert math.isnan(score.mean_iou) and math.isnan(score.pixel_accuracy)


@pytest.mark.parametrize(
    ("found", "truth"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), int)),
        (np.full((2, 2), 3), np.zeros((2, 2), int)),
        (np.full((2, 2), IGNORE), np.zeros((2, 2), int)),
        (np.zeros((2, 2), int), np.full((2, 2), 7)),
        (np.full((2, 2), -1), np.zeros((2, 2), int)),
    ],
)
def test_class_maps_that_do_not_fit_are_refused(found, truth):
    with pytest.raises(ValueError, match="class map: expected"):
        SegmentationScore(CLASSES).add(found, truth)


def box(x: float, y: float, side: float = 10, label: int = 1, score: float | None = None) -> dict:
    entry = {"image_id": 1, "category_id": label, "bbox": [x, y, side, side]}
    return entry | ({"score": score} if score is not None else {})


def truth_of(*notes: dict) -> dict:
    area = {"iscrowd": 0, "area": 100.0}
    return {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [area | note | {"id": i} for i, note in enumerate(notes, 1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture(autouse=True)
def tools():
    pytest.importorskip("pycocotools", reason="pip install pycocotools for average precision")


@pytest.mark.parametrize(
    ("results", "ap", "ap50"),
    [
        ([box(0, 0, score=0.9), box(40, 40, score=0.8)], 1, 1),
        ([], 0, 0),
        # Precision is 1/2 up to recall 1/2, and 2/3 from there on, so 2/3 everywhere
        ([box(70, 0, score=0.9), box(0, 0, score=0.8), box(40, 40, score=0.7)], 2 / 3, 2 / 3),
        # Only half is found: 51 of the 101 recalls
        ([box(0, 0, score=0.9)], 51 / 101, 51 / 101),
        # Found twice: the second time it is wrong, but of lower score than what is right
        ([box(0, 0, score=0.9), box(40, 40, score=0.8), box(0, 0, score=0.7)], 1, 1),
        # IoU 81/119 = 0.68: right at 0.5, 0.55, 0.6 and 0.65 alone
        ([box(1, 1, score=0.9), box(41, 41, score=0.8)], 0.4, 1),
    ],
)
def test_average_precision_is_what_counting_by_hand_gives(results, ap, ap50):
    found = average_precision(truth_of(box(0, 0), box(40, 40)), results)
    assert found.ap == pytest.approx(ap) and found.ap50 == pytest.approx(ap50)
    assert found.ap_small == pytest.approx(ap) and math.isnan(found.ap_large)
    assert found.by_class["cat"] == pytest.approx((ap, ap50))
    assert all(map(math.isnan, found.by_class["dog"]))


def test_a_box_of_another_class_is_wrong():
    assert average_precision(truth_of(box(0, 0)), [box(0, 0, label=2, score=0.9)]).ap == 0


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    truth = truth_of(box(0, 0), box(50, 50, 40) | {"iscrowd": 1})
    inside = [box(55, 55, score=0.99), box(70, 70, score=0.98)]
    assert average_precision(truth, [*inside, box(0, 0, score=0.5)]).ap == pytest.approx(1)


def test_masks_are_judged_by_their_pixels_and_arguments_stay_as_they_are():
    masks = np.zeros((2, 100, 100), bool)
    masks[0, :10, :10] = masks[1, 40:50, 40:50] = True
    boxes = np.array([[0, 0, 10, 10], [40, 40, 50, 50]], np.float32)
    known = SimpleNamespace(boxes=boxes, labels=np.array([1, 1]), masks=masks)
    truth = truth_of(*coco_results(1, known, [0, 1, 2]))
    masks = masks.copy()
    masks[1, 40:46] = False  # IoU 0.4, though its box says otherwise
    found = SimpleNamespace(
        boxes=boxes, labels=np.array([1, 1]), masks=masks, scores=np.float32([0.9, 0.8])
    )
    results = coco_results(1, found, [0, 1, 2])
    before = json.dumps([truth, results])  # which COCO's server takes
    assert average_precision(truth, results, "segm").ap50 == pytest.approx(51 / 101)
    assert average_precision(truth, results, "bbox").ap50 == pytest.approx(1)
    assert json.dumps([truth, results]) == before


@pytest.mark.parametrize("change", [{"image_id": 2}, {"category_id": 3}])
def test_results_of_another_data_set_are_refused(change):
    with pytest.raises(MeasureError, match="another data set"):
        average_precision(truth_of(box(0, 0)), [box(0, 0, score=0.9) | change])


def test_without_pycocotools_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MeasureError, match=r"pip install 'tinygmf\[detection\]'"):
        average_precision(truth_of(box(0, 0)), [])
