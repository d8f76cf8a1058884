"""Pascal VOC's XML: a file of boxes for each picture.

Corners are pixels counted from 1, both inside the box: (1, 1, W, H) is the whole picture. Objects
marked difficult are ignored. Instance masks are in `SegmentationObject`, where the pixels of a
file's third object have the value 3. Files with a document type or entities are refused.
Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/, section 2.3.
"""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tinygmf.data.annotations import AnnotationError, read_flag
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.dense_files import (
    by_parts,
    class_names,
    listed,
    partners,
    read_bytes,
    split_by_folder,
    with_background,
)
from tinygmf.data.things import Sample, Thing, things_dataset
from tinygmf.image import MAX_PIXELS, ImageError, load_image, picture_suffixes

XML_FOLDERS = {"annotations", "annotation", "xmls", "xml", "labels"}
PLACES = "JPEGImages", "images", "imgs"  # of their pictures


def voc_dataset(root: Path, files: list[Path], task: str, seed: int = 0) -> DenseDataset:
    """`Annotations/*.xml` with `JPEGImages/` and the lists in `ImageSets/`, or XML beside pictures.

    The classes are those in `classes.txt`, or else all that the files name. Raises DataError if all
    annotations are bad.
    """
    lists = listed(root, "Segmentation" if task == "instance" else "Main")
    files = [file for file in files if not lists or file.stem in lists]
    broken: dict[str, str] = {}
    found = {}
    for file in files:
        try:
            found[file] = parse(read_bytes(file))
        except DataError as error:
            broken[str(file)] = str(error)
    seen = {_text(thing, "name") for root in found.values() for thing in root.iterfind("object")}
    classes = with_background(class_names(root) or sorted(seen - {""}))
    labels = {name: label for label, name in enumerate(classes) if label}
    samples = []
    for file, element in found.items():
        try:
            samples.append(_sample(file, element, labels, broken))
        except ImageError as error:
            broken[str(file)] = str(error)
    if lists:
        parts = by_parts(samples, [lists[sample.file.stem] for sample in samples])
    else:
        parts = split_by_folder(samples, [sample.file for sample in samples], root, seed)
    return things_dataset(str(root), task, classes, parts, broken)


def parse(content: bytes) -> Element:
    """The root element. Raises DataError for invalid XML, or if it declares more than elements."""

    def refuse(*_: object) -> NoReturn:
        raise DataError("expected plain XML, found a document type or entities: remove them")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        root = builder.close()
    except DataError:
        raise
    except (expat.ExpatError, AssertionError) as error:
        raise DataError(f"expected XML, found {error}") from None
    except (LookupError, ValueError) as error:  # from Python's codecs
        raise DataError(f"expected XML in UTF-8, found another encoding: {error}") from None
    if root.tag.lower() != "annotation":
        raise DataError(f"expected <annotation> around all, found <{root.tag:.40}>")
    return root


def _sample(file: Path, root: Element, labels: dict[str, int], broken: dict[str, str]) -> Sample:
    picture = _picture(file, _text(root, "filename"))
    mask = file.parent.parent / "SegmentationObject" / f"{file.stem}.png"
    sample = Sample(file, picture, [], _size(root, picture))
    sample.mask = mask if mask.is_file() else None
    for number, element in enumerate(root.iterfind("object"), 1):
        name = f"object {number}"
        try:
            outline = number if sample.mask else None
            sample.things.append(_thing(name, element, labels, outline))
        except AnnotationError as error:
            broken[f"{file}: {name}"] = str(error)
    return sample


def _thing(name: str, element: Element, labels: dict[str, int], outline: int | None) -> Thing:
    """An object. Raises AnnotationError for an invalid one."""
    label = labels.get(_text(element, "name"))
    if label is None:
        raise AnnotationError(f"expected a known class, found {_text(element, 'name')!r}")
    corners = [_text(element, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, corners)
    except ValueError:
        raise AnnotationError(f"expected four numbers in bndbox, found {corners}") from None
    ignored = read_flag("difficult", _text(element, "difficult"))
    return Thing(name, label, (x0 - 1, y0 - 1, x1, y1), outline, ignored)


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _picture(file: Path, name: str) -> Path:
    """The picture of an XML file, named by its stem or its `filename`, in the usual folders."""
    name = PureWindowsPath(name).name  # it may be a full path, of any system
    endings = (Path(name).suffix or ".jpg", *sorted(picture_suffixes()))
    stems = file, file.parent / (name or file.name)
    ways = [way for stem in stems for way in partners(stem, XML_FOLDERS, PLACES, endings)]
    return next((way for way in ways if os.path.isfile(way)), ways[0])


def _size(root: Element, picture: Path) -> tuple[int, int]:
    """Width and height from the file, or else from the picture. Raises ImageError."""
    sides = [_text(root, f"size/{side}") for side in ("width", "height")]
    if all(side.isascii() and side.isdecimal() and 0 < len(side) < 9 for side in sides):
        width, height = map(int, sides)
        if 0 < width * height <= MAX_PIXELS:
            return width, height
    return load_image(picture).size
