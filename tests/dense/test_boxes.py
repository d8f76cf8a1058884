"""Boxes by hand, and against plain loops over all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygmf.dense.boxes import (
    BACKGROUND,
    BETWEEN,
    cell_anchors,
    clip,
    decode,
    encode,
    grid_anchors,
    match,
    overlap,
    suppress,
    suppress_by_class,
    wide_enough,
)

F = np.float32


def boxes(*rows):
    return np.array(rows, F)


def random_boxes(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (n, 2))
    return np.concatenate([corner, corner + rng.integers(1, 30, (n, 2))], axis=1).astype(F)


def plain_suppression(own, scores, threshold):
    """By definition: from the best down, drop what overlaps a kept box too much. As in torchvision,
    an overlap of float32 is compared with a threshold of float64."""
    keep = []
    for i in sorted(range(len(own)), key=lambda i: -scores[i]):  # stable
        if all(float(overlap(own[[i]], own[[j]])[0, 0]) <= threshold for j in keep):
            keep.append(i)
    return keep


@given(st.integers(0, 10**6), st.integers(0, 30), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_suppression_keeps_what_its_definition_keeps(seed, n, threshold):
    own = random_boxes(seed, n)
    scores = np.random.default_rng(seed).integers(0, 5, n).astype(F)  # with ties
    assert suppress(own, scores, threshold).tolist() == plain_suppression(own, scores, threshold)


def test_of_equal_scores_the_first_is_kept():
    own = boxes((0, 0, 10, 10), (0, 0, 10, 10), (50, 50, 60, 60))
    assert suppress(own, np.array([0.5, 0.5, 0.5], F), 0.5).tolist() == [0, 2]


def test_an_overlap_of_exactly_the_threshold_stays():
    own = boxes((0, 0, 10, 10), (0, 0, 10, 5))  # intersection over union is one half
    scores = np.array([0.9, 0.8], F)
    assert suppress(own, scores, 0.5).tolist() == [0, 1]
    assert suppress(own, scores, 0.49).tolist() == [0]


@pytest.mark.parametrize("copies", [1, 700])  # apart by coordinates; class by class
def test_classes_do_not_suppress_each_other(copies):
    far = np.arange(copies, dtype=F)[:, None] * 20
    own = np.concatenate([boxes((0, 0, 10, 10)) + far, boxes((0, 0, 10, 10)) + far])
    scores = np.linspace(1, 0.5, 2 * copies).astype(F)
    classes = np.repeat([3, 7], copies)
    keep = suppress_by_class(own, scores, classes, 0.5)
    assert keep.tolist() == list(range(2 * copies))
    assert suppress_by_class(own, scores, classes * 0, 0.5).tolist() == list(range(copies))
    assert (
        suppress_by_class(own, scores, classes, 0.5, at_most=5).tolist()
        == [0, 1, 2, 3, 4][: 2 * copies]
    )


def test_nothing_is_suppressed_of_nothing():
    none, scores = np.zeros((0, 4), F), np.zeros(0, F)
    assert suppress(none, scores, 0.5).tolist() == []
    assert suppress_by_class(none, scores, scores, 0.5).tolist() == []


def test_overlap_counts_corners_as_points():
    found = overlap(boxes((0, 0, 4, 4)), boxes((0, 0, 4, 4), (2, 2, 6, 6), (4, 0, 8, 4)))
    assert np.allclose(found, [[1, 4 / 28, 0]])


@given(st.integers(0, 10**6))
def test_decoding_undoes_encoding(seed):
    own, anchors = random_boxes(seed, 7), random_boxes(seed + 1, 7)
    weights = (10, 10, 5, 5)
    assert np.allclose(decode(encode(own, anchors, weights), anchors, weights), own, atol=1e-3)


def test_a_side_grows_at_most_62_5_times():
    found = decode(boxes((0, 0, 100, 100)), boxes((0, 0, 2, 4)))
    assert np.allclose(found, [[1 - 62.5, 2 - 125, 1 + 62.5, 2 + 125]])


def test_a_box_beyond_the_border_is_cut_and_one_outside_has_no_area():
    found = clip(boxes((-5, -5, 200, 50), (130, 10, 140, 20)), (96, 128))
    assert found.tolist() == [[0, 0, 128, 50], [128, 10, 128, 20]]
    assert wide_enough(found, 1e-2).tolist() == [True, False]


def test_anchors_are_rounded_halves_to_even_and_stand_at_whole_strides():
    assert cell_anchors((16,), (1.0,)).tolist() == [[-8, -8, 8, 8]]
    assert cell_anchors((5,), (1.0,)).tolist() == [[-2, -2, 2, 2]]  # 2.5 to 2
    tall = cell_anchors((16,), (2.0,))[0]
    assert tall[3] > tall[2]  # a ratio is height / width
    (found,) = grid_anchors((33, 50), [(9, 13)], [(8,)], (1.0,))  # strides 33 // 9, 50 // 13
    assert found.shape == (9 * 13, 4)
    assert found[1].tolist() == [3 - 4, -4, 3 + 4, 4]
    assert found[13].tolist() == [-4, 3 - 4, 4, 3 + 4]


def test_anchors_go_ratio_by_ratio_and_within_it_size_by_size():
    found = cell_anchors((8, 16), (0.5, 2.0))
    areas = (found[:, 2] * 2) * (found[:, 3] * 2)
    assert (areas > 200).tolist() == [False, True, False, True]
    assert (found[:, 2] > found[:, 3]).tolist() == [True, True, False, False]


def test_matching_knows_background_and_what_lies_between():
    own = boxes((0, 0, 10, 10))
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 22), (0, 0, 10, 30))  # 1, 0.4545, 0.33
    assert match(own, anchors, 0.5, 0.4).tolist() == [0, BETWEEN, BACKGROUND]
    assert match(own, anchors[1:], 0.5, 0.4, keep_best=True).tolist() == [0, BACKGROUND]


def test_an_object_keeps_all_its_equally_best_anchors():
    own = boxes((10, 10, 20, 20), (90, 90, 91, 91))  # the second has one pixel
    anchors = boxes((5, 10, 15, 20), (15, 10, 25, 20), (80, 80, 112, 112), (0, 60, 9, 70))
    assert match(own, anchors, 0.7, 0.3, keep_best=True).tolist() == [0, 0, 1, BACKGROUND]


def test_without_objects_everything_is_background():
    assert match(np.zeros((0, 4), F), random_boxes(0, 3), 0.5, 0.4).tolist() == [BACKGROUND] * 3
