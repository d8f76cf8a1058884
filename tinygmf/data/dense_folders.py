"""Recognizes the format of annotated pictures by what lies in their folder."""

from __future__ import annotations

from pathlib import Path

from tinygmf.data.annotations import TASKS
from tinygmf.data.coco import coco_dataset, coco_files
from tinygmf.data.dataset import DataError
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.dense_files import pictures_below
from tinygmf.data.mask_folders import find_masks, mask_dataset
from tinygmf.data.scenes import scenes
from tinygmf.data.voc import voc_dataset
from tinygmf.data.yolo import find_settings, label_file, yolo_dataset

FORMATS = (
    "COCO's JSON, Pascal VOC's XML, YOLO's labels, or folders of pictures and of masks such as "
    "images/ and masks/"
)


def open_dense(data: str | Path, task: str, seed: int = 0) -> DenseDataset:
    """The data set `scenes`, a folder, or an annotation file (JSON or YAML), for a task of `TASKS`.

    The validation part is the format's, or else a fifth chosen by the seed. Raises DataError, in
    one line, if nothing is recognized or all of it is bad.
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, found {task!r}")
    if str(data) == "scenes":
        return scenes(task, seed)
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: expected annotated pictures, found none: check the name")
    found = _open(path, task, seed)
    found.check()
    return found


def _open(path: Path, task: str, seed: int) -> DenseDataset:
    if path.is_file():
        if path.suffix.lower() == ".json":
            return coco_dataset(path, [path], task, seed)
        if path.suffix.lower() in (".yaml", ".yml"):
            return yolo_dataset(path, task, seed)
        raise DataError(f"{path}: expected a folder, JSON or YAML, found another file: name those")
    if files := coco_files(path):
        return coco_dataset(path, files, task, seed)
    if find_settings(path):
        return yolo_dataset(path, task, seed)
    if task == "segment" and (pairs := find_masks(path)):
        return mask_dataset(path, pairs, seed)
    if xml := sorted(path.rglob("*.xml")):
        return voc_dataset(path, xml, task, seed)
    if any(label_file(picture).is_file() for picture in pictures_below(path)):
        return yolo_dataset(path, task, seed)
    if find_masks(path):
        raise DataError(
            f"{path}: expected single objects to {task}, found masks of classes, which do not tell "
            "objects apart: use --task segment"
        )
    raise DataError(f"{path}: expected {FORMATS}, found none of them: check the folder's name")
