"""Pictures, boxes, masks and class maps stay in step, whatever is done to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from tinygmf.data.annotations import IGNORE, Annotations
from tinygmf.data.dense_augment import PADDING, DenseAugment, crop, flip, resize
from tinygmf.data.outlines import mask_boxes

COLOURS = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
seeds = st.integers(0, 2**32 - 1)
augments = st.builds(
    DenseAugment,
    size=st.integers(9, 40),
    scale=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
    flip=st.floats(0, 1),
    colour=st.just(0.0),
)


def painted(seed: int) -> tuple[Image.Image, Annotations]:
    """A picture of one to three rectangles, each in the colour of its class."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(12, 50, 2)
    labels = rng.permutation(3)[: rng.integers(1, 4)] + 1
    class_map = np.zeros((height, width), np.uint8)
    for label in labels:
        top, left = rng.integers(height - 4), rng.integers(width - 4)
        class_map[top : top + rng.integers(4, 30), left : left + rng.integers(4, 30)] = label
    labels = np.unique(class_map[class_map > 0]).astype(np.int64)
    masks = np.stack([class_map == label for label in labels])
    areas, ignored = masks.sum((1, 2)).astype(np.float32), np.zeros(len(labels), bool)
    known = Annotations(mask_boxes(masks), labels, ignored, areas, masks, class_map)
    return Image.fromarray(COLOURS[class_map]), known


def without_masks(known: Annotations) -> Annotations:
    return Annotations(known.boxes, known.labels, known.ignored, known.areas)


def assert_same(found: Annotations, expected: Annotations) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@given(seeds)
def test_a_flip_twice_is_the_identity(seed):
    picture, known = painted(seed)
    again, same = flip(*flip(picture, known))
    np.testing.assert_array_equal(again, picture)
    assert_same(same, known)


@given(seeds)
def test_a_flipped_mask_still_fills_its_box(seed):
    _, known = flip(*painted(seed))
    np.testing.assert_array_equal(mask_boxes(known.masks), known.boxes)


@settings(deadline=None)
@given(seeds, augments)
def test_every_mask_still_fills_its_box(seed, augment):
    picture, known = augment(*painted(seed), np.random.default_rng(seed))
    assert picture.size == (augment.size, augment.size)
    assert known.masks.shape == (len(known.boxes), augment.size, augment.size)
    np.testing.assert_array_equal(mask_boxes(known.masks), known.boxes)


@settings(deadline=None)
@given(seeds, augments)
def test_a_box_without_a_mask_goes_where_the_mask_goes(seed, augment):
    picture, known = painted(seed)
    _, masked = augment(picture, known, np.random.default_rng(seed))
    _, boxed = augment(picture, without_masks(known), np.random.default_rng(seed))
    for label, box in zip(masked.labels, masked.boxes, strict=True):
        whole = boxed.boxes[boxed.labels == label][0]  # the others may hide some of it
        assert (whole[:2] <= box[:2] + 1.01).all() and (whole[2:] >= box[2:] - 1.01).all()


@settings(deadline=None)
@given(seeds, augments)
def test_no_box_leaves_the_picture_or_is_empty(seed, augment):
    picture, known = painted(seed)
    _, known = augment(picture, without_masks(known), np.random.default_rng(seed))
    assert (known.boxes >= 0).all() and (known.boxes <= augment.size).all()
    assert (known.boxes[:, 2:] > known.boxes[:, :2]).all()
    counts = {len(known.boxes), len(known.labels), len(known.ignored), len(known.areas)}
    assert len(counts) == 1


@settings(deadline=None)
@given(seeds, augments)
def test_the_class_map_shows_what_the_masks_show_and_the_picture_does(seed, augment):
    picture, known = augment(*painted(seed), np.random.default_rng(seed))
    pixels, inside = np.asarray(picture).astype(int), known.class_map != IGNORE
    for mask, label in zip(known.masks, known.labels, strict=True):
        np.testing.assert_array_equal(mask, known.class_map == label)
    assert (pixels[~inside] == PADDING).all()
    # Far from edges, where the picture is not blended, each pixel has the colour of its class
    around = sliding_window_view(known.class_map, (9, 9))
    chosen = np.zeros_like(inside)
    chosen[4:-4, 4:-4] = around.max((2, 3)) == around.min((2, 3))
    chosen &= inside
    np.testing.assert_array_equal(pixels[chosen], COLOURS[known.class_map[chosen]])


@given(seeds)
def test_a_crop_of_the_whole_picture_and_a_resize_to_its_size_change_nothing(seed):
    picture, known = painted(seed)
    for same, still in (
        crop(picture, known, (0, 0, *picture.size)),
        resize(picture, known, *picture.size),
    ):
        np.testing.assert_array_equal(same, picture)
        assert_same(still, known)


@given(seeds, st.integers(8, 90), st.integers(8, 90))
def test_a_part_of_a_resized_picture_is_what_a_crop_of_the_whole_one_is(seed, width, height):
    picture, known = painted(seed)
    x, y = (np.sort(np.random.default_rng(seed).choice(n + 1, 2, False)) for n in (width, height))
    part = tuple(int(n) for n in (x[0], y[0], x[1], y[1]))
    found, still = resize(picture, known, width, height, part)
    whole, expected = crop(*resize(picture, known, width, height), part)
    np.testing.assert_allclose(np.asarray(found, int), np.asarray(whole, int), atol=1)
    np.testing.assert_allclose(still.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_array_equal(still.masks, expected.masks)
    np.testing.assert_array_equal(still.class_map, expected.class_map)


@given(seeds)
def test_a_wider_crop_cut_back_is_the_picture_again(seed):
    picture, known = painted(seed)
    width, height = picture.size
    wide = crop(picture, known, (-5, -3, width + 2, height + 7))
    assert (wide[1].class_map[:3] == IGNORE).all()
    same, still = crop(*wide, (5, 3, 5 + width, 3 + height))
    np.testing.assert_array_equal(same, picture)
    assert_same(still, known)


@pytest.mark.parametrize("part", [(0, 0, 8, 8), (-20, -20, -4, -4), (100, 100, 120, 120)])
def test_what_lies_outside_a_crop_is_dropped(part):
    picture = Image.new("RGB", (40, 40))
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 20:30, 20:30] = True
    known = Annotations(
        mask_boxes(masks), np.array([1]), np.array([False]), np.array([100.0]), masks
    )
    for before in (known, without_masks(known)):
        assert len(crop(picture, before, part)[1].boxes) == 0


def test_the_same_generator_gives_the_same_picture():
    augment = DenseAugment(32)
    first, second = (augment(*painted(3), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert_same(first[1], second[1])
