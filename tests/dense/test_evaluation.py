"""Annotations measured on a network that numbers the classes in its own way."""

import numpy as np
import pytest
from annotated_folders import NAMES, THINGS, class_map, coco, voc, yolo

from tinygmf.data.annotations import IGNORE
from tinygmf.data.coco import coco_results, coco_truth
from tinygmf.data.dense_folders import open_dense
from tinygmf.dense.evaluation import renumbered
from tinygmf.dense.measures import average_precision

NETWORK = ["nothing", "dog", "bird", "cat"]  # its own word for the background, and a class more


@pytest.mark.parametrize("make", [coco, voc, yolo])
def test_objects_are_numbered_as_the_network_numbers_them(make, tmp_path):
    pytest.importorskip("pycocotools", reason="pip install pycocotools for average precision")
    data = renumbered(open_dense(make(tmp_path / "data"), "detect"), NETWORK)
    results = []
    for source, _, known in data.validation():
        assert known.labels.tolist() == [NETWORK.index(NAMES[label - 1]) for label, *_ in THINGS]
        known.scores = np.ones(2)
        results += coco_results(source.id, known, data.category_ids)
    stray = results[0] | {"category_id": NETWORK.index("bird")}  # a class that the data lacks
    score = average_precision(coco_truth(data), [*results, stray])
    assert score.pictures == 2 and score.ap == pytest.approx(1)
    assert list(score.by_class) == NETWORK[1:]


def test_pixels_are_numbered_as_the_network_numbers_them(tmp_path):
    folder = voc(tmp_path / "data")
    data = open_dense(folder, "segment")
    [(_, _, straight), *_] = data.validation()
    straight.class_map[0, 0] = IGNORE
    names = ["dog", "background", "cat"]
    data.load, load = lambda source: (load(source)[0], straight), data.load
    [(_, _, known), *_] = renumbered(data, names).validation()
    expected = class_map((1, 2, 0))
    expected[0, 0] = IGNORE
    np.testing.assert_array_equal(known.class_map, expected)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_class_that_the_network_lacks_is_named(task, tmp_path):
    data = open_dense(coco(tmp_path / "data"), task)
    with pytest.raises(ValueError, match=r"network's \d classes .*, found others: cat: choose"):
        renumbered(data, ["background", "dog"])


def test_the_same_names_need_not_differ(tmp_path):
    data = open_dense(coco(tmp_path / "data"), "detect")
    data.classes[2] = data.classes[1]
    assert renumbered(data, list(data.classes)) is data
