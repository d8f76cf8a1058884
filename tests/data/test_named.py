"""Data sets by name: training, validation and test pictures stay apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinygmf.data.archives import FASHION_CLASSES
from tinygmf.data.digits import digits, digits_split
from tinygmf.data.named import NAMED, is_data_set, known_as, measured_pictures


def test_each_digit_is_held_out_in_one_of_five_folds():
    held_out = [digits_split(fold)[4] for fold in range(5)]
    assert np.sort(np.concatenate(held_out)).tolist() == list(range(1797))


@pytest.mark.parametrize("fold", [0, 3])
def test_a_fold_trains_on_every_digit_that_it_does_not_hold_out(fold):
    images, labels, held_out, held_out_labels, places = digits_split(fold)
    assert len(images) + len(held_out) == 1797
    (all_images, all_labels), digit = whole_digits(), 700
    np.testing.assert_array_equal(held_out, all_images[places])
    np.testing.assert_array_equal(held_out_labels, all_labels[places])
    rest = np.setdiff1d(np.arange(1797), places)
    np.testing.assert_array_equal(images[digit], all_images[rest][digit])
    np.testing.assert_array_equal(labels, all_labels[rest])


def whole_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def test_without_pictures_to_test_on_those_held_out_are_taken_by_the_networks_own_names():
    data, names = digits(), [str(digit) for digit in range(9, -1, -1)]
    found, load = measured_pictures(data, names)
    assert [names[label] for _, label in found] == [str(label) for label in data.val_labels]
    assert [load(number) for number, _ in found] == data.val


def test_a_data_set_is_known_by_its_name_and_by_its_files(tmp_path):
    assert all(known_as(name) == name for name in NAMED)
    assert known_as(str(tmp_path)) is None and known_as(str(tmp_path / "nothing")) is None
    (tmp_path / "t10k-images-idx3-ubyte.gz").touch()
    assert known_as(str(tmp_path)) == "fashion-mnist" and is_data_set(tmp_path)


def test_a_folder_called_as_a_data_set_is_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_data_set(Path("digits"))
    (tmp_path / "digits").mkdir()
    assert not is_data_set(Path("digits"))


def test_a_network_of_other_classes_is_not_measured():
    data = replace(digits(), classes=FASHION_CLASSES)
    with pytest.raises(ValueError, match=r"digits: expected .* classes .* found 'T-shirt/top'"):
        measured_pictures(data, [str(digit) for digit in range(10)])
    with pytest.raises(ValueError, match=r"digits: expected .* found '0'") as refused:
        measured_pictures(digits(), FASHION_CLASSES)
    assert "folder" not in str(refused.value)  # a data set has none to rename
