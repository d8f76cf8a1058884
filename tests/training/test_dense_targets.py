"""A dense network's targets: right, and of fixed shapes whatever is in the pictures."""

from dataclasses import replace

import numpy as np
import pytest

from tinygmf.data.annotations import Annotations
from tinygmf.dense.networks import create_model
from tinygmf.training.dense_networks import head_options
from tinygmf.training.dense_targets import TARGETS, Known, Outputs, objects

SIZE, CLASSES = 64, 7
HEADS = ["semantic_fpn", "retinanet", "maskrcnn"]


@pytest.fixture(scope="module", params=HEADS)
def targets(request):
    options = head_options(request.param, 10, small=True)
    return TARGETS[request.param](create_model(request.param, CLASSES, **options), SIZE)


def annotated(seed: int, count: int) -> Annotations:
    """Rectangles with their masks and a class map."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, SIZE - 17, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(8, 17, (count, 2))], 1)
    masks = np.zeros((count, SIZE, SIZE), bool)
    class_map = np.zeros((SIZE, SIZE), np.uint8)
    labels = rng.integers(1, CLASSES, count)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        masks[i, y0:y1, x0:x1] = True
        class_map[masks[i]] = labels[i]
    areas = masks.sum((1, 2)).astype(np.float32)
    ignored = np.zeros(count, bool)
    return Annotations(boxes.astype(np.float32), labels, ignored, areas, masks, class_map)


def known(*pictures: Annotations, seed: int = 0) -> Known:
    return Known(list(pictures), np.random.default_rng(seed))


def test_shapes_and_types_do_not_depend_on_what_there_is(targets):
    empty = targets.arrays(known(Annotations(), Annotations()))
    full = targets.arrays(known(annotated(1, 9), annotated(2, 1)))
    assert [(a.shape, a.dtype) for a in empty] == [(a.shape, a.dtype) for a in full]
    assert all(array.dtype in (np.float32, np.int32) for array in full)


def test_the_same_seed_gives_the_same(targets):
    one, two = (targets.arrays(known(annotated(1, 5), seed=3)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_crowd_is_no_example():
    crowd = annotated(1, 3)
    crowd = replace(crowd, ignored=np.array([False, True, False]))
    assert len(objects(crowd).labels) == 2


def test_dropout_keeps_whole_channels_and_their_mean():
    network = create_model("semantic_fpn", CLASSES, **head_options("semantic_fpn", 40, small=True))
    targets = TARGETS["semantic_fpn"](network, SIZE)
    labels, kept = targets.arrays(known(*[annotated(i, 3) for i in range(64)]))
    assert kept.shape == (64, 1, 1, 40)
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.9)}
    assert kept.mean() == pytest.approx(1, abs=0.03)
    assert np.array_equal(labels[5], annotated(5, 3).class_map)


def test_maskrcnn_gets_masks_of_the_objects_under_their_own_boxes():
    network = create_model("maskrcnn", CLASSES, **head_options("maskrcnn", 10, small=True))
    targets = TARGETS["maskrcnn"](network, SIZE)
    places, anchors = targets.mask_places, sum(map(len, targets.levels))
    outputs = Outputs(np.zeros((1, anchors, 1), np.float32), np.zeros((1, anchors, 4), np.float32))
    one = annotated(4, 1)
    *_, labels, masks, _, _, _, _ = targets.arrays(known(one), outputs)
    assert labels.shape == (places,) and labels[0] == one.labels[0]
    found = masks[labels > 0].mean((1, 2))
    assert (found > 0.4).all()  # boxes that overlap the object by half: so much is object
    assert not masks[labels < 1].any()
