"""YOLO's text labels: a file for each picture, a line for each object.

A line has the class, counted from 0, and either centre x, y, width and height of a box, or x, y of
three or more corners of a polygon; all are shares of the picture's sides. A picture without a file
has no objects. Names are in `data.yaml` or `classes.txt`.
Source: https://docs.ultralytics.com/datasets/detect/ and /segment/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tinygmf.data.annotations import BACKGROUND, AnnotationError
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.dense_files import (
    PICTURE_FOLDERS,
    class_names,
    partners,
    pictures_below,
    read_text,
    split,
    split_by_folder,
)
from tinygmf.data.outlines import read_polygon
from tinygmf.data.things import Sample, Thing, things_dataset

ITEM = re.compile(r"""'[^']*'|"[^"]*"|[^\s,\[\]{}'"][^,\[\]{}\n]*""")


def label_file(picture: Path) -> Path:
    """`a/images/train/x.jpg` -> `a/labels/train/x.txt`; without a folder of pictures beside it."""
    return partners(picture, PICTURE_FOLDERS, ["labels"], [".txt"])[0]


def yolo_dataset(path: Path, task: str, seed: int = 0) -> DenseDataset:
    """A `data.yaml`, a folder that has one, or pictures and labels with a `classes.txt`.

    Raises DataError if names are missing or all labels are bad.
    """
    settings = find_settings(path)
    if settings:
        names, parts = _from_settings(settings, seed)
    else:
        names, pictures = class_names(path), pictures_below(path)
        parts = split_by_folder(pictures, pictures, path, seed)
    if not names:
        raise DataError(
            f"{path}: expected the names of the classes, found neither data.yaml nor classes.txt: "
            "write one of them, one name per line"
        )
    broken: dict[str, str] = {}
    train, val = ([_sample(picture, len(names), broken) for picture in part] for part in parts)
    return things_dataset(str(path), task, [BACKGROUND, *names], (train, val), broken)


def find_settings(path: Path) -> Path | None:
    """The given YAML file, or the first in the folder that has names and pictures."""
    if path.is_file():
        return path
    files = sorted(
        [*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda file: file.stem != "data"
    )
    return next((f for f in files if {"names", "train"} <= set(parse_yaml(read_text(f)))), None)


def _from_settings(file: Path, seed: int) -> tuple[list[str], tuple[list[Path], list[Path]]]:
    """The names of the classes; the pictures for training and for validation."""
    settings = parse_yaml(read_text(file))
    base = file.parent / (settings.get("path") or [("", "")])[0][1]
    bases = [base, file.parent] if base.is_dir() else [file.parent]
    names = settings.get("names", [])
    if [key for key, _ in names] not in ([""] * len(names), [str(i) for i in range(len(names))]):
        raise DataError(f"{file}: expected names in order, numbered from 0, found {names[:5]}")
    train = _pictures(file, bases, settings.get("train", []))
    val = _pictures(file, bases, settings.get("val", []) or settings.get("test", []))
    if not train:
        raise DataError(f"{file}: expected pictures below train, found none: check the folders")
    return [name for _, name in names], (train, val) if val else split(train, seed)


def _pictures(file: Path, bases: list[Path], places: list[tuple[str, str]]) -> list[Path]:
    """All pictures below the folders, or in the lists, that a YAML file names."""
    pictures: list[Path] = []
    for _, place in places:
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


def parse_yaml(text: str) -> dict[str, list[tuple[str, str]]]:
    """The subset of YAML that `data.yaml` uses: for each unindented key its value, or the values of
    its list, as pairs of a key, "" for a value without one, and a text."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).rstrip()
        key = re.match(r"(\w+)\s*:(?:\s+|$)(.*)", line)
        if key:
            lines = found.setdefault(key[1], [])
            lines.append(key[2])
        elif line.strip():
            lines.append(line.strip().removeprefix("- "))
    return {
        key: [_pair(item.strip()) for item in ITEM.findall("\n".join(lines))]
        for key, lines in found.items()
    }


def _pair(item: str) -> tuple[str, str]:
    number, colon, name = item.partition(":")
    if colon and number.strip().isdecimal():
        return number.strip(), name.strip().strip("'\"")
    return "", item.strip("'\"")


def _sample(picture: Path, classes: int, broken: dict[str, str]) -> Sample:
    file = label_file(picture)
    sample = Sample(file, picture, [], None)
    try:
        lines = read_text(file).splitlines() if os.path.isfile(file) else []
    except DataError as error:
        broken[str(file)] = str(error)
        return sample
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                sample.things.append(_thing(f"line {number}", line, classes))
        except AnnotationError as error:
            broken[f"{file}: line {number}"] = str(error)
    return sample


def _thing(name: str, line: str, classes: int) -> Thing:
    """An object. Raises AnnotationError for an invalid line."""
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        raise AnnotationError(f"expected numbers, found {line[:40]!r}") from None
    if not (label.is_integer() and 0 <= label < classes):
        raise AnnotationError(f"expected a class below {classes}, found {label:g}")
    if len(numbers) == 4:
        x, y, width, height = numbers
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Thing(name, int(label) + 1, box)
    if len(numbers) < 6 or len(numbers) % 2:
        raise AnnotationError(f"expected 4 numbers, or 6 or more in pairs, found {len(numbers)}")
    polygon = read_polygon(numbers)
    x0, y0, x1, y1 = (float(edge) for edge in (*polygon.min(0), *polygon.max(0)))
    return Thing(name, int(label) + 1, (x0, y0, x1, y1), [polygon])
