"""Data sets for segmentation and detection: pictures with annotations, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tinygmf.data.annotations import IGNORE, Annotations
from tinygmf.data.dataset import ORDER, PICTURE, DataError, in_batches
from tinygmf.data.dense_augment import DenseAugment
from tinygmf.image import ImageError, normalize

SHOWN = 5  # broken entries that a report lists


@dataclass
class DenseDataset:
    """Pictures for training and validation, with their annotations.

    If objects are annotated, `classes[0]` is the background. `load(source)` returns an RGB picture
    and its annotations, or raises ImageError. `broken` records what was skipped, when the data
    set was opened or later, and why: file and id -> reason.
    """

    name: str
    task: str  # one of TASKS
    classes: list[str]
    train: list[Any]
    val: list[Any]
    load: Callable[[Any], tuple[Image.Image, Annotations]]
    broken: dict[str, str] = field(default_factory=dict)
    category_ids: list[int] = field(default_factory=list)  # COCO's, one per class

    def __post_init__(self) -> None:
        self.category_ids = self.category_ids or list(range(len(self.classes)))

    def check(self) -> None:
        """Raise DataError if nothing is left for training or for validation, or if a class map
        cannot hold the classes."""
        if len(self.classes) < 2:
            raise DataError(f"{self.name}: expected two classes or more, found {self.classes}")
        if self.task == "segment" and len(self.classes) > IGNORE:
            raise DataError(
                f"{self.name}: expected at most {IGNORE} classes to segment, found "
                f"{len(self.classes)}: leave some out"
            )
        for sources, part in ((self.train, "train"), (self.val, "validate")):
            if not any(True for _ in self._readable(sources)):
                found = next(reversed(self.broken.items()), ("the folder", "it is empty"))
                raise DataError(
                    f"{self.name}: expected pictures to {part} on, found none that is intact; the "
                    f"last: {found[0]}: {found[1]}"
                )

    def report(self) -> list[str]:
        """Lines that count and name what is broken; none if nothing is."""
        if not self.broken:
            return []
        first = list(self.broken.items())[:SHOWN]
        named = [f"  {name}: {why.removeprefix(f'{name}: ')}" for name, why in first]
        more = [f"  and {len(self.broken) - SHOWN} more"] if len(self.broken) > SHOWN else []
        return [f"{self.name}: {len(self.broken)} bad annotations or pictures", *named, *more]

    def _readable(self, sources: Iterable[Any]) -> Iterator[tuple[Any, Image.Image, Annotations]]:
        for source in sources:
            try:
                yield source, *self.load(source)
            except ImageError as error:
                self.broken[str(source)] = str(error)

    def read(self, index: int, augment: DenseAugment, rng: np.random.Generator) -> tuple:
        """Picture `index`, augmented and normalized, (3, S, S), and its annotations; the next one
        if it is broken. Raises DataError if all are broken."""
        count = len(self.train)
        sources = (self.train[(index + i) % count] for i in range(count))
        for _, picture, known in self._readable(sources):
            picture, known = augment(picture, known, rng)
            return normalize(picture), known
        raise DataError(f"{self.name}: expected pictures to train on, found none that can be read")

    def batches(
        self, augment: DenseAugment, batch_size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, list[Annotations]]]:
        """The batches of an epoch from number `first` on: pictures (B, 3, S, S), annotations.

        They depend only on the arguments. Threads decode a little ahead.
        """
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(self.train))
        wanted = order[first * batch_size : len(order) // batch_size * batch_size]

        def read(index: int) -> tuple[np.ndarray, Annotations]:
            return self.read(index, augment, np.random.default_rng([seed, PICTURE, epoch, index]))

        shape = 3, augment.size, augment.size
        yield from in_batches(read, map(int, wanted), batch_size, shape)

    def validation(self) -> Iterator[tuple[Any, Image.Image, Annotations]]:
        """Source, picture and annotations, unchanged, of every intact held-out picture."""
        yield from self._readable(self.val)
