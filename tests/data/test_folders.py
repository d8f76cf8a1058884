"""What counts as a picture, a class and a part of a data set in people's folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tinygmf.data.dataset import DataError
from tinygmf.data.evaluation import find_pictures
from tinygmf.data.folders import folder_pictures, part_of
from tinygmf.data.pictures import Skipped, is_picture, natural, pictures_below

LINKS = pytest.mark.skipif(os.name == "nt", reason="needs links")


def write_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, format="PNG")
    return folder


def two_classes(folder: Path, *roots: str, count: int = 2) -> Path:
    return write_pictures(
        folder,
        *(f"{root}/{c}/{i}.png" for root in roots for c in ("cat", "dog") for i in range(count)),
    )


def below(folder: Path, **options) -> list[str]:
    return [str(path.relative_to(folder)) for path in pictures_below(folder, Skipped(), **options)]


def test_numbers_in_names_count_as_numbers():
    names = ["10", "9", "1", "a10", "a9", "a", "01", "9b", "x2y10", "x2y9", ""]
    assert sorted(names, key=natural) == [
        "", "01", "1", "9", "9b", "10", "a", "a9", "a10", "x2y9", "x2y10",
    ]  # fmt: skip


SAVED = {
    "JPEG": [".jpg", ".JPEG", ".jfif", ".jpe", "", ".jpg_large", ".jpg~"],
    "PNG": [".png!d", ".apng", ".txt"],
    "PPM": [".pgm", ".pbm", ".pnm"],
    "JPEG2000": [".jp2", ".j2k", ".JPX"],
    **{"BMP": [".dib"], "TIFF": [".TIF"], "WEBP": [".webp?w=1"], "AVIF": [".avif", ".tmp"]},
    **{"MPO": [".mpo"], "GIF": [".gif"]},
}


@pytest.mark.parametrize(("form", "suffix"), [(f, s) for f in SAVED for s in SAVED[f]])
def test_every_format_that_opens_counts_whatever_its_suffix(tmp_path, form, suffix):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("needs AVIF")
    path = tmp_path / f"p{suffix}"
    Image.new("L", (8, 8)).save(path, format=form)
    assert is_picture(path)


@pytest.mark.parametrize("name", ["a.txt", "b", "c.csv", "d.svg", "e.zip", "f.pdf"])
@pytest.mark.parametrize("content", [b"", b"P1 is text", b"BM", b"II", b"(\0\0\0", bytes(999)])
def test_a_file_that_neither_is_named_nor_begins_like_a_picture_is_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert not is_picture(tmp_path / name)


def test_a_broken_picture_is_still_one_so_that_it_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    assert is_picture(tmp_path / "x.jpg")


JUNK = [
    *(".DS_Store", ".hidden/x.png", "._cat/x.png", "__MACOSX/cat/._x.png", "@eaDir/x.png"),
    *("Thumbs.db", "thumbs.db", "desktop.ini", ".ipynb_checkpoints/x.png", "$RECYCLE.BIN/x.png"),
    *("lost+found/x.png", "cat/.x.png", "cat/._0.png", "cat/@eaDir/0.png", "cat/Thumbs.db"),
    *("runs/a/curves.png", "readme.txt", "beside.png"),
]


@pytest.mark.parametrize("parts", [[""], ["train", "val"]])
def test_what_systems_and_programs_leave_is_no_class_and_no_picture(tmp_path, parts):
    two_classes(tmp_path, *parts, count=5)
    for name in JUNK:
        write_pictures(tmp_path, *(f"{part}/{name}" for part in parts))
    data = folder_pictures(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert len(data.train) + len(data.val) == 10 * len(parts)
    assert "hidden or system names" in str(data.skipped)
    found = find_pictures(tmp_path / parts[-1], ["cat", "dog"])
    assert len(found) == 10


@pytest.mark.parametrize("mark", [".run.lock", "run.safetensors", "log.jsonl"])
@pytest.mark.parametrize("place", ["run", "cat/run", "dog/deep/run"])
def test_a_training_runs_folder_is_no_class_wherever_it_lies(tmp_path, mark, place):
    two_classes(tmp_path, "", count=5)
    write_pictures(tmp_path, f"{place}/curves.png")
    (tmp_path / place / mark).touch()
    data = folder_pictures(tmp_path)
    assert data.classes == ["cat", "dog"] and len(data.train) + len(data.val) == 10
    assert len(find_pictures(tmp_path, ["cat", "dog"])) == 10


def test_the_present_runs_folder_is_none_before_anything_lies_in_it(tmp_path):
    two_classes(tmp_path, "", count=5)
    (tmp_path / "mine").mkdir()
    assert folder_pictures(tmp_path, exclude=[tmp_path / "mine"]).classes == ["cat", "dog"]


PARTS = [
    *(("Training", "Testing"), ("train", "validation"), ("train", "valid"), ("Train", "Val")),
    *(("training", "validation"), ("train", "test"), ("TRAIN", "TEST"), ("train2017", "val2017")),
    *(("training_set", "test_set"), ("Train Data", "Test Data"), ("trn", "dev")),
    *(("seg_train", "seg_test"), ("train-images", "val-images"), ("imgs_train", "_eval")),
]  # fmt: skip


@pytest.mark.parametrize(("train", "val"), PARTS)
def test_the_parts_of_a_data_set_are_known_in_any_spelling(tmp_path, train, val):
    two_classes(tmp_path, train, val)
    data = folder_pictures(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert {path.parts[len(tmp_path.parts)] for path in data.train} == {train}
    assert {path.parts[len(tmp_path.parts)] for path in data.val} == {val}


@pytest.mark.parametrize(
    "name", ["trains", "cat", "contest", "valley", "devil", "tests", "evil", ""]
)
def test_other_names_are_no_parts(name):
    assert part_of(name) is None


def test_a_part_to_test_on_is_left_aside_where_there_is_one_to_validate_on(tmp_path):
    two_classes(tmp_path, "train", "valid", "test")
    data = folder_pictures(tmp_path)
    assert {path.parts[len(tmp_path.parts)] for path in data.val} == {"valid"}
    assert "folders left aside (1: test)" in str(data.skipped)


REFUSED = {
    "the classes lie deeper": (["x/cat/1.png", "x/dog/1.png"], "found x, which holds only"),
    "parts lie deeper": (["x/train/cat/1.png", "x/val/cat/1.png"], "found x, which holds only"),
    "parts within classes": (["a/train/1.png", "b/train/1.png"], "found a, which holds only"),
    "a part within a class": (
        ["cat/1.png", "dog/1.png", "dog/test/2.png"], "found test in it, which looks like a part"
    ),
    "no part to train on": (["val/cat/1.png", "test/cat/1.png"], "found only test"),
    "unlabeled pictures to test": (["cat/1.png", "dog/1.png", "test/1.png"], "found only test"),
    "one part twice": (["train/a/1.png", "Train/a/1.png", "val/a/1.png"], "found Train and train"),
    "two kinds of one part": (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "val and valid"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_folders_that_do_not_say_what_to_train_on_are_refused(tmp_path, kind):
    names, message = REFUSED[kind]
    write_pictures(tmp_path, *names)
    with pytest.raises(DataError, match=message) as caught:
        folder_pictures(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_railways_may_be_a_class_among_others(tmp_path):
    write_pictures(tmp_path, *(f"{c}/{i}.png" for c in ("bus", "train") for i in range(5)))
    assert folder_pictures(tmp_path).classes == ["bus", "train"]


def test_a_class_may_have_nothing_to_validate_on(tmp_path):
    two_classes(tmp_path, "train")
    write_pictures(tmp_path, "val/dog/0.png")
    data = folder_pictures(tmp_path)
    data.check(batch_size=2)
    assert data.val_labels.tolist() == [1]


@LINKS
def test_links_are_followed_once(tmp_path):
    data, far = tmp_path / "data", write_pictures(tmp_path / "far", "0.png", "more/1.png")
    two_classes(data, "", count=1)
    (data / "cat" / "far").symlink_to(far)
    (data / "cat" / "again").symlink_to(far)
    (data / "cat" / "up").symlink_to(data)
    (data / "cat" / "self").symlink_to(data / "cat")
    (far / "more" / "back").symlink_to(far)
    (data / "cat" / "file.png").symlink_to(far / "0.png")
    assert below(data / "cat") == ["0.png", "again/0.png", "again/more/1.png", "file.png"]
    (data / "linked").symlink_to(far)
    (data / "root").symlink_to(data)
    (data / "broken").symlink_to("nowhere")
    assert folder_pictures(data).classes == ["cat", "dog", "linked"]


@pytest.mark.parametrize("name", [b"caf\xe9", "日本".encode(), b"line\nfeed", b"-dash", b"a'b\"c"])
def test_a_class_may_have_any_name_that_a_disk_takes(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    try:
        write_pictures(folder, *(f"{i}.png" for i in range(5)))
    except OSError:
        pytest.skip("this file system takes no such name")
    write_pictures(tmp_path, *(f"cat/{i}.png" for i in range(5)))
    data = folder_pictures(tmp_path)
    assert sorted(data.classes) == sorted(["cat", folder.name])
    assert np.bincount(data.train_labels).tolist() == [4, 4]
    assert len(find_pictures(tmp_path, data.classes)) == 10
