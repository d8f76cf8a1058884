"""YOLO's data.yaml and classes.txt: each class gets the name and the number written there, or a
line says where the file is wrong."""

import time

import pytest
from annotated_folders import every_sample, masks_beside, voc, yolo, yolo_classes

from tinygmf.data.dataset import DataError
from tinygmf.data.dense_folders import open_dense

PLACES = "path: .\ntrain: images/train\nval: images/val\n"  # three lines


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [cat, dog]\nmy-key: 3\n", ["cat", "dog"]),
        ('"names": {0: cat, 1: dog}\n"extra": 1\n', ["cat", "dog"]),
        ("names:\n- cat\n- dog\n...\n", ["cat", "dog"]),
        ("names: &all [cat, dog]\nagain: *all\n", ["cat", "dog"]),
        ("names:\n  1: 'a, b'\n  0: \"c#: d\"\n", ["c#: d", "a, b"]),
        ("names: ['cat', # one\n  it's]\n", ["cat", "it's"]),
        ("names: [no, 007]\nnc: 2\n", ["no", "007"]),
        ("names: [cat, dog]\nnc:\ntest:\nkpt-shape: [17, 3]\n", ["cat", "dog"]),
        ("names: ['null', 1.50]\ndownload: |\n  names: z\n", ["null", "1.50"]),
    ],
)
def test_names_are_read_as_yaml_means_them(tmp_path, text, names):
    folder = yolo(tmp_path)
    (folder / "data.yaml").write_text("---\n" + PLACES + text)
    data = open_dense(folder, "detect")
    assert data.classes == ["background", *names] and not data.broken


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [cat, dog]\nnames: z\n", "line 5: expected names once"),
        ("names: |\n  cat\n  dog\n", "expected names, a list"),
        ("names: cat\n", "expected names, a list with one for each class, found 'cat'"),
        ("names: []\n", "expected names, a list"),
        ("names:\n", "expected names, a list with one for each class, found none"),
        ("names:\n- cat\n- name: dog\n", "line 6: expected a text, found a list or table"),
        ("names: [&a [cat], *a]\n", "line 4: expected a text, found a list or table"),
        ("names:\n  1: cat\n  2: dog\n", "line 5: expected names numbered from 0 to 1, found 1, 2"),
        ("names: {0: cat, 0: dog}\n", "numbered from 0 to 1, found 0, 0"),
        ("names: {cat: 0, dog: 1}\n", "numbered from 0 to 1, found cat, dog"),
        ("names:\n- cat\n-\n", "line 6: expected the name of another class, found none"),
        ("names: [cat, '']\n", "line 4: expected the name of another class, found none"),
        ("names: [cat, ~]\n", "line 4: expected the name of another class, found none"),
        ("names: [cat, cat]\n", "line 4: expected the name of another class, found 'cat' again"),
        ("names: [cat, , dog]\n", "line 4: expected YAML, found a fault"),
        ("names: [cat, dog]\n---\na: 1\n", "line 5: expected YAML"),
        ("names:\n\t- cat\n", "line 5: expected YAML"),
        ('names: [cat, dog]\nx: "\x01"\n', "line 5: expected YAML"),
        ('names: [cat, dog]\nx: "\\U99999999"\n', "expected YAML"),
        ("names: *cat\n", "line 4: expected YAML, found a fault: found undefined alias"),
        ("nc: 5\nnames: [cat, dog]\n", "line 4: expected nc 2, the number of names, found 5"),
        ("names: [cat, dog]\nkpt_shape: [17]\n", "expected kpt_shape such as [17, 3], found 17"),
        ("names: " + "\n[" * 1000, "expected YAML"),
        ("names: [cat, dog]\nx: " + "a" * 2**19, "found more than 524,288 bytes"),
    ],
)
def test_a_wrong_data_file_is_refused_with_its_line(tmp_path, text, reason):
    folder = yolo(tmp_path)
    (folder / "data.yaml").write_text(PLACES + text)
    with pytest.raises(DataError) as error:
        open_dense(folder / "data.yaml", "detect")
    assert str(folder / "data.yaml") in str(error.value) and reason in str(error.value)


def test_tags_and_aliases_do_no_harm(tmp_path):
    folder, ran = yolo(tmp_path), tmp_path / "ran"
    bomb = ["x0: &x0 {a: 1}"]
    bomb += [
        f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}], {i}: 1}}" for i in range(1, 30)
    ]
    text = f"names: [cat, dog]\nrun: !!python/object/apply:os.mkdir ['{ran}']\n"
    (folder / "data.yaml").write_text(PLACES + text + "\n".join(bomb))
    start = time.monotonic()
    assert open_dense(folder, "detect").classes == ["background", "cat", "dog"]
    assert not ran.exists() and time.monotonic() - start < 30


def test_yaml_of_other_things_beside_the_labels_is_passed_over(tmp_path):
    folder = yolo_classes(tmp_path)
    (folder / "data.yaml").write_text("a: [")
    (folder / "train.yaml").write_text("train: {names: here}\n")
    assert open_dense(folder, "detect").classes == ["background", "cat", "dog"]


@pytest.mark.parametrize("make", [voc, yolo_classes, masks_beside])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\n\nb\nc\n", "line 2: expected the name of another class, found none"),
        (
            "a\nb\nb\nc\n",
            "line 3: expected the name of another class, found 'b' again, after line 2",
        ),
    ],
)
def test_a_list_of_names_has_one_on_each_line(tmp_path, make, text, reason):
    root = make(tmp_path)
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError) as error:
        open_dense(root, "segment" if make is masks_beside else "detect")
    assert f"{root / 'classes.txt'}: {reason}" in str(error.value)


def test_empty_lines_after_the_names_are_no_classes(tmp_path):
    root = yolo_classes(tmp_path)
    (root / "classes.txt").write_text("cat\ndog\n\n \n")
    assert open_dense(root, "detect").classes == ["background", "cat", "dog"]


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_a_list_of_pictures_is_no_list_of_names(tmp_path, separator):
    root = masks_beside(tmp_path, names=False)
    (root / "labels.txt").write_text(f"images/a.jpg{separator}0\nimages/b.jpg{separator}1\n")
    assert open_dense(root, "segment").classes == ["class 0", "class 1", "class 2"]


def test_keypoints_after_a_box_are_no_polygon(tmp_path):
    folder = yolo(tmp_path)
    with (folder / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")
    label = folder / "labels" / "train" / "0.txt"
    label.write_text("0 .5 .5 .2 .2 .5 .5 .6 .6\n1 .5 .5 .2 .2\n0 .5 .5 .2 .2 .5 .5 2 .6 .6 2\n")
    data = open_dense(folder, "detect")
    known = data.load(data.train[0])[1]
    assert known.boxes.round().tolist() == [[16, 12, 24, 18]] * 2
    why = "expected 4 numbers of a box and 4 of keypoints, found 10"
    assert data.broken == {f"{label}: line 3": why}


def test_a_folder_in_the_place_of_a_label_file_is_named(tmp_path):
    folder = yolo(tmp_path)
    label = folder / "labels" / "train" / "0.txt"
    label.unlink()
    label.mkdir()
    data = open_dense(folder, "detect")
    assert "found a folder" in data.broken[str(label)]
    assert [len(known.boxes) for _, known in every_sample(data)] == [0, 2, 2, 2, 2, 2]
