"""Drawings: distinct for people with any colour vision; what they leave unchanged."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from tinygmf.dense.detections import Detections
from tinygmf.dense.drawing import (
    PALETTE,
    SHORTEST,
    colours_of,
    draw_detections,
    draw_segmentation,
    font_for,
    ink,
    middle_of,
    names_for,
    placed,
)

NAMES = ["background", "ring", "star"]

# Machado, Oliveira and Fernandes, 2009: what linear RGB looks like without one kind of cone
WITHOUT = {
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
              [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
             [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colours: np.ndarray) -> np.ndarray:
    """Linear RGB (n, 3) -> CIELAB, for daylight."""
    xyz = colours.clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("missing", WITHOUT)
def test_the_first_colours_differ_without_one_kind_of_cone(missing):
    values = np.array(PALETTE) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = lab(linear @ np.array(WITHOUT[missing]).T)
    least = min(np.linalg.norm(a - b) for a, b in combinations(seen, 2))
    assert least > 9  # 2.3 is just noticed


def test_twenty_one_classes_have_colours_of_their_own_and_the_background_none():
    colours = colours_of(["background", *map(str, range(21))])
    assert colours[0] is None
    assert len(set(colours[1:])) == 21


def test_text_contrasts_with_its_plate():
    for colour in filter(None, colours_of([str(i) for i in range(21)])):
        assert abs(sum(colour) - sum(ink(colour))) > 200


def test_a_picture_of_background_alone_stays_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (SHORTEST, 600, 3), np.uint8)
    drawn = draw_segmentation(picture, np.zeros((SHORTEST, 600), np.int32), NAMES)
    assert np.array_equal(np.asarray(drawn)[:SHORTEST], picture)


def test_a_class_is_tinted_within_its_outline_and_nowhere_else():
    picture = np.full((SHORTEST, SHORTEST, 3), 90, np.uint8)
    classes = np.zeros((SHORTEST, SHORTEST), np.int32)
    classes[100:300, 50:350] = 2
    drawn = np.asarray(draw_segmentation(picture, classes, NAMES))
    assert (drawn[110, 60] != 90).any()
    assert (drawn[90, 60] == 90).all() and (drawn[310, 60] == 90).all()
    line = drawn[200, 44:56].astype(int).sum(1)
    assert line.min() == 0 and line.max() == 3 * 255  # black and white: it shows on anything


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    for side, expected in ((128, SHORTEST), (700, 700)):
        found = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
        drawn = draw_detections(np.zeros((side, side, 3), np.uint8), found, NAMES)
        assert drawn.width == expected and drawn.height > expected  # with its legend


def test_names_stay_inside_the_picture():
    for place in ((0, 0), (99, 0), (50, 59), (-40, 900)):
        left, top, right, bottom = placed(place, (40, 16), (100, 60), [])
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 60


def test_names_do_not_cover_each_other_where_there_is_room():
    taken: list = []
    for _ in range(4):
        taken.append(placed((50, 50), (40, 16), (200, 200), taken))
    for (a, b, c, d), (e, f, g, h) in combinations(taken, 2):
        assert c <= e or g <= a or d <= f or h <= b


def test_the_middle_of_a_region_lies_in_it():
    ring = np.hypot(*np.mgrid[-60:60, -60:60])
    ring = (ring > 25) & (ring < 55)
    x, y = middle_of(ring)
    assert ring[int(y), int(x)]
    dot = np.zeros((30, 30), bool)
    dot[4, 7] = True
    assert middle_of(dot) == (7, 4)


def test_classes_without_names_are_numbered():
    assert names_for((), 3) == ["0", "1", "2"]
    assert names_for(["a\nb", "c"], 2)[1] == "c"
    assert "\n" not in names_for(["a\nb", "c"], 2)[0]


def test_masks_are_drawn_where_they_are():
    picture = np.full((SHORTEST, SHORTEST, 3), 90, np.uint8)
    mask = np.zeros((1, SHORTEST, SHORTEST), bool)
    mask[0, 200:300, 200:400] = True
    box = np.array([[200, 200, 400, 300]], np.float32)
    found = Detections(box, np.array([0.9], np.float32), np.array([1]), mask)
    drawn = np.asarray(draw_detections(picture, found, NAMES))[:SHORTEST]
    assert (drawn[290, 300] != 90).any()
    changed = Image.fromarray(np.uint8(255 * (drawn != 90).any(2))).getbbox()
    assert changed is not None and changed[3] <= 305  # to the outline's rim; the name is above


def test_letters_that_english_lacks_are_drawn():
    pytest.importorskip("matplotlib")
    for word in ("Kätzchen", "Żółw", "жук"):
        font = font_for(word, 16)
        missing = bytes(font.getmask("\uffff"))
        assert all(bytes(font.getmask(letter)) != missing for letter in word)
