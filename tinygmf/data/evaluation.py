"""Accuracy on a folder of labelled pictures, in the layout of ImageNet's validation set."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tinygmf.engine.predictor import Predictor, chunks, ranking, read_ahead
from tinygmf.image import ImageError

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
Sample = tuple[Path, int]  # a picture and its class


@dataclass
class Evaluation:
    """What was counted. `confusion[t, p]` pictures of class t were taken for class p."""

    confusion: np.ndarray
    top5: int = 0  # pictures whose class is among the five likeliest
    seconds: float = 0.0
    unreadable: list[str] = field(default_factory=list)  # one line for each

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> int:
        return int(np.trace(self.confusion))

    def as_json(self) -> dict[str, Any]:
        """Everything, the confusion table as {true class: {predicted class: count}}."""
        rows = {
            str(t): {str(p): int(row[p]) for p in np.flatnonzero(row)}
            for t, row in enumerate(self.confusion)
            if row.any()
        }
        return {
            "pictures": self.count,
            "top1": self.top1 / max(self.count, 1),
            "top5": self.top5 / max(self.count, 1),
            "pictures_per_second": self.count / max(self.seconds, 1e-9),
            "unreadable": self.unreadable,
            "confusion": rows,
        }


def find_pictures(folder: Path, num_classes: int, labels: Path | None = None) -> list[Sample]:
    """The pictures below a folder with their classes.

    With `labels`, a file of lines `PICTURE CLASS`: those pictures, relative to the folder. Without,
    one folder for each class: folders named by numbers are those classes, any others count from 0
    in the order of their names. Raises ValueError where that gives no classes of this network.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of pictures, found none: check the name")
    if labels is not None:
        return list(_read_labels(folder, num_classes, labels))
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if names and all(name.isdecimal() and int(name) < num_classes for name in names):
        classes = {name: int(name) for name in names}
    elif len(names) == num_classes:
        classes = {name: i for i, name in enumerate(names)}
    else:
        raise ValueError(
            f"{folder}: expected {num_classes} folders, one for each class of the network, found "
            f"{len(names)}: name them by class number, or give a file of labels"
        )
    samples = [
        (path, classes[name])
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in PICTURES
    ]
    if not samples:
        raise ValueError(f"{folder}: expected pictures in its folders, found none")
    return samples


def _read_labels(folder: Path, num_classes: int, labels: Path) -> Iterator[Sample]:
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace(",", " ").rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= num_classes:
            raise ValueError(
                f"{labels}, line {number}: expected a picture and a class below {num_classes}, "
                f"found {line[:80]!r}"
            )
        yield folder / name.strip(), int(label)


def evaluate(predict: Predictor, samples: Iterable[Sample], progress: bool = True) -> Evaluation:
    """Runs every picture through the network; the unreadable are named and passed over."""

    def read(sample: Sample) -> tuple[int, np.ndarray | ImageError]:
        path, label = sample
        try:
            return label, predict.read(path)
        except ImageError as error:
            return label, error

    classes = predict.config.num_classes
    result = Evaluation(np.zeros((classes, classes), np.int64))
    samples = list(samples)
    start = time.perf_counter()
    with tqdm(total=len(samples), unit=" pictures", disable=None if progress else True) as bar:
        for chunk in chunks(read_ahead(read, samples), predict.batch_size):
            _count(predict, chunk, result)
            bar.update(len(chunk))
            bar.set_postfix(top1=f"{result.top1 / max(result.count, 1):.2%}")
    result.seconds = time.perf_counter() - start
    return result


def count_correct(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> int:
    """How many rows of logits (N, classes) have their label (N,) among the k likeliest classes."""
    return int((ranking(logits)[:, :k] == np.asarray(labels)[:, None]).any(1).sum())


def _count(
    predict: Predictor, chunk: list[tuple[int, np.ndarray | ImageError]], result: Evaluation
) -> None:
    result.unreadable += [str(read) for _, read in chunk if isinstance(read, ImageError)]
    readable = [(label, array) for label, array in chunk if not isinstance(array, ImageError)]
    if not readable:
        return
    logits = predict.run(np.stack([array for _, array in readable]))
    labels = np.array([label for label, _ in readable])
    np.add.at(result.confusion, (labels, ranking(logits)[:, 0]), 1)
    result.top5 += count_correct(logits, labels, 5)
