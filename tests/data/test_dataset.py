"""Batches: the same whatever the threads do, with broken pictures skipped."""

import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinygmf import threads
from tinygmf.data.dataset import DataError, Dataset, every_nth
from tinygmf.data.folders import folder_pictures, open_folder
from tinygmf.data.shapes import shapes
from tinygmf.image import ImageError
from tinygmf.training.recipe import Recipe

EVERYTHING = Recipe(  # that augmentation can do
    batch_size=4, size=32, crop=0.3, colour=0.4, erase=0.5, rotate=10, stretch=0.1, shift=0.1
)


def small_shapes() -> Dataset:
    data = shapes(32)
    return replace(data, train=data.train[:30], train_labels=data.train_labels[:30])


def slow(data: Dataset, seed: int) -> Dataset:
    """The same pictures, each after its own delay."""
    chance = random.Random(seed)

    def load(number: int) -> Image.Image:
        time.sleep(chance.uniform(0, 0.01))
        return data.load(number)

    return replace(data, load=load)


def assert_same(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for array, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_batches_depend_neither_on_the_threads_nor_on_timing(monkeypatch, workers):
    expected = list(small_shapes().batches(EVERYTHING, epoch=3))
    assert len(expected) == 7
    monkeypatch.setattr(threads, "available_cores", lambda: workers)
    assert_same(list(slow(small_shapes(), workers).batches(EVERYTHING, epoch=3)), expected)


def test_batches_from_the_middle_are_those_of_the_whole_epoch():
    data = small_shapes()
    whole = list(data.batches(EVERYTHING, epoch=3))
    assert_same(list(data.batches(EVERYTHING, epoch=3, first=5)), whole[5:])


def test_epochs_and_seeds_differ():
    data = small_shapes()
    first = [pictures for pictures, _ in data.batches(EVERYTHING, epoch=0)]
    for other in (
        data.batches(EVERYTHING, epoch=1),
        data.batches(replace(EVERYTHING, seed=1), epoch=0),
    ):
        assert all((a != b).any() for a, (b, _) in zip(first, other, strict=True))


def test_pictures_are_decoded_while_the_device_computes():
    data, loaded, ahead = small_shapes(), [], threading.Event()

    def load(number: int) -> Image.Image:
        loaded.append(number)
        if len(loaded) > 4:
            ahead.set()
        return data.load(number)

    batches = replace(data, load=load).batches(EVERYTHING, epoch=0)
    next(batches)
    assert ahead.wait(timeout=600)  # a busy machine is slow, a defect takes forever


def test_a_broken_picture_is_named_and_the_next_one_taken():
    data = small_shapes()

    def load(number: int) -> Image.Image:
        if number in (3, 4):
            raise ImageError(f"{number}.jpg: broken")
        return data.load(number)

    plain = Recipe(batch_size=1, size=32, crop=1, flip=0, colour=0, erase=0, mixup=0, cutmix=0)
    broken = replace(data, load=load)
    order = np.random.default_rng([0, 0, 0]).permutation(30)  # seed, order, epoch
    expected = [{3: 5, 4: 5}.get(int(number), int(number)) % 10 for number in order]
    found = [int(rows.argmax()) for _, rows in broken.batches(plain, epoch=0)]
    assert found == expected
    assert broken.broken == {"3": "3.jpg: broken", "4": "4.jpg: broken"}


def test_a_broken_picture_is_not_validated_on():
    data = small_shapes()

    def load(number: int) -> Image.Image:
        if number == data.val[1]:
            raise ImageError("1.jpg: broken")
        return data.load(number)

    broken = replace(data, load=load, val=data.val[:4], val_labels=data.val_labels[:4])
    labels = np.concatenate([labels for _, labels in broken.validation(32, batch_size=2)])
    assert labels.tolist() == [0, 2, 3]
    assert list(broken.broken.values()) == ["1.jpg: broken"]


def write_pictures(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 10}, "expected at least two classes"),
        ({"cat": 10, "dog": 0}, "found none of 'dog'"),
        ({"cat": 2, "dog": 2}, "at least one batch of 64 .* found 2: give a smaller --batch-size"),
        ({}, "expected one folder for each class"),
        ({"train/cat": 2, "train/dog": 2}, "expected train and val, found only train"),
        ({"train/cat": 2, "val/dog": 2}, "to train on, found none of 'dog'"),
    ],
)
def test_too_little_data_is_one_clear_line(tmp_path, counts, message):
    write_pictures(tmp_path, counts)
    with pytest.raises(DataError, match=message) as caught:
        folder_pictures(tmp_path).check(batch_size=64)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["train", "val"])
def test_pictures_that_are_all_broken_are_one_clear_line(tmp_path, part):
    write_pictures(tmp_path, {f"{p}/{name}": 2 for p in ("train", "val") for name in "ab"})
    for path in (tmp_path / part).rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"found none of 4 that can be read; the last one: .*png"):
        folder_pictures(tmp_path).check(batch_size=4)


def test_no_folder_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match=r"missing: .* found none: check the name"):
        open_folder(tmp_path / "missing")
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"pictures.zip: .* found a file: unpack it"):
        open_folder(tmp_path / "pictures.zip")


@pytest.mark.parametrize("n", [1, 3, 10])
def test_every_nth_of_each_class_is_held_out_from_its_first_on(rng, n):
    labels = rng.integers(0, 4, 101)
    held_out = every_nth(labels, n)
    for label in range(4):
        expected = [i % n == 0 for i in range(int((labels == label).sum()))]
        assert held_out[labels == label].tolist() == expected


def test_the_only_picture_of_a_class_is_trained_on_in_folders_and_in_archives(tmp_path):
    write_pictures(tmp_path / "folder", {"cat": 10, "dog": 1, "owl": 2})
    for i in range(1, 7):
        records = np.zeros((3, 1 + 3 * 32 * 32), np.uint8)
        records[:, 0] = (0, i, 0)
        name = f"data_batch_{i}" if i < 6 else "test_batch"
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    folder, archive = open_folder(tmp_path / "folder"), open_folder(tmp_path)
    assert folder.counts.tolist() == [8, 1, 1]
    assert archive.counts.tolist() == [9, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert set(archive.val_labels) == {0}


def test_a_folder_is_split_by_its_seed_class_by_class(tmp_path):
    write_pictures(tmp_path, {"cat": 10, "dog": 20})
    data = open_folder(tmp_path, seed=1)
    assert data.classes == ["cat", "dog"]
    assert np.bincount(data.val_labels).tolist() == [2, 4]
    assert not set(data.train) & set(data.val)
    assert data.val == open_folder(tmp_path, seed=1).val
    assert data.val != open_folder(tmp_path, seed=2).val


def test_a_folder_that_is_split_already_stays_so(tmp_path):
    write_pictures(tmp_path, {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2})
    data = open_folder(tmp_path)
    assert np.bincount(data.train_labels).tolist() == [3, 2]
    assert np.bincount(data.val_labels).tolist() == [1, 2]
