"""Pictures with their classes, to train on, and batches of them in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tinygmf.config import Settings
from tinygmf.data.augment import BatchRecipe, mix, targets, training_picture
from tinygmf.data.kept import Kept, kept_pictures, reduced
from tinygmf.data.pictures import Skipped
from tinygmf.engine.predictor import chunks, read_ahead
from tinygmf.files import one_line
from tinygmf.image import PUBLISHED, normalize, resize_and_crop
from tinygmf.pixels import ImageError

# What random numbers are used for: each has its own generator
ORDER, PICTURE, MIX, BRANCHES = range(4)

Result = TypeVar("Result")


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass
class Dataset:
    """Pictures for training and validation and, if the data set has them, for a final test.

    `load(source)` returns an RGB picture, or raises ImageError; a source may be a path, an array,
    or anything else that the function accepts.
    """

    name: str
    classes: list[str]
    train: list[Any]
    train_labels: np.ndarray
    val: list[Any]
    val_labels: np.ndarray
    load: Callable[[Any], Image.Image]
    broken: dict[str, str] = field(default_factory=dict)  # skipped: source -> why
    skipped: Skipped = field(default_factory=Skipped)  # while looking for pictures
    settings: Settings = PUBLISHED  # how pictures are prepared for the network
    kept: Kept[Image.Image] = field(default_factory=kept_pictures)
    test: list[Any] = field(default_factory=list)  # neither trained on nor used for any choice
    test_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def counts(self) -> np.ndarray:
        """The number of training pictures of each class."""
        return np.bincount(self.train_labels, minlength=len(self.classes))

    def typical_side(self, most: int = 16) -> int:
        """The median of the shorter sides, in pixels, of up to `most` pictures."""
        sides = []
        for source in self.train[:: -(-len(self.train) // most)]:
            with suppress(ImageError):
                sides.append(min(self.load(source).size))
        return int(np.median(sides)) if sides else 0

    def check(self, batch_size: int) -> None:
        """Raise DataError if there is too little to train on."""
        if len(self.classes) < 2:
            raise DataError(
                f"{self.name}: expected at least two classes, found {self.classes}: "
                "make one folder for each class"
            )
        counts = self.counts
        if not counts.all():
            empty = self.classes[int(counts.argmin())]
            raise DataError(
                f"{self.name}: expected pictures of every class to train on, found none of "
                f"{empty!r}: add some, or remove the class"
            )
        if not len(self.val):
            raise DataError(f"{self.name}: expected pictures to validate on, found none: add some")
        if len(self.train) < batch_size:
            raise DataError(
                f"{self.name}: expected at least one batch of {batch_size} pictures to train on, "
                f"found {len(self.train)}: give a smaller --batch-size"
            )
        for sources, part in ((self.train, "train"), (self.val, "validate")):
            self._check_readable(sources, part)

    def _check_readable(self, sources: list[Any], part: str) -> None:
        """Raise DataError if none of the pictures can be read."""
        reason = ""
        for source in sources:
            try:
                self.load(source)
                return
            except ImageError as error:
                reason = str(error)
        raise DataError(
            f"{self.name}: expected pictures to {part} on, found none of {len(sources)} that can "
            f"be read; the last one: {reason}"
        )

    def report(self) -> list[str]:
        """A line for each picture that was skipped."""
        return list(self.broken.values())

    def read(
        self, index: int, rng: np.random.Generator, recipe: BatchRecipe
    ) -> tuple[np.ndarray, int]:
        """An augmented picture (3, size, size) and its class; the next one if it is broken."""
        for i in range(len(self.train)):
            place = (index + i) % len(self.train)
            try:
                picture = self._decoded(self.train[place], recipe)
                array = training_picture(picture, recipe, rng, self.settings)
                return array, int(self.train_labels[place])
            except ImageError as error:
                self.broken[str(self.train[place])] = str(error)
        raise DataError(
            f"{self.name}: expected pictures to train on, found that none can be read any more: "
            "check that they are still there"
        )

    def _decoded(self, source: Any, recipe: BatchRecipe) -> Image.Image:
        """A training picture; one that comes from a file is kept."""
        if not isinstance(source, str | os.PathLike):
            return self.load(source)
        key = "train", source, recipe.size, recipe.crop
        return self.kept.get(key, lambda: reduced(self.load(source), recipe))

    def _cut(self, source: Any, size: int) -> Image.Image:
        """A validation picture as the network sees it."""

        def cut() -> Image.Image:
            return resize_and_crop(self.load(source), size, self.settings)

        kept = isinstance(source, str | os.PathLike)
        return self.kept.get(("val", source, size, self.settings.crop), cut) if kept else cut()

    def batches(
        self, recipe: BatchRecipe, epoch: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch from number `first` on: pictures (B, 3, S, S), targets (B, C).

        They depend only on the recipe, its seed and the epoch. Threads decode a little ahead.
        """
        size, seed = recipe.batch_size, recipe.seed
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(self.train))
        wanted = order[first * size : len(order) // size * size]

        def read(index: int) -> tuple[np.ndarray, int]:
            return self.read(index, np.random.default_rng([seed, PICTURE, epoch, index]), recipe)

        shape = 3, recipe.size, recipe.size
        batches = in_batches(read, map(int, wanted), size, shape)
        for number, (pictures, labels) in enumerate(batches, first):
            rows = targets(np.array(labels), len(self.classes), recipe.label_smoothing)
            yield mix(pictures, rows, recipe, np.random.default_rng([seed, MIX, epoch, number]))

    def validation(self, size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of pictures (n, 3, size, size) as `classify` sees them, and their classes."""

        def read(index: int) -> tuple[np.ndarray, int] | None:
            try:
                array = normalize(self._cut(self.val[index], size), self.settings)
                return array, int(self.val_labels[index])
            except ImageError as error:
                self.broken[str(self.val[index])] = str(error)
                return None

        found = (pair for pair in read_ahead(read, range(len(self.val))) if pair is not None)
        for batch in chunks(found, batch_size):
            yield np.stack([picture for picture, _ in batch]), np.array([y for _, y in batch])


def in_batches(
    read: Callable[[int], tuple[np.ndarray, Result]],
    numbers: Iterable[int],
    size: int,
    shape: tuple[int, ...],
) -> Iterator[tuple[np.ndarray, list[Result]]]:
    """Batches of what `read` returns for each number: an array of this shape, and something else.

    Threads read a little ahead, and copy each array to its place in the batch.
    """

    def places() -> Iterator[tuple[np.ndarray, int, int]]:
        for few in chunks(numbers, size):
            batch = np.empty((len(few), *shape), np.float32)
            yield from ((batch, slot, number) for slot, number in enumerate(few))

    def fill(place: tuple[np.ndarray, int, int]) -> tuple[np.ndarray, Result]:
        batch, slot, number = place
        batch[slot], other = read(number)
        return batch, other

    for filled in chunks(read_ahead(fill, places()), size):
        yield filled[0][0], [other for _, other in filled]


def every_nth(labels: np.ndarray, n: int) -> np.ndarray:
    """What to hold out, booleans (N,): of each class the first entry and every n-th after it, but
    never its only entry, which is kept for training."""
    chosen = np.zeros(len(labels), bool)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count > 1:
            chosen[np.flatnonzero(labels == label)[::n]] = True
    return chosen
