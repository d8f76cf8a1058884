"""Polygons and run-length codes against COCO's own code and against the definition."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinygmf.data.annotations import AnnotationError
from tinygmf.data.outlines import (
    decode,
    encode,
    mask_boxes,
    polygon_mask,
    read_outline,
    uncompress,
)

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(bool, size))
points = st.lists(st.tuples(st.floats(-4, 20), st.floats(-4, 20)), min_size=3, max_size=8)


@given(masks)
def test_the_code_is_what_cocos_own_tools_write_and_reads_back(mask):
    coder = pytest.importorskip("pycocotools.mask")
    height, width = mask.shape
    code = encode(mask)
    theirs = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert code == {"size": [height, width], "counts": theirs["counts"].decode()}
    assert json.loads(json.dumps(code)) == code
    for form in (code, {**code, "counts": uncompress(code["counts"])}):
        read = read_outline(form, (width, height))
        np.testing.assert_array_equal(decode(read, height, width), mask)


def test_large_masks_of_few_runs_are_decoded_in_seconds():
    counts, start = np.array([0, 8192 * 8192]), time.process_time()
    assert all(decode(counts, 8192, 8192).all() for _ in range(31))
    assert time.process_time() - start < 5


@given(points)
def test_a_pixel_is_inside_a_polygon_when_a_ray_from_its_middle_leaves_through_odd_edges(corners):
    def crossings(x: float, y: float) -> int:
        """By crossings of the ray to the right, edge by edge."""
        count = 0
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if (y0 <= y) != (y1 <= y):
                count += x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x
        return count

    found = polygon_mask([np.array(corners)], 12, 14)
    for row in range(12):
        for column in range(14):
            here, nudged = (crossings(column + 0.5 + d, row + 0.5) % 2 for d in (-1e-9, 1e-9))
            if here == nudged:  # else an edge goes through the middle
                assert found[row, column] == here


def test_polygons_agree_with_cocos_own_tools_but_for_their_rims():
    coder = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (50, 9)), 1)
    for turn in angles:
        corners = np.stack([32 + 25 * np.cos(turn), 30 + 25 * np.sin(turn)], 1)
        ours = polygon_mask([corners], 60, 64)
        theirs = coder.decode(coder.frPyObjects([corners.ravel().tolist()], 60, 64))[..., 0]
        length = np.linalg.norm(corners - np.roll(corners, 1, 0), axis=1).sum()
        assert (ours != theirs).sum() < 0.5 * length


def test_polygons_of_one_object_are_united():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    mask = polygon_mask([square, square + 2], 8, 8)
    assert mask.sum() == 16 + 16 - 4


@given(st.integers(0, 3).flatmap(lambda n: arrays(bool, (n, 5, 7))))
def test_a_masks_box_is_the_least_that_holds_all_its_pixels(masks):
    for mask, (x0, y0, x1, y1) in zip(masks, mask_boxes(masks).astype(int), strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows):
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert (x0, y0, x1, y1) == edges
        else:
            assert not any((x0, y0, x1, y1))


@pytest.mark.parametrize(
    "outline",
    [
        None,
        [],
        "mask",
        [[1, 2, 3, 4]],
        [[0, 0, 5, 0, 5]],
        [[0, 0, 5, 0, 5, float("nan")]],
        [[0, 0, 5, 0, 5, 1e30]],
        [[0, 0, "a", 0, 5, 5]],
        [[[0, 0], [1, 1], [2, 2]]],
        {"size": [4, 3], "counts": [12]},  # width and height the wrong way round
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [3, 4], "counts": [5]},
        {"size": [3, 4], "counts": [-1, 13]},
        {"size": [3, 4], "counts": [12.0]},
        {"size": [3, 4], "counts": [True] * 12},
        {"size": [3, 4], "counts": "~" * 100},
        {"size": [3, 4], "counts": "é"},
        {"size": [3, 4], "counts": "P"},
        {"size": [3, 4]},
    ],
)
def test_an_outline_that_cannot_be_is_refused(outline):
    with pytest.raises(AnnotationError):
        read_outline(outline, (4, 3))


@given(st.text())
@settings(max_examples=300)
def test_any_text_is_a_run_length_code_or_is_refused(text):
    try:
        counts = read_outline({"size": [3, 4], "counts": text}, (4, 3))
    except AnnotationError:
        return
    assert decode(counts, 3, 4).shape == (3, 4)
