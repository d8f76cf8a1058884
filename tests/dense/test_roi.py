"""RoIAlign and pasted masks, against loops over single samples and pixels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor

from tinygmf.dense import roi
from tinygmf.loops.sampling import pool

F = np.float32


def value(field, y, x):
    """Bilinear between positions; outside, the border's value."""
    height, width = field.shape
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = field[top, left] * (1 - fx) + field[top, right] * fx
    return upper * (1 - fy) + (field[bottom, left] * (1 - fx) + field[bottom, right] * fx) * fy


def plain_roi_align(field, box, scale, bins, points=None):
    """As torchvision documents it, sample by sample."""
    x0, y0, x1, y1 = (float(v) * scale for v in box)
    height, width = max(y1 - y0, 1.0), max(x1 - x0, 1.0)
    rows, columns = (points or math.ceil(side / bins) for side in (height, width))
    out = np.zeros((bins, bins))
    for i in range(bins):
        for j in range(bins):
            samples = [
                value(
                    field,
                    y0 + (i + (p + 0.5) / rows) * height / bins,
                    x0 + (j + (q + 0.5) / columns) * width / bins,
                )
                for p in range(rows)
                for q in range(columns)
            ]
            out[i, j] = sum(samples) / len(samples)
    return out


BOXES = np.array(
    [
        [3.3, 4.9, 40.2, 30.1],
        [0, 0, 64, 48],  # the whole picture
        [60, 44, 64, 48],  # at the border
        [10, 10, 11, 11],  # one pixel
        [20, 20, 20, 20],  # nothing
        [0, 0, 64, 1],
    ],
    F,
)


def levels():
    rng = np.random.default_rng(0)
    grids = [(12, 16), (6, 8), (3, 4), (2, 2)]
    return grids, [rng.standard_normal((2, 3, *grid)).astype(F) for grid in grids]


def expected_of(maps, grids, pictures, bins):
    scales = roi.scales((48, 64), grids)
    chosen = roi.levels_of(BOXES, scales)
    return np.array(
        [
            [plain_roi_align(maps[k][b, c], box, scales[k], bins, 2) for c in range(3)]
            for box, k, b in zip(BOXES, chosen, pictures, strict=True)
        ]
    )


def test_looking_values_up_gives_every_sample_s_mean():
    grids, maps = levels()
    pictures = np.array([0, 1, 0, 1, 0, 1])
    found = roi.lookups(BOXES, pictures, (48, 64), grids, 7)
    flat = np.concatenate([m.reshape(2, 3, -1).transpose(0, 2, 1) for m in maps], axis=1)
    values = pool(
        Tensor(flat.reshape(-1, 3)),
        [Tensor(a) for a in found.rows],
        [Tensor(a) for a in found.columns],
        7,
    ).numpy()
    expected = expected_of(maps, grids, pictures, 7)
    assert np.allclose(values.transpose(0, 3, 1, 2), expected, atol=1e-5)


def test_two_matrices_give_the_same():
    grids, maps = levels()
    weights = roi.matrices(BOXES, (48, 64), grids, 7)
    both = [[Tensor(np.stack([a, a])) for a in level] for level in weights]
    values = roi.pool_by_matrices([Tensor(m) for m in maps], both).numpy()
    assert values.shape == (12, 3, 7, 7)
    for b in range(2):
        expected = expected_of(maps, grids, [b] * 6, 7)
        assert np.allclose(values[6 * b : 6 * b + 6], expected, atol=1e-5)


def test_a_box_of_224_pixels_belongs_to_stride_16_and_others_to_their_octave():
    sides = np.array([1, 111, 113, 224, 447, 448, 5000], F)
    own = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    found = roi.levels_of(own, (1 / 4, 1 / 8, 1 / 16, 1 / 32))
    assert found.tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_a_mask_s_target_is_what_lies_in_the_box():
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 2, (2, 48, 64)).astype(F)
    found = roi.crop(masks, BOXES[:2], 28)
    for mask, box, target in zip(masks, BOXES, found, strict=False):
        assert np.allclose(target, plain_roi_align(mask, box, 1.0, 28), atol=1e-5)


def plain_paste(mask, box, picture):
    """torchvision's steps, pixel by pixel."""
    side = len(mask)
    padded = np.pad(mask, 1)
    centre = [(box[i] + box[i + 2]) * 0.5 for i in (0, 1)]
    half = [(box[i + 2] - box[i]) * 0.5 * (side + 2) / side for i in (0, 1)]
    x0, y0 = (int(centre[i] - half[i]) for i in (0, 1))
    x1, y1 = (int(centre[i] + half[i]) for i in (0, 1))
    height, width = y1 - y0 + 1, x1 - x0 + 1
    out = np.zeros(picture)
    for y in range(max(y0, 0), min(y1 + 1, picture[0])):
        for x in range(max(x0, 0), min(x1 + 1, picture[1])):
            row = min(max((y - y0 + 0.5) * (side + 2) / height - 0.5, 0), side + 1)
            column = min(max((x - x0 + 0.5) * (side + 2) / width - 0.5, 0), side + 1)
            out[y, x] = value(padded, row, column)
    return out


@pytest.mark.parametrize(
    "box",
    [
        (3.25, 4.75, 20.5, 13.5),  # at a fraction of a pixel
        (0, 0, 32, 24),
        (28.5, 20.5, 32, 24),  # at the border: the grown box leaves the picture
        (7, 7, 8, 8),  # one pixel
        (9.5, 9.5, 9.5, 9.5),  # nothing
    ],
)
def test_a_mask_is_pasted_as_torchvision_does_it(box):
    mask = np.random.default_rng(2).random((28, 28)).astype(F)
    found = roi.paste(mask, np.array(box, F), (24, 32))
    assert found.shape == (24, 32)
    assert np.allclose(found, plain_paste(mask, box, (24, 32)), atol=1e-4)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_full_mask_covers_its_box_of_whole_pixels(width, height, x, y):
    box = np.array([x, y, x + width, y + height], F)
    found = roi.paste(np.ones((28, 28), F), box, (64, 96)) > 0.5
    expected = np.zeros((64, 96), bool)
    expected[y : y + height, x : x + width] = True
    assert (found & expected).sum() >= expected.sum() - (width + height)
    rim = np.zeros((64, 96), bool)
    rim[max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2] = True
    assert not (found & ~rim).any()
