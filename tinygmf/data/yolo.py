"""YOLO's text labels: a file for each picture, a line for each object.

A line has the class, counted from 0, and either centre x, y, width and height of a box, or x, y of
three or more corners of a polygon; all are shares of the picture's sides. If `data.yaml` has
`kpt_shape`, keypoints follow the box, and are not read. A picture without a file has no objects.
Names are in `data.yaml` or `classes.txt`.
Source: https://docs.ultralytics.com/datasets/detect/, /segment/ and /pose/.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tinygmf.data.annotations import BACKGROUND, AnnotationError
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.dense_files import (
    PICTURE_FOLDERS,
    class_names,
    different,
    partners,
    pictures_below,
    read_text,
    split,
    split_by_folder,
)
from tinygmf.data.outlines import read_polygon
from tinygmf.data.things import Sample, Thing, things_dataset

MOST_BYTES = 2**19  # of YAML: 20,000 names, read in seconds


def label_file(picture: Path) -> Path:
    """`a/images/train/x.jpg` -> `a/labels/train/x.txt`; without a folder of pictures beside it."""
    return partners(picture, PICTURE_FOLDERS, ["labels"], [".txt"])[0]


def yolo_dataset(path: Path, task: str, seed: int = 0) -> DenseDataset:
    """A `data.yaml`, a folder that has one, or pictures and labels with a `classes.txt`.

    Raises DataError if names are missing or all labels are bad.
    """
    settings, keypoints = find_settings(path), 0
    if settings:
        names, parts, keypoints = _from_settings(settings, seed)
    else:
        names, pictures = class_names(path), pictures_below(path)
        parts = split_by_folder(pictures, pictures, path, seed)
    if not names:
        raise DataError(
            f"{path}: expected the names of the classes, found neither data.yaml nor classes.txt: "
            "write one of them, one name per line"
        )
    broken: dict[str, str] = {}
    train, val = (
        [_sample(picture, len(names), keypoints, broken) for picture in part] for part in parts
    )
    return things_dataset(str(path), task, [BACKGROUND, *names], (train, val), broken)


def find_settings(path: Path) -> Path | None:
    """The given YAML file, or the first in the folder that has names and pictures."""
    if path.is_file():
        return path
    files = sorted(
        [*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda file: file.stem != "data"
    )
    return next((file for file in files if _is_settings(file)), None)


def _is_settings(file: Path) -> bool:
    text, keys = read_text(file, MOST_BYTES), {"names", "train"}
    return all(key in text for key in keys) and keys <= set(parse_yaml(file))


def _from_settings(file: Path, seed: int) -> tuple[list[str], tuple[list[Path], list[Path]], int]:
    """The names of the classes; the pictures for training and for validation; how many numbers of
    keypoints follow a box."""
    settings = parse_yaml(file)
    names = _names(file, settings)
    texts = {
        key: [text for _, _, text in _entries(file, settings.get(key)) if text]
        for key in ("path", "train", "val", "test", "kpt_shape")
    }
    base = file.parent / "".join(texts["path"][:1])
    bases = [base, file.parent] if os.path.isdir(base) else [file.parent]
    train = _pictures(file, bases, texts["train"])
    val = _pictures(file, bases, texts["val"] or texts["test"])
    if not train:
        raise DataError(f"{file}: expected pictures below train, found none: check the folders")
    shape = texts["kpt_shape"]
    if shape and not (len(shape) == 2 and _is_number(shape[0]) and shape[1] in ("2", "3")):
        raise DataError(f"{file}: expected kpt_shape such as [17, 3], found {', '.join(shape)}")
    keypoints = int(shape[0]) * int(shape[1]) if shape else 0
    return names, (train, val) if val else split(train, seed), keypoints


def _names(file: Path, settings: dict[str, Any]) -> list[str]:
    """The names of the classes, a list or a table from 0 on. Raises DataError."""
    kind = getattr(settings.get("names"), "id", "scalar")
    entries = _entries(file, settings.get("names"))
    if kind == "scalar" or not entries:
        found = f"{entries[0][2]!r:.40}" if entries and entries[0][2] else "none"
        raise DataError(f"{file}: expected names, a list with one for each class, found {found}")
    if kind == "mapping":
        numbers = [key for _, key, _ in entries]
        places = sorted(int(key) for key in numbers if _is_number(key))
        if places != list(range(len(entries))):
            raise DataError(
                f"{file}: line {entries[0][0]}: expected names numbered from 0 to "
                f"{len(entries) - 1}, found {', '.join(numbers[:5])}"
            )
        entries.sort(key=lambda entry: int(entry[1]))
    total = str(len(entries))
    for line, _, count in _entries(file, settings.get("nc")):
        if count not in ("", total):
            raise DataError(
                f"{file}: line {line}: expected nc {total}, the number of names, found {count}"
            )
    return different(file, [(line, name) for line, _, name in entries])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 9


def _pictures(file: Path, bases: list[Path], places: list[str]) -> list[Path]:
    """All pictures below the folders, or in the lists, that a YAML file names."""
    pictures: list[Path] = []
    for place in places:
        # Some exports write ../train/images when the folder is beside the YAML file
        ways = [base / way for way in (place, place.removeprefix("../")) for base in bases]
        found = next((way for way in ways if os.path.exists(way)), None)
        if found is None:
            raise DataError(f"{file}: expected pictures at {place}, found none: check the folders")
        if found.is_dir():
            pictures += pictures_below(found)
        else:
            lines = read_text(found).split("\n")
            pictures += [found.parent / line.strip() for line in lines if line.strip()]
    return pictures


def parse_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's keys, and for each a node of PyYAML's, which knows its line.

    No values are made of the nodes, so that tags and aliases cannot do harm. Raises DataError."""
    import yaml

    text, found = read_text(file, MOST_BYTES), dict[str, Any]()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        why = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise DataError(f"{file}: line {line + 1}: expected YAML, found a fault: {why}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{file}: expected YAML, found a fault: {error}") from None
    for key, node in root.value if root and root.id == "mapping" else []:
        if key.id == "scalar" and key.value in found:
            line = key.start_mark.line + 1
            raise DataError(f"{file}: line {line}: expected {key.value} once, found it again")
        found |= {key.value: node} if key.id == "scalar" else {}
    return found


def _entries(file: Path, node: Any) -> list[tuple[int, str, str]]:
    """Line, key and text of a text, or of all in a list or table; "" for a key or text that is
    none. Raises DataError for a list or table inside another."""
    if node is None:
        return []
    pairs: list[tuple[Any, Any]] = [("", node)]
    if node.id != "scalar":
        pairs = node.value if node.id == "mapping" else [("", item) for item in node.value]
    entries = []
    for key, item in pairs:
        line = item.start_mark.line + 1
        if item.id != "scalar" or (key and key.id != "scalar"):
            raise DataError(f"{file}: line {line}: expected a text, found a list or table")
        text = "" if item.tag.endswith(":null") else item.value.strip()
        entries.append((line, key and key.value, text))
    return entries


def _sample(picture: Path, classes: int, keypoints: int, broken: dict[str, str]) -> Sample:
    file = label_file(picture)
    sample = Sample(file, picture, [], None)
    try:
        lines = read_text(file).splitlines() if os.path.lexists(file) else []
    except DataError as error:
        broken[str(file)] = str(error)
        return sample
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                sample.things.append(_thing(f"line {number}", line, classes, keypoints))
        except AnnotationError as error:
            broken[f"{file}: line {number}"] = str(error)
    return sample


def _thing(name: str, line: str, classes: int, keypoints: int) -> Thing:
    """An object. Raises AnnotationError for an invalid line."""
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        raise AnnotationError(f"expected numbers, found {line[:40]!r}") from None
    if not (label.is_integer() and 0 <= label < classes):
        raise AnnotationError(f"expected a class below {classes}, found {label:g}")
    if keypoints and len(numbers) != 4:
        if len(numbers) != 4 + keypoints:
            raise AnnotationError(
                f"expected 4 numbers of a box and {keypoints} of keypoints, found {len(numbers)}"
            )
        numbers = numbers[:4]
    if len(numbers) == 4:
        x, y, width, height = numbers
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Thing(name, int(label) + 1, box)
    if len(numbers) < 6 or len(numbers) % 2:
        raise AnnotationError(f"expected 4 numbers, or 6 or more in pairs, found {len(numbers)}")
    polygon = read_polygon(numbers)
    x0, y0, x1, y1 = (float(edge) for edge in (*polygon.min(0), *polygon.max(0)))
    return Thing(name, int(label) + 1, (x0, y0, x1, y1), [polygon])
