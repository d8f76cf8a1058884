"""Accuracy on a folder of labeled pictures: one folder for each class, or a file of labels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from tinygmf.data.classes import ClassIndex, folder_classes, read_labels
from tinygmf.data.pictures import NESTED, Skipped, class_folders, pictures_below
from tinygmf.engine.predictor import Predictor, chunks, probabilities, ranking, read_ahead
from tinygmf.files import printable
from tinygmf.pixels import ImageError

Sample = tuple[Any, int]  # a picture, such as its path, and its class
WORST = 20  # wrong answers that a report lists


class Answer(NamedTuple):
    """A network's answer for one picture."""

    source: Any  # where the picture comes from
    label: int  # its class
    answer: int  # the likeliest class
    probability: float  # of that class
    of_truth: float  # the probability of the true class

    @property
    def right(self) -> bool:
        return self.answer == self.label

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        return {
            "image": str(self.source),
            "class": names[self.label],
            "answer": names[self.answer],
            "probability": self.probability,
            "probability_of_class": self.of_truth,
        }


@dataclass
class Evaluation:
    """The counts. `confusion[t, p]` pictures of class t were classified as p."""

    confusion: np.ndarray
    top5: int = 0  # pictures whose class was among the five likeliest
    seconds: float = 0.0
    unreadable: list[str] = field(default_factory=list)  # one line each
    answers: list[Answer] = field(default_factory=list)

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> int:
        return int(np.trace(self.confusion))

    def by_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """For each class with pictures: name, pictures, how many were right, their share."""
        counts, right = self.confusion.sum(1), np.diag(self.confusion)
        return [
            {
                "class": names[i],
                "pictures": int(counts[i]),
                "right": int(right[i]),
                "top1": float(right[i] / counts[i]),
            }
            for i in map(int, np.flatnonzero(counts))
        ]

    def worst(self, most: int) -> list[Answer]:
        """Up to `most` answers, the wrong ones first, then by the true class's probability."""
        return sorted(self.answers, key=lambda one: (one.right, one.of_truth))[:most]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Everything by class name, the confusion as {true class: {answer: count}}."""
        names = distinct(names)
        rows = {
            names[t]: {names[p]: int(row[p]) for p in np.flatnonzero(row)}
            for t, row in enumerate(self.confusion)
            if row.any()
        }
        return {
            "pictures": self.count,
            "top1": self.top1 / self.count,
            "top5": self.top5 / self.count,
            "pictures_per_second": self.count / max(self.seconds, 1e-9),
            "unreadable": self.unreadable,
            "by_class": self.by_class(names),
            "confusion": rows,
            "worst": [one.as_json(names) for one in self.worst(WORST) if not one.right],
        }


def distinct(names: Sequence[str]) -> list[str]:
    """The names; those that occur twice, as ImageNet's cranes do, are followed by their numbers."""
    times = Counter(names)
    return [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]


def find_pictures(
    folder: Path, names: Sequence[str], labels: Path | None = None, skipped: Skipped | None = None
) -> list[Sample]:
    """The pictures below a folder with their classes; `names` are the network's, in its order.

    With `labels`, a file of lines `PICTURE CLASS`, they are the pictures listed there. Without,
    there is one folder for each class, named like it; some may be missing. `skipped` records what
    is skipped. Raises ValueError if these are not classes of the network, or there are no
    pictures.
    """
    skipped = Skipped() if skipped is None else skipped
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of pictures, found none: check the name")
    index = ClassIndex(names)
    if labels is not None:
        samples = list(read_labels(folder, index, labels))
    else:
        folders = class_folders(folder, skipped)
        classes = folder_classes(list(folders), index, folder)
        samples = [
            (path, label)
            for place, label in zip(folders.values(), classes, strict=True)
            for path in pictures_below(place, skipped)
        ]
    if not samples:
        raise ValueError(f"{labels or folder}: {_nothing(skipped, labels)}")
    return samples


def _nothing(skipped: Skipped, labels: Path | None) -> str:
    expected = "pictures and their classes" if labels else "pictures in a folder for each class"
    nested = skipped.names.get(NESTED, [])
    way = f"name one of those, such as {printable(nested[0])}" if nested else "check the name"
    return f"expected {expected}, found none of them, but {skipped or 'nothing'}: {way}"


def evaluate(
    predict: Predictor,
    samples: Iterable[Sample],
    progress: bool = True,
    load: Callable[[Any], Any] | None = None,
) -> Evaluation:
    """Run every picture through the network; unreadable ones are named and skipped.

    `load(source)` returns a picture, for sources that the predictor cannot read itself. Raises
    ValueError if no picture can be read.
    """

    def read(sample: Sample) -> tuple[Sample, np.ndarray | ImageError]:
        source, _ = sample
        try:
            return sample, predict.read(load(source) if load else source)
        except ImageError as error:
            return sample, error

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
    if not result.count:
        last = f"; the last one: {result.unreadable[-1]}" if result.unreadable else ""
        raise ValueError(
            f"expected pictures to measure on, found none of {len(samples)} that can be read{last}"
        )
    return result


def count_correct(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> int:
    """How many rows of logits (N, classes) rank their label (N,) among the k likeliest classes."""
    return int((ranking(logits)[:, :k] == np.asarray(labels)[:, None]).any(1).sum())


def _count(
    predict: Predictor, chunk: list[tuple[Sample, np.ndarray | ImageError]], result: Evaluation
) -> None:
    result.unreadable += [str(read) for _, read in chunk if isinstance(read, ImageError)]
    readable = [(sample, array) for sample, array in chunk if not isinstance(array, ImageError)]
    if not readable:
        return
    logits = predict.run(np.stack([array for _, array in readable]))
    labels = np.array([label for (_, label), _ in readable])
    best = ranking(logits)[:, 0]
    np.add.at(result.confusion, (labels, best), 1)
    result.top5 += count_correct(logits, labels, 5)
    for (sample, _), row, answer in zip(readable, probabilities(logits), best, strict=True):
        result.answers.append(
            Answer(*sample, int(answer), float(row[answer]), float(row[sample[1]]))
        )
