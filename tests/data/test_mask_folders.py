"""Masks in every form that programs write: the numbers read are the ones in the file, or a line
says what is wrong."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from annotated_folders import HEIGHT, WIDTH, class_map, every_sample, masks_beside, write_mask
from PIL import Image

from tinygmf.data.annotations import IGNORE
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_folders import open_dense
from tinygmf.data.mask_folders import find_masks, read_mask
from tinygmf.image import ImageError


def few_bits(path: Path, bits: int) -> None:
    """A grey PNG of 2 or 4 bits a pixel, which Pillow reads but does not write."""
    image = Image.fromarray(class_map())
    image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2])
    image.save(path, bits=bits)
    content = bytearray(path.read_bytes())
    content[25] = 0  # grey instead of a palette
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_keeps_its_numbers(tmp_path, bits):
    few_bits(tmp_path / "mask.png", bits)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L"
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), class_map())


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_numbers_in_grey_count_whatever_the_transparency(tmp_path, mode):
    image = Image.fromarray(class_map()).convert(mode)
    image.putalpha(Image.fromarray((class_map() > 0).astype(np.uint8) * 255))
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), class_map())


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_that_is_only_transparency_is_named(tmp_path, mode):
    image = Image.new(mode, (WIDTH, HEIGHT))
    image.putalpha(Image.fromarray((class_map() > 0).astype(np.uint8) * 255))
    image.save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=r"mask\.png: .* one colour and transparency that varies"):
        read_mask(tmp_path / "mask.png")


def test_whole_numbers_in_floats_are_read_and_others_are_named(tmp_path):
    values, file = class_map().astype(np.float32), tmp_path / "mask.tif"
    Image.fromarray(values).save(file)
    np.testing.assert_array_equal(read_mask(file), class_map())
    for strange in (1.5, float("nan"), float("inf"), 1e30):
        values[3, 4] = strange
        Image.fromarray(values).save(file)
        with pytest.raises(ImageError, match=r"mask\.tif: expected whole numbers, found"):
            read_mask(file)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("value", [2**31 - 1, 256, -1, float("nan")])
def test_a_mask_of_impossible_numbers_is_skipped_and_named(tmp_path, value, names):
    folder = masks_beside(tmp_path, names=names)
    mask = folder / "masks" / "train" / "0.png"
    mask.unlink()
    values = class_map().astype(np.float32 if value != value else np.int32)
    values[0, 0] = value
    Image.fromarray(values).save(mask.with_suffix(".tif"))
    data = open_dense(folder, "segment")
    assert len(data.classes) == 3
    assert list(data.broken) == [str(folder / "images" / "train" / "0.jpg")]
    assert "0.tif: expected" in data.broken[str(folder / "images" / "train" / "0.jpg")]


def test_masks_without_names_that_are_all_bad_are_named(tmp_path):
    folder = masks_beside(tmp_path, names=False)
    for mask in folder.glob("masks/*/*"):
        mask.write_bytes(b"")
    with pytest.raises(DataError, match=r"masks to count the classes in, found none: .*0\.png"):
        open_dense(folder, "segment")


@pytest.mark.parametrize("name", ["object", "water"])
def test_white_is_the_second_of_two_classes(tmp_path, name):
    folder = masks_beside(tmp_path, (0, IGNORE, IGNORE), names=False)
    (folder / "classes.txt").write_text(f"background\n{name}\n")
    data = open_dense(folder, "segment")
    assert data.classes == ["background", name]
    for _, known in every_sample(data):
        np.testing.assert_array_equal(known.class_map, class_map((0, 1, 1)))


def test_white_is_ignored_where_two_classes_have_numbers(tmp_path):
    folder = masks_beside(tmp_path, (0, 1, IGNORE), names=False)
    (folder / "classes.txt").write_text("background\nobject\n")
    for _, known in every_sample(open_dense(folder, "segment")):
        np.testing.assert_array_equal(known.class_map, class_map((0, 1, IGNORE)))


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 85, 170), (0, 254, 254)])
def test_greys_without_names_are_not_taken_for_numbers(tmp_path, values):
    folder = masks_beside(tmp_path, values, names=False)
    with pytest.raises(DataError, match=f"found the values 0, {values[1]}.*: renumber them, or"):
        open_dense(folder, "segment")


@pytest.mark.parametrize(
    "ending", [".PNG", ".bmp", ".tif", ".tiff", ".TIFF", ".gif", "_mask.png", "_label.png"]
)
@pytest.mark.parametrize("beside", [False, True])
def test_masks_are_found_under_the_usual_names(tmp_path, ending, beside):
    folder = masks_beside(tmp_path)
    for file in folder.glob("masks/*/*"):
        place = folder / "images" / file.parent.name / file.name if beside else file
        with Image.open(file) as image:
            Image.fromarray(np.asarray(image)).save(place.with_name(file.stem + ending))
        file.unlink()
    data = open_dense(folder, "segment")
    assert (len(data.train), len(data.val)) == (4, 2) and not data.broken
    for _, known in every_sample(data):
        np.testing.assert_array_equal(known.class_map, class_map())


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_a_picture_is_not_its_own_mask(tmp_path, monkeypatch, suffix):
    for number in range(5):
        write_mask(tmp_path / "images" / f"{number}{suffix}", class_map())

    def exists(path: Path) -> bool:
        return path.suffix.lower() == ".png" and path.with_suffix(suffix).exists()

    monkeypatch.setattr(Path, "is_file", exists)
    assert not find_masks(tmp_path)  # where capitals make no difference
