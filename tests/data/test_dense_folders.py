"""What is read from every format is what was written."""

import json

import numpy as np
import pytest
from annotated_folders import (
    HEIGHT,
    MASKED,
    NAMES,
    OBJECTS,
    OUTLINED,
    PARTS,
    THINGS,
    WIDTH,
    class_map,
    coco,
    coco_content,
    coco_file,
    every_sample,
    masks,
    masks_beside,
    masks_split,
    picture,
    voc,
    write_mask,
    yolo,
    yolo_labeled,
)
from PIL import Image

from tinygmf.data.annotations import IGNORE
from tinygmf.data.coco import coco_truth
from tinygmf.data.dense_augment import DenseAugment
from tinygmf.data.dense_folders import open_dense
from tinygmf.dense.measures import average_precision


@pytest.mark.parametrize("make", OBJECTS)
def test_boxes_and_classes_are_read_as_they_were_written(make, tmp_path):
    data = open_dense(make(tmp_path / "data"), "detect")
    assert data.classes == ["background", *NAMES] and not data.broken
    assert len(data.train) >= 3 and data.val
    for image, known in every_sample(data):
        assert image.size == (WIDTH, HEIGHT) and known.masks is None
        np.testing.assert_allclose(known.boxes, [thing[1:] for thing in THINGS], atol=1e-4)
        assert known.labels.tolist() == [1, 2]


@pytest.mark.parametrize("make", OUTLINED)
def test_masks_of_objects_are_read_as_they_were_written(make, tmp_path):
    data = open_dense(make(tmp_path / "data"), "instance")
    assert not data.broken
    for _, known in every_sample(data):
        np.testing.assert_array_equal(known.masks, masks())


@pytest.mark.parametrize("make", MASKED)
def test_class_maps_are_read_as_they_were_written(make, tmp_path):
    data = open_dense(make(tmp_path / "data"), "segment")
    assert len(data.classes) == 3 and not data.broken
    for _, known in every_sample(data):
        np.testing.assert_array_equal(known.class_map, class_map())


@pytest.mark.parametrize("make", [*OBJECTS, masks_beside, masks_split])
def test_what_to_validate_on_is_as_the_folders_say(make, tmp_path):
    data = open_dense(make(tmp_path / "data"), "detect" if make in OBJECTS else "segment")
    train, val = ({str(source) for source in part} for part in (data.train, data.val))
    assert train and val and not train & val
    if make not in (coco_file, yolo_labeled):
        assert (len(train), len(val)) == tuple(PARTS.values())
        assert all("val" in name.removeprefix(str(tmp_path)) for name in val)


def test_crowds_and_difficult_objects_are_ignored(tmp_path):
    crowded = open_dense(coco(tmp_path / "a", "runs"), "instance")
    known = crowded.load(crowded.val[0])[1]
    assert known.ignored.all()
    np.testing.assert_array_equal(known.masks, masks())
    difficult = open_dense(voc(tmp_path / "b"), "detect")
    assert difficult.load(difficult.val[0])[1].ignored.tolist() == [False, True]


@pytest.mark.parametrize("crowd", [0, "0", False, "false", 0.0, None, 1, "1", True, "true"])
def test_crowds_are_numbers_words_or_texts(tmp_path, crowd):
    content = coco_content("train")
    for note in content["annotations"]:
        note["iscrowd"] = crowd
    file = coco_file(tmp_path)
    file.write_text(json.dumps(content))
    data = open_dense(file, "detect")
    for _, known in every_sample(data):
        assert known.ignored.tolist() == [crowd in (1, "1", "true")] * 2


@pytest.mark.parametrize("word", ["1", "true", "True"])
def test_difficult_is_a_number_or_a_word(tmp_path, word):
    root = voc(tmp_path)
    for file in root.glob("Annotations/*.xml"):
        file.write_text(file.read_text().replace("<difficult>1", f"<difficult>{word}"))
    data = open_dense(root, "detect")
    assert data.load(data.val[0])[1].ignored.tolist() == [False, True]


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png"])
def test_pictures_of_xml_are_found_though_their_suffix_is_another(tmp_path, suffix):
    root = voc(tmp_path)
    for file in root.glob("JPEGImages/*.jpg"):
        with Image.open(file) as image:
            image.save(file.with_suffix(suffix))
        file.unlink()
    data = open_dense(root, "detect")
    assert len(data.train) == PARTS["train"] and not data.broken


def test_cocos_names_of_pictures_may_be_windows_and_its_sides_decimals(tmp_path):
    folder = coco(tmp_path)
    for file in folder.glob("*2017/*.png"):
        (file.parent / "sub").mkdir(exist_ok=True)
        file.rename(file.parent / "sub" / file.name)
    for file in folder.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        for image in content["images"]:
            image |= {"file_name": "sub\\" + image["file_name"], "width": 40.0}
        file.write_text(json.dumps(content), encoding="utf-16")
    data = open_dense(folder, "detect")
    assert (len(data.train), len(data.val)) == tuple(PARTS.values()) and not data.broken


def test_what_is_held_out_goes_back_to_cocos_json_with_its_own_numbers(tmp_path):
    data = open_dense(coco(tmp_path / "data", "code"), "instance")
    truth, given = coco_truth(data), coco_content("val", "code")
    assert [image["id"] for image in truth["images"]] == [100, 101]
    assert truth["categories"] == sorted(given["categories"], key=lambda entry: entry["id"])
    for note, expected in zip(truth["annotations"], given["annotations"], strict=True):
        assert note == expected
    json.dumps(truth)


@pytest.mark.parametrize("make", [voc, yolo, coco_file])
def test_what_is_held_out_can_be_measured_whatever_its_format(make, tmp_path):
    pytest.importorskip("pycocotools", reason="pip install pycocotools for average precision")
    data = open_dense(make(tmp_path / "data"), "detect")
    truth = coco_truth(data)
    results = [
        {"score": 1.0, **{key: note[key] for key in ("image_id", "category_id", "bbox")}}
        for note in truth["annotations"]
    ]
    assert average_precision(truth, results).ap == pytest.approx(1)


def test_ade20k_zero_is_ignored_and_classes_count_from_one(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        picture(root / "images" / part / "ADE_1.jpg")
        write_mask(root / "annotations" / part / "ADE_1.png", class_map())
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.2\twall\n2\t0.1\tsky, air\n")
    data = open_dense(root, "segment")
    assert data.classes == ["wall", "sky, air"]
    expected = class_map((IGNORE, 0, 1))
    np.testing.assert_array_equal(data.load(data.val[0])[1].class_map, expected)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [("Ids", (3, 7, 26), (IGNORE, 0, 13)), ("TrainIds", (IGNORE, 0, 13), (IGNORE, 0, 13))],
)
def test_cityscapes_numbers_become_its_nineteen_classes(tmp_path, kind, values, expected):
    for part in ("train", "val", "test"):
        name = f"ulm_000000_{part}"
        picture(tmp_path / "leftImg8bit" / part / "ulm" / f"{name}_leftImg8bit.png")
        folder = tmp_path / "gtFine" / part / "ulm"
        write_mask(folder / f"{name}_gtFine_label{kind}.png", class_map(values))
        write_mask(folder / f"{name}_gtFine_instanceIds.png", class_map())
    data = open_dense(tmp_path, "segment")
    assert len(data.classes) == 19 and data.classes[13] == "car"
    assert (len(data.train), len(data.val)) == (1, 1) and "val" in str(data.val[0])
    np.testing.assert_array_equal(data.load(data.val[0])[1].class_map, class_map(expected))


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ((0, 1, 3), ["class 0", "class 1", "class 2", "class 3"], (0, 1, 3)),
        ((0, 1, IGNORE), ["class 0", "class 1"], (0, 1, IGNORE)),
        ((0, IGNORE, IGNORE), ["background", "object"], (0, 1, 1)),
    ],
)
def test_without_names_the_masks_tell_how_many_classes_there_are(
    tmp_path, values, classes, expected
):
    data = open_dense(masks_beside(tmp_path, values, names=False), "segment")
    assert data.classes == classes
    for _, known in every_sample(data):
        np.testing.assert_array_equal(known.class_map, class_map(expected))


def test_batches_come_from_any_format_in_an_order_of_the_seeds(tmp_path):
    data = open_dense(voc(tmp_path), "instance")
    augment = DenseAugment(32)
    first, again = (list(data.batches(augment, 2, seed=1, epoch=0)) for _ in range(2))
    assert len(first) == 2
    for (pictures, known), (same, still) in zip(first, again, strict=True):
        assert pictures.shape == (2, 3, 32, 32) and pictures.dtype == np.float32
        np.testing.assert_array_equal(pictures, same)
        for one, other in zip(known, still, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
    later = list(data.batches(augment, 2, seed=1, epoch=0, first=1))
    np.testing.assert_array_equal(later[0][0], first[1][0])
