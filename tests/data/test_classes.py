"""Classes go by name, however folders and files of labels name them."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinygmf.config import Settings
from tinygmf.data.classes import ClassIndex, folder_classes, names_of, read_labels, read_names
from tinygmf.data.evaluation import find_pictures
from tinygmf.data.folders import folder_pictures
from tinygmf.data.pictures import Skipped

TWELVE = [str(i) for i in range(12)]


def write_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, format="PNG")
    return folder


def test_training_and_evaluation_give_a_picture_the_same_class(tmp_path):
    """As text, 10 sorts before 2, and evaluation by number counted other classes."""
    names = [f"{part}/{c}/{i}.png" for part in ("train", "val") for c in TWELVE for i in range(2)]
    write_pictures(tmp_path, *names)
    data = folder_pictures(tmp_path)
    assert data.classes == TWELVE
    trained = dict(zip(data.val, data.val_labels, strict=True))
    assert dict(find_pictures(tmp_path / "val", data.classes)) == trained
    assert all(data.classes[label] == path.parent.name for path, label in trained.items())


@pytest.mark.parametrize("names", [TWELVE, sorted(TWELVE), TWELVE[::-1], [f"c{i}" for i in TWELVE]])
def test_evaluation_goes_by_name_whatever_the_order_and_whichever_are_missing(tmp_path, names):
    write_pictures(tmp_path, *(f"{name}/x.png" for name in names if not name.endswith("7")))
    found = find_pictures(tmp_path, names)
    assert len(found) == 11
    assert all(names[label] == path.parent.name for path, label in found)


def test_a_folder_that_is_no_class_is_named(tmp_path):
    write_pictures(tmp_path, "cat/x.png", "cow/x.png")
    with pytest.raises(ValueError, match=r"2 classes \(cat, dog\), found 'cow', no class"):
        find_pictures(tmp_path, ["cat", "dog"])


def test_numbers_are_class_numbers_where_no_class_has_a_number_for_a_name(tmp_path):
    write_pictures(tmp_path, "1/x.png")
    assert find_pictures(tmp_path, ["cat", "dog"]) == [(tmp_path / "1" / "x.png", 1)]
    with pytest.raises(ValueError, match="found '1', no class"):
        find_pictures(tmp_path, ["cat", "5"])


@pytest.mark.parametrize(
    ("names", "name", "expected"),
    [
        (["7", "5"], "07", 0),
        (["007", "7"], "7", 1),
        (["é", "e"], unicodedata.normalize("NFD", "é"), 0),
        ([unicodedata.normalize("NFD", "é"), "e"], "é", 0),
        (["Cat", "cat"], "cat", 1),
        (["a"], "1", None),
        (["a"], "²", None),
        (["a"], "9" * 5000, None),
    ],
)
def test_a_name_is_compared_as_it_is_meant(names, name, expected):
    assert ClassIndex(names)(name) == expected


def test_a_name_of_two_classes_is_refused_only_where_it_is_used():
    index = ClassIndex(["crane", "cat", "crane"])
    assert index("cat") == 1
    with pytest.raises(ValueError, match=r"crane: .* classes 0, 2 all have it"):
        index("crane")


def test_imagenets_folders_in_order_are_its_classes(tmp_path):
    folders = [f"n{i:08}" for i in range(3)]
    assert folder_classes(folders, ClassIndex(["tench", "goldfish", "shark"]), tmp_path) == [
        0,
        1,
        2,
    ]
    with pytest.raises(ValueError, match="found 'n00000001', no class"):
        folder_classes(folders[1:], ClassIndex(["tench", "goldfish", "shark"]), tmp_path)


ROWS = [(f"ILSVRC2012_val_{i:08}.png", i % 10) for i in range(12)]
ODD = [
    *("a,b.png", "two  spaces.png", "IMG 1, copy.png", "trailing .png", "ü\u00a0nb.png"),
    *("日本語 写真.png", "#hash.png", 'quote".png', "semi;colon.png", "1 2.png", "3.png"),
]


def lines(separator: str, rows: list = ROWS) -> str:
    return "".join(f"{name}{separator}{label}\n" for name, label in rows)


FILES = {
    "space": lines(" "),
    "tab": lines("\t"),
    "comma": lines(","),
    "semicolon": lines(";"),
    "comma and space": lines(", "),
    "aligned": lines("   "),
    "heading": "ImageId,Class\n" + lines(","),
    "comment": "# picture class\n\n" + lines(" "),
    "quoted": "".join(f'"{name}","{label}"\n' for name, label in ROWS),
    "backslash": "".join(f".\\{name} {label}\n" for name, label in ROWS),
    "from above": "".join(f"flat/{name} {label}\n" for name, label in ROWS),
    "leading zeros": "".join(f"{name} {label:03}\n" for name, label in ROWS),
    "blank lines": lines(" ").replace("\n", "\n\n") + "  \n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_labels_is_read_as_spreadsheets_and_editors_write_it(tmp_path, kind):
    flat = write_pictures(tmp_path / "flat", *(name for name, _ in ROWS))
    expected = [(flat / name, label) for name, label in ROWS]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "labels").write_bytes(FILES[kind].encode(encoding))
        found = read_labels(flat, ClassIndex([*map(str, range(10))]), tmp_path / "labels")
        assert [(path.resolve(), label) for path, label in found] == expected


@pytest.mark.parametrize("separator", [" ", ",", ";", "\t"])
def test_a_line_is_cut_where_a_picture_and_a_class_are_left(tmp_path, separator):
    flat = write_pictures(tmp_path / "flat", *ODD)
    rows = [(name, i % 4) for i, name in enumerate(ODD)]
    (tmp_path / "labels").write_text(lines(separator, rows), encoding="utf-8")
    found = read_labels(flat, ClassIndex([*"0123"]), tmp_path / "labels")
    assert list(found) == [(flat / name, label) for name, label in rows]


def test_a_class_may_be_named_with_blanks_and_commas(tmp_path):
    flat = write_pictures(tmp_path / "flat", "x.png", "y.png")
    names = ["golden retriever", "crane, bird", "retriever", "bird"]
    (tmp_path / "labels").write_text("x.png golden retriever\ny.png,crane, bird\n")
    found = read_labels(flat, ClassIndex(names), tmp_path / "labels")
    assert [label for _, label in found] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.png 1\ny.png 10\n", "line 2: .* found 'y.png 10'"),
        ("x.png cat\n", "line 1: "),
        ("1,x.png\n", "line 1: expected a picture, then its class"),
        ("0\n1\n", "line 1: .* found '0'"),
        ("x.png,0 10 20 110 120\n", "line 1: "),
        ("x.png 1\n\nx.png 2\n", "line 3: expected each picture once, found x.png in line 1"),
        ("x.png -1\n", "line 1: "),
        ("x.png 1.0\n", "line 1: "),
        ("name,class\nname,class\n", "line 2: "),
    ],
)
def test_a_line_that_says_no_class_is_told_with_its_number(tmp_path, text, message):
    flat = write_pictures(tmp_path / "flat", "x.png", "y.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"labels\.csv, {message}"):
        find_pictures(flat, [*map(str, range(10))], tmp_path / "labels.csv")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_file_without_labels_is_told(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.csv: expected pictures and their classes"):
        find_pictures(tmp_path, ["a", "b"], tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "null\nfünf, six\nei\u2028ns\n\n"),
        ("x.json", '["null", "fünf, six", "ei\u2028ns"]'),
        ("y.json", '{"0": "null", "2": "ei\u2028ns", "1": ["n01", "fünf, six"]}'),
        ("z.json", '{"ei\u2028ns": 2, "null": 0, "fünf, six": 1}'),
    ],
)
def test_names_are_read_from_text_and_json(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / name) == ["null", "fünf, six", "ei\u2028ns"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "a\n\nb\n", r"x\.txt, line 2: expected the name of a class, found none"),
        ("x.json", "[1, 2]", r"x\.json: expected JSON, a list of names"),
        ("x.json", '{"a": "b"}', r"x\.json: expected JSON"),
        ("x.json", "[" * 100_000, r"x\.json: expected JSON"),
    ],
)
def test_a_file_of_names_that_is_none_is_told(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_names(tmp_path / name)


def test_names_come_from_the_option_then_the_weights_then_the_file_beside_them(tmp_path):
    weights, option = tmp_path / "x.pth", tmp_path / "names.txt"
    option.write_text("o1\no2\n")
    settings = Settings(classes=("w1", "w2"))
    bare = replace(settings, classes=())
    assert names_of(bare, 2, weights) == ["0", "1"]
    assert names_of(bare, 1000, weights)[0] == "tench"
    (tmp_path / "classes.txt").write_text("b1\nb2\n")
    assert names_of(bare, 2, weights) == ["b1", "b2"]
    assert names_of(settings, 2, weights) == ["w1", "w2"]
    assert names_of(settings, 2, weights, option) == ["o1", "o2"]
    with pytest.raises(ValueError, match=r"names\.txt: expected 3 lines.*found 2"):
        names_of(settings, 3, weights, option)


def test_what_is_skipped_is_counted(tmp_path):
    write_pictures(tmp_path, "cat/x.png", "cat/.x.png", "cat/._x.png", "beside.png")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "Thumbs.db").touch()
    skipped = Skipped()
    assert len(find_pictures(tmp_path, ["cat"], skipped=skipped)) == 1
    assert {kind: len(names) for kind, names in skipped.names.items()} == {
        "hidden or system names": 3,
        "pictures beside the class folders": 1,
        "files that are not pictures": 1,
    }
    assert "files that are not pictures (1: notes.txt)" in str(skipped)
    assert not Skipped() and np.all(bool(skipped))
