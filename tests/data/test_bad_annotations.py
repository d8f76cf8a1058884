"""What is wrong with annotations is named, counted and skipped; nothing hostile gets far."""

import contextlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from annotated_folders import (
    HEIGHT,
    THINGS,
    WIDTH,
    class_map,
    coco,
    coco_code,
    every_sample,
    masks_beside,
    picture,
    voc,
    write_mask,
    xml,
    yolo,
    yolo_polygons,
)

from tinygmf.data.dataset import DataError
from tinygmf.data.dense_augment import DenseAugment
from tinygmf.data.dense_folders import open_dense
from tinygmf.image import ImageError


def edit_coco(folder: Path, change: Callable[[dict], object]) -> Path:
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


BAD_NOTES = [
    ({"bbox": [50, 50, 10, 10]}, "inside the picture of 40x30"),
    ({"bbox": [-30, 5, 10, 10]}, "inside the picture of 40x30"),
    ({"bbox": [5, 5, 0, 10]}, "a box with an area"),
    ({"bbox": [5, 5, float("nan"), 10]}, "a box with an area"),
    ({"bbox": [5, 5]}, "expected"),
    ({"bbox": None}, "expected"),
    ({"bbox": [10**400, 0, 1, 1]}, "expected"),
    ({"bbox": "1234"}, "expected 'bbox' to be a list, found '1234'"),
    ({"bbox": ["x", 5, 10, 10]}, "expected numbers in 'bbox', found ['x', 5, 10, 10]"),
    ({"iscrowd": "no"}, "expected iscrowd 0 or 1, found 'no'"),
    ({"iscrowd": float("nan")}, "expected iscrowd 0 or 1, found nan"),
    ({"iscrowd": [0]}, "expected iscrowd 0 or 1, found [0]"),
    ({"category_id": 77}, "a known class, found category_id 77"),
    ({"category_id": []}, "expected"),
    ({"image_id": 4711}, "an image's id, found 4711"),
    ({"area": "large"}, "expected"),
    ({"segmentation": None}, "expected a mask, found only a box"),
    ({"segmentation": [[1, 2, 3]]}, "expected a polygon"),
    ({"segmentation": {"size": [10, 10], "counts": [100]}}, "expected a mask of height, width"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}, "expected runs of 1200"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_NOTES)
def test_a_bad_annotation_is_named_and_skipped(tmp_path, change, reason):
    folder = coco(tmp_path, "code")
    file = edit_coco(folder, lambda content: content["annotations"][2].update(change))
    data = open_dense(folder, "instance")
    assert list(data.broken) == [f"{file}: annotation 3"]
    assert reason in data.broken[f"{file}: annotation 3"]
    counts = [len(known.boxes) for _, known in every_sample(data)]
    assert sorted(counts) == [1, 2, 2, 2, 2, 2]
    assert "1 bad annotation" in data.report()[0] and "annotation 3" in data.report()[1]


@pytest.mark.parametrize("missing", ["bbox", "category_id", "image_id"])
def test_an_annotation_without_a_key_is_named(tmp_path, missing):
    folder = coco(tmp_path)
    file = edit_coco(folder, lambda content: content["annotations"][2].pop(missing))
    data = open_dense(folder, "detect")
    assert data.broken == {f"{file}: annotation 3": f"expected '{missing}', found none"}


def test_two_bad_annotations_of_one_number_are_counted_twice(tmp_path):
    folder = coco(tmp_path)
    file = edit_coco(
        folder, lambda c: [note.update(id=1, bbox=[5, 5, 0, 1]) for note in c["annotations"][:2]]
    )
    names = [f"{file}: annotation 1", f"{file}: annotation number 2"]
    assert list(open_dense(folder, "detect").broken) == names


def test_a_box_that_reaches_outside_is_cut_and_named(tmp_path):
    folder = coco(tmp_path)
    file = edit_coco(folder, lambda c: c["annotations"][0].update(bbox=[30, 20, 30, 30]))
    data = open_dense(folder, "detect")
    assert data.load(data.train[0])[1].boxes[0].tolist() == [30, 20, WIDTH, HEIGHT]
    assert list(data.broken) == [f"{file}: annotation 1"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": 101}, "expected different ids, found 101 a second time"),
        ({"id": []}, "expected 'id' to be a number or text, found []"),
        ({"file_name": "a" * 5000}, "expected picture"),
        ({"file_name": "a\0"}, "expected picture"),
        ({"file_name": None}, "expected 'file_name', found none"),
        ({"width": 10**9}, "found 1000000000x30"),
        ({"width": 40.5}, "expected width and height in pixels, found [40.5, 30]"),
        ({"width": "40"}, "expected 'width' to be a number, found '40'"),
    ],
)
def test_a_bad_image_is_named(tmp_path, change, reason):
    folder = coco(tmp_path)
    file = edit_coco(folder, lambda content: content["images"][0].update(change))
    data = open_dense(folder, "detect")
    assert any(
        name.startswith(f"{file}: image") and reason in why for name, why in data.broken.items()
    )
    assert len(data.train) == 3


def test_a_missing_or_broken_picture_or_one_of_another_size_is_named(tmp_path):
    folder = coco(tmp_path)
    (folder / "train2017" / "0.png").unlink()
    (folder / "train2017" / "1.png").write_bytes(b"no picture")
    picture(folder / "train2017" / "2.png", (WIDTH, HEIGHT + 1))
    data = open_dense(folder, "detect")
    assert any("image 100" in name and "found none" in why for name, why in data.broken.items())
    for source in data.train[:2]:
        with pytest.raises(ImageError):
            data.load(source)
    read = [data.read(i, DenseAugment(32), np.random.default_rng(0)) for i in range(3)]
    assert len(read) == 3  # each time the one that is whole
    assert len(data.broken) == 3 and any("found 40x31" in why for why in data.broken.values())


def test_a_missing_mask_or_one_of_another_size_or_class_or_in_colours_is_named(tmp_path):
    folder = masks_beside(tmp_path)
    (folder / "masks" / "train" / "0.png").unlink()
    write_mask(folder / "masks" / "train" / "1.png", class_map()[1:])
    write_mask(folder / "masks" / "train" / "2.png", class_map((0, 1, 9)))
    write_mask(
        folder / "masks" / "val" / "0.png",
        np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
    )
    data = open_dense(folder, "segment")
    assert len(data.train) == 4
    found = [data.read(i, DenseAugment(32), np.random.default_rng(0)) for i in range(4)]
    assert len(found) == 4 and len(list(data.validation())) == 1
    why = " ".join(data.broken.values())
    for reason in ("found none", "of 40x30 pixels, found 40x29", "found the value 9", "colours"):
        assert reason in why
    assert len(data.broken) == 4


def test_bad_lines_are_named_by_file_and_line(tmp_path):
    folder = yolo(tmp_path)
    file = folder / "labels" / "train" / "0.txt"
    lines = [
        "2 .5 .5 .1 .1",
        "0 .5 .5",
        "x .5 .5 .1 .1",
        "0 .5 .5 0 .1",
        "0 3 3 .1 .1",
        "0.5 .5 .5 .1 .1",
        "0 .5 .5 .1 nan",
        "0 .1 .1 .2 .2 .3 .3 .4",
        "1 .5 .5 .2 .2",
    ]
    file.write_text("\n".join(lines))
    data = open_dense(folder, "detect")
    assert sorted(data.broken) == [f"{file}: line {number}" for number in range(1, 9)]
    assert data.load(data.train[0])[1].labels.tolist() == [2]


def test_bad_objects_are_named_by_file_and_number(tmp_path):
    root = voc(tmp_path)
    file = root / "Annotations" / "train_0.xml"
    text = xml("train_0.jpg", [(1, 5, 5, 5, 9), (1, 50, 50, 60, 60), (2, 3, 3, 9, 9)])
    vague = xml("", THINGS[:1], size=False).replace("<difficult>0", "<difficult>perhaps")
    vague = vague[vague.index("<object>") :]
    more = f"<object><name>cow</name></object>{vague}"
    file.write_text(text.replace("</annotation>", more))
    (root / "Annotations" / "train_1.xml").write_text("<annotation><object>")
    (root / "JPEGImages" / "train_2.jpg").unlink()
    data = open_dense(root, "detect")
    whose = [name.removeprefix(str(root / "Annotations")) for name in sorted(data.broken)]
    assert [name.partition(": image")[0] for name in whose] == [
        *(f"/train_0.xml: object {number}" for number in (1, 2, 4, 5)),
        *("/train_1.xml", "/train_2.xml"),
    ]
    assert data.broken[f"{file}: object 5"] == "expected difficult 0 or 1, found 'perhaps'"
    assert len(data.train) == 2


@pytest.mark.parametrize(
    ("make", "task", "spoil"),
    [
        (
            coco,
            "detect",
            lambda r: edit_coco(r, lambda c: [n.update(category_id=5) for n in c["annotations"]]),
        ),
        (coco, "detect", lambda r: [file.unlink() for file in (r / "train2017").iterdir()]),
        (yolo, "instance", lambda r: None),  # boxes alone
        (yolo, "detect", lambda r: [f.write_text("9 .5 .5 .1 .1") for f in r.glob("labels/*/*")]),
        (voc, "detect", lambda r: [f.write_text("<a>") for f in r.glob("Annotations/*")]),
        (masks_beside, "segment", lambda r: [f.write_bytes(b"") for f in r.glob("masks/*/*")]),
        (masks_beside, "segment", lambda r: [f.write_bytes(b"") for f in r.glob("images/*/*")]),
        (masks_beside, "detect", lambda r: None),
    ],
)
def test_the_run_stops_with_one_line_where_all_is_bad(tmp_path, make, task, spoil):
    root = make(tmp_path / "data")
    spoil(root)
    with pytest.raises(DataError) as error:
        open_dense(root, task)
    assert "\n" not in str(error.value) and "expected" in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("make", [coco, masks_beside, yolo_polygons])
def test_more_classes_than_a_class_map_can_hold_are_refused(tmp_path, make):
    root = make(tmp_path)
    names = [f"c{i}" for i in range(300)]
    entries = [{"id": i, "name": name} for i, name in enumerate(names)]
    for file in root.glob("annotations/*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": entries}))
    (root / "classes.txt").write_text("\n".join(names))
    (root / "data.yaml").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"at most 255 classes to segment, found 30[01]"):
        open_dense(root, "segment")
    if make is not masks_beside:
        assert len(open_dense(root, "detect").classes) == 301


def test_a_folder_of_something_else_is_refused_with_what_is_read(tmp_path):
    picture(tmp_path / "a" / "0.png")
    for path in (tmp_path, tmp_path / "a" / "0.png", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="expected"):
            open_dense(path, "detect")


# Hostile files


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"images": {}, "annotations": [], "categories": []}',
        b'{"images": [], "annotations": [], "categories": []}',
        b'{"images": [1, {}, null], "annotations": [1, {}, null], "categories": [{"id": 1}]}',
        b'{"images": [1, {}, null], "annotations": [1, {}, null], "categories": []}',
        b'{"images": [{"id": 1, "file_name": "a", "width": 999999, "height": 999999}],'
        b' "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
        b'{"images": [{"id": [], "file_name": 7, "width": 1e9, "height": true}],'
        b' "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
        b'{"images": [], "annotations": [], "categories": [{"id": 1' + b"0" * 5000 + b"}]}",
    ],
)
def test_what_is_no_coco_file_is_refused_with_one_line(tmp_path, content):
    file = tmp_path / "instances.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match="expected"):
        open_dense(file, "detect")


def test_a_mask_whose_head_declares_too_much_allocates_nothing(tmp_path):
    folder = masks_beside(tmp_path)
    whole = folder / "masks" / "train" / "1.png"
    content = bytearray(whole.read_bytes())
    content[16:24] = (2**31 - 1).to_bytes(4, "big") * 2  # width and height, in PNG's first chunk
    whole.write_bytes(content)
    data = open_dense(folder, "segment")
    with pytest.raises(ImageError):
        data.load(next(source for source in data.train if source.mask == whole))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    folder = masks_beside(tmp_path)
    mask = folder / "masks" / "train" / "1.png"
    mask.unlink()
    os.mkfifo(mask)
    data = open_dense(folder, "segment")
    read = data.read(1, DenseAugment(32), np.random.default_rng(0))
    assert len(read) == 2


@pytest.mark.parametrize(
    ("make", "task"),
    [(coco, "instance"), (coco_code, "segment"), (voc, "instance"), (yolo_polygons, "instance")],
)
def test_whatever_is_written_over_annotations_gives_data_or_one_line(tmp_path, make, task):
    chance = random.Random(0)
    root = make(tmp_path / "data")
    kinds = {".json", ".xml", ".txt", ".yaml"}
    files = {file: file.read_bytes() for file in root.rglob("*") if file.suffix in kinds}
    for _ in range(60):
        for file in chance.sample(sorted(files), 2):
            content = bytearray(files[file])
            start = chance.randrange(len(content))
            junk = chance.choice([b"null", b"1e999", b"[]", b'"', b"-", b"\xff", b"<!ENTITY", b""])
            content[start : start + chance.randrange(12)] = junk
            file.write_bytes(content)
        try:
            data = open_dense(root, task)
            for source in [*data.train, *data.val]:
                with contextlib.suppress(ImageError):
                    data.load(source)
        except DataError as error:
            assert "\n" not in str(error)
        for file, content in files.items():
            file.write_bytes(content)
