"""Scenes: the same from the same seed, exactly annotated, of photographs kept apart."""

import socket
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("skimage", reason="pip install scikit-image for its photographs")

from tinygmf.data import scenes as module
from tinygmf.data.annotations import TASKS
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_augment import DenseAugment
from tinygmf.data.scenes import (
    HELD_OUT_PHOTOGRAPHS,
    SEEN,
    SHAPES,
    SIZE,
    TRAIN,
    TRAINING_PHOTOGRAPHS,
    layout,
    paint,
    photographs,
    scene,
    scene_photographs,
    scene_shapes,
    scenes,
)

NUMBERS = range(12)


def test_the_same_seed_and_number_give_the_same_scene_and_others_another():
    for number in NUMBERS:
        first, again = scene(number, seed=5), scene(number, seed=5)
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(again, name))
        for other in (scene(number + 1, seed=5), scene(number, seed=6), scene(number, 5, True)):
            assert (other.picture != first.picture).any()


def test_every_scene_has_some_objects_and_no_pixel_belongs_to_two():
    for number in NUMBERS:
        found = scene(number)
        assert found.picture.shape == (SIZE, SIZE, 3) and found.picture.dtype == np.uint8
        assert 1 <= len(found.labels) == len(found.masks) <= 5
        assert (found.masks.sum(0) <= 1).all()
        assert ((found.labels >= 1) & (found.labels <= len(SHAPES))).all()


def test_of_every_object_enough_can_be_seen():
    for number in NUMBERS:
        things = layout(np.random.default_rng(number), None)
        for thing, mask in zip(things, module.seen([t.mask() for t in things]), strict=True):
            assert mask.sum() >= SEEN * (thing.coverage >= 0.5).sum()


def test_a_mask_is_what_is_painted_but_for_a_blended_rim():
    white = [np.full((SIZE, SIZE, 3), 255, np.uint8)]
    for number in NUMBERS:
        rng = np.random.default_rng(number)
        for thing in layout(rng, None):
            canvas = np.zeros((SIZE, SIZE, 3), np.float32)
            paint(canvas, thing, white, 1j, rng)
            painted, mask = canvas.max(-1) > 0, thing.mask()
            assert (mask <= painted).all()
            wide = np.pad(mask, 1)
            near = [np.roll(wide, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
            assert (painted <= np.any(near, 0)[1:-1, 1:-1]).mean() > 0.999  # a thin tip has none


def test_each_task_is_told_the_same_about_a_scene():
    told = {task: scenes(task).load(7) for task in TASKS}
    for picture, _ in told.values():
        np.testing.assert_array_equal(picture, scene(7).picture)
    segment, detect, instance = (told[task][1] for task in TASKS)
    np.testing.assert_array_equal(detect.boxes, instance.boxes)
    np.testing.assert_array_equal(detect.labels, instance.labels)
    assert detect.masks is None and detect.class_map is None
    for mask, label, box in zip(instance.masks, instance.labels, instance.boxes, strict=True):
        assert (segment.class_map[mask] == label).all()
        rows, columns = np.nonzero(mask)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert tuple(box) == edges
    np.testing.assert_array_equal(segment.class_map > 0, instance.masks.any(0))


def test_a_scene_to_segment_is_drawn_once_and_no_augmentation_changes_it(monkeypatch):
    drawn = Counter()

    def counted(number, *rest):
        drawn[number] += 1
        return scene(number, *rest)

    monkeypatch.setattr(module, "scene", counted)
    data = scenes("segment")
    data.train = data.train[:4]
    augment = DenseAugment(128, (0.7, 1.5), 0.5, 0.4)
    (pictures, known), (again, known_again) = (
        next(data.batches(augment, 4, 0, 0)) for _ in range(2)
    )
    np.testing.assert_array_equal(pictures, again)
    for one, other in zip(known, known_again, strict=True):
        np.testing.assert_array_equal(one.class_map, other.class_map)
    assert drawn == dict.fromkeys(data.train, 1)


def test_held_out_scenes_are_made_of_other_photographs(monkeypatch):
    assert not set(TRAINING_PHOTOGRAPHS) & set(HELD_OUT_PHOTOGRAPHS)
    asked = []
    monkeypatch.setattr(module, "photographs", lambda held: asked.append(held) or photographs(held))
    data = scenes("segment")
    for number, held_out in ((data.train[-1], False), (data.val[0], True)):
        asked.clear()
        data.load(number)
        assert asked == [held_out]


def test_the_shape_to_classify_lies_in_the_middle_on_top():
    data = scene_shapes()
    assert data.classes == list(SHAPES)
    for number, label in zip(data.train[:12], data.train_labels[:12], strict=True):
        found = scene(number, middle=int(label))
        np.testing.assert_array_equal(data.load(number), found.picture)
        assert found.labels[-1] == label + 1
        rows, columns = np.nonzero(found.masks[-1])
        assert abs(rows.mean() - SIZE / 2) < 0.15 * SIZE > abs(columns.mean() - SIZE / 2)


def test_patches_to_train_on_and_held_out_ones_have_no_pixel_in_common(monkeypatch):
    """On a photograph whose pixels tell where they are."""
    photo = np.zeros((300, 451, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.arange(451) // 2, np.arange(451) % 2
    monkeypatch.setattr(module, "photographs", lambda held_out: [[photo]])
    data = scene_photographs()
    train, val = (
        {(r, g) for number in part[:60] for r, g, _ in np.asarray(data.load(number)).reshape(-1, 3)}
        for part in (data.train, data.val)
    )
    assert train and val and not train & val


def test_there_is_a_class_for_each_photograph():
    data = scene_photographs()
    assert len(data.classes) == len(TRAINING_PHOTOGRAPHS) + len(HELD_OUT_PHOTOGRAPHS)
    data.check(batch_size=32)
    assert data.val[0] == TRAIN


def test_nothing_is_fetched(monkeypatch):
    photographs.cache_clear()

    def no_network(*_: object) -> None:
        raise AssertionError("a scene must not use the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert len(photographs(False)) == 8 and len(photographs(True)) == 5


def test_without_scikit_image_one_line_says_what_to_install(monkeypatch):
    photographs.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'tinygmf\[data\]'"):
        scenes("detect")
