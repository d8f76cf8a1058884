"""COCO's JSON: annotations of objects read, and annotations and results written.

Boxes are x, y, width, height in pixels; masks are polygons or run-length codes; crowds are ignored.
Source: https://cocodataset.org/#format-data and #format-results.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from tinygmf.data.annotations import BACKGROUND, AnnotationError, read_flag
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.dense_files import by_parts, part_of, split
from tinygmf.data.outlines import encode, read_outline
from tinygmf.data.things import Sample, Thing, things_dataset
from tinygmf.image import MAX_PIXELS

MOST_BYTES = 2**30  # COCO's own largest file is 0.45 GB
KINDS: dict[str, Any] = {
    **{"number": int | float, "text": str, "number or text": int | float | str, "list": list}
}


def coco_files(path: Path) -> list[Path]:
    """The annotation files of a COCO folder."""
    patterns = "*.json", "annotations/*.json", "*/*.json"
    found = {file for pattern in patterns for file in path.glob(pattern)}
    instances = {file for file in found if file.name.startswith("instances")}
    return sorted(file for file in instances or found if _is_coco(file))


def _is_coco(file: Path) -> bool:
    """Whether a file has the keys of COCO's annotations, rather than of captions or settings."""
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        return False
    content = file.read_bytes().replace(b"\0", b"")  # in UTF-16 these lie between the letters
    return all(word in content for word in (b'"images"', b'"annotations"', b'"categories"'))


def coco_dataset(path: Path, files: list[Path], task: str, seed: int = 0) -> DenseDataset:
    """`annotations/instances_train2017.json` and `…_val2017.json` with `train2017/`, `val2017/`;
    `train/_annotations.coco.json` and `valid/…`; or a single file, a fifth of which is held out.

    Raises DataError for a file that is not COCO's, or if all annotations are bad.
    """
    root = path if path.is_dir() else path.parent
    train_files, val_files = by_parts(files, [part_of(file, root) for file in files])
    if not (len(train_files) == len(val_files) == 1 or len(files) == 1):
        raise DataError(
            f"{path}: expected one annotation file, or two with train and val in their "
            f"names, found {', '.join(file.name for file in files)}: rename them, or name one file"
        )
    broken: dict[str, str] = {}
    train_file = files[0] if len(files) == 1 else train_files[0]
    content = _read(train_file)
    names = _categories(train_file, content)
    samples = _samples(train_file, content, names, broken)
    if len(files) == 1:
        parts = split(samples, seed)
    else:
        parts = samples, _samples(val_files[0], _read(val_files[0]), names, broken)
    classes, ids = [BACKGROUND, *names], [0, *names.values()]
    return things_dataset(str(path), task, classes, parts, broken, ids)


def _read(file: Path) -> dict[str, list]:
    """The three lists of a file; their items are not checked yet."""
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes; at most {MOST_BYTES:,} are read")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{file}: expected COCO's JSON, found {error or 'too much'}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{file}: expected COCO's JSON, found no list {key!r} in it")
    return content


def _categories(file: Path, content: dict[str, list]) -> dict[str, int]:
    """Ids by name, in the order of the ids."""
    names: dict[str, int] = {}
    for category in content["categories"]:
        found = category if isinstance(category, dict) else {}
        name, number = found.get("name"), found.get("id")
        if not isinstance(name, str) or type(number) is not int or number in names.values():
            raise DataError(f"{file}: expected categories with a name and an id, found {category}")
        if name in names:
            raise DataError(f"{file}: expected different names, found category {name!r} twice")
        names[name] = number
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _samples(
    file: Path, content: dict[str, list], names: dict[str, int], broken: dict[str, str]
) -> list[Sample]:
    """A sample for each image, with the annotations that can be read."""
    places = {name: place for place, name in enumerate(names, 1)}
    labels = {id: places.get(name, 0) for name, id in _categories(file, content).items()}
    folder = _folder(file, content["images"])
    samples: dict[Any, Sample] = {}
    for place, image in enumerate(content["images"], 1):
        try:
            sample = _sample(file, folder, image)
            if sample.id in samples:
                raise AnnotationError(f"expected different ids, found {sample.id!r} a second time")
            samples[sample.id] = sample
        except AnnotationError as error:
            broken[f"{file}: image number {place}"] = str(error)
    seen = set()
    for place, note in enumerate(content["annotations"], 1):
        name = f"annotation {note['id']}" if isinstance(note, dict) and "id" in note else ""
        if not name or name in seen:
            name = f"annotation number {place}"
        seen.add(name)
        try:
            image_id = _take(note, "image_id", "number or text")
            if image_id not in samples:
                raise AnnotationError(f"expected an image's id, found {image_id!r:.40}")
            sample = samples[image_id]
            sample.things.append(_thing(name, note, labels, sample.size))
        except AnnotationError as error:
            broken[f"{file}: {name}"] = str(error)
    return list(samples.values())


def _take(entry: Any, key: str, kind: str) -> Any:
    """A value of an entry. Raises AnnotationError if it is missing or of another kind."""
    found = entry.get(key) if isinstance(entry, dict) else None
    if found is None:
        raise AnnotationError(f"expected {key!r}, found none")
    if not isinstance(found, KINDS[kind]):
        raise AnnotationError(f"expected {key!r} to be a {kind}, found {found!r:.40}")
    return found


def _numbers(key: str, values: list) -> list[float]:
    """Raises AnnotationError if they are not numbers."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise AnnotationError(f"expected numbers in {key!r}, found {values!r:.40}") from None


def _sample(file: Path, folder: Path, image: Any) -> Sample:
    """A sample without things. Raises AnnotationError for an invalid image."""
    id, name = _take(image, "id", "number or text"), _take(image, "file_name", "text")
    sides = [_take(image, side, "number") for side in ("width", "height")]
    if not all(0 < side < 2**31 and side == int(side) for side in sides):
        raise AnnotationError(f"expected width and height in pixels, found {sides!r:.60}")
    width, height = map(int, sides)
    if width * height > MAX_PIXELS:
        raise AnnotationError(f"expected at most {MAX_PIXELS:,} pixels, found {width}x{height}")
    return Sample(file, _picture(folder, name), [], (width, height), id)


def _picture(folder: Path, name: str) -> Path:
    """The picture of that name, which may be written as on Windows."""
    exact = folder / name
    return exact if os.path.isfile(exact) else folder / PureWindowsPath(name).as_posix()


def _thing(name: str, note: dict, labels: dict[int, int], size: tuple[int, int] | None) -> Thing:
    """An object. Raises AnnotationError for an invalid one."""
    label = labels.get(_take(note, "category_id", "number"), 0)
    if not label:
        raise AnnotationError(f"expected a known class, found category_id {note['category_id']}")
    box = _numbers("bbox", _take(note, "bbox", "list"))
    if len(box) != 4:
        raise AnnotationError(f"expected a box of 4 numbers, found {len(box)}")
    x, y, width, height = box
    found = note.get("segmentation")
    outline = read_outline(found, size) if found else None
    crowd = read_flag("iscrowd", note.get("iscrowd"))
    [area] = _numbers("area", [note.get("area", -1)])
    edges = (x, y, x + width, y + height)
    return Thing(name, label, edges, outline, crowd, area if 0 <= area < math.inf else None)


def _folder(file: Path, images: list) -> Path:
    """Where the pictures are: the first folder that holds one of the first hundred."""
    names = [image.get("file_name") for image in images[:100] if isinstance(image, dict)]
    part = file.stem.rpartition("_")[2]  # instances_train2017
    parent = file.parent
    places = [parent, parent / "images", parent.parent / part, parent.parent / "images" / part]
    places += [parent / part, parent / "images" / part, parent.parent / "images", parent.parent]
    return next(
        (
            place
            for place in places
            if any(
                isinstance(name, str) and os.path.isfile(_picture(place, name)) for name in names
            )
        ),
        parent,
    )


def coco_truth(data: DenseDataset) -> dict[str, list]:
    """The held-out part as a COCO annotation file, with masks for instances.

    Unreadable pictures are left out. An object without a mask has its box's area.
    """
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for place, (source, picture, known) in enumerate(data.validation()):
        image_id = getattr(source, "id", place)
        images.append({"id": image_id, "width": picture.width, "height": picture.height})
        images[-1]["file_name"] = str(source)
        for i, result in enumerate(coco_results(image_id, known, data.category_ids)):
            note = result | {"id": len(notes) + 1, "iscrowd": int(known.ignored[i])}
            notes.append(note | {"area": float(known.areas[i])})
    categories = [
        {"id": id, "name": name}
        for id, name in zip(data.category_ids[1:], data.classes[1:], strict=True)
    ]
    return {"images": images, "annotations": notes, "categories": categories}


def coco_results(image_id: Any, found: Any, category_ids: list[int]) -> list[dict[str, Any]]:
    """What was found in a picture, in the form that COCO's server takes: one entry per object.

    `found` has `boxes` (n, 4), `labels` (n,) and, if there are any, `scores` (n,) and `masks`
    (n, H, W) bool; `category_ids` maps labels to COCO's numbers.
    """
    results = []
    scores, masks = (getattr(found, name, None) for name in ("scores", "masks"))
    for i, (box, label) in enumerate(zip(found.boxes.tolist(), found.labels.tolist(), strict=True)):
        x0, y0, x1, y1 = box
        corners = [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)]
        result = {"image_id": image_id, "category_id": category_ids[label], "bbox": corners}
        if scores is not None:
            result["score"] = float(scores[i])
        if masks is not None:
            result["segmentation"] = encode(np.asarray(masks[i], bool))
        results.append(result)
    return results
