"""The pictures that a command line names: files, folders, globs, and `-` for standard input."""

from __future__ import annotations

import argparse
import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tinygmf.data.pictures import Skipped, is_picture, kind_of_file, natural, pictures_below
from tinygmf.engine.predictor import read_ahead
from tinygmf.files import printable
from tinygmf.image import Picture, begins_as_picture, decode
from tinygmf.pixels import ImageError

Result = TypeVar("Result")
Named = tuple[str, Picture]  # what to call a picture, and the picture


def add_pictures(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "images",
        nargs="+" if required else "*",
        metavar="PICTURE",
        help="files, folders, globs, or - for standard input: a picture, or names, one per line",
    )


class Pictures:
    """Reads the pictures that `words` name, in order, and skips broken ones.

    `count` were read; `broken` were reported on standard error. `finish` returns the exit code.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words, self.skipped = list(words), Skipped()
        self.count = self.broken = 0
        self._first: str | None = None  # why the first was broken, until that is reported

    def read(self, read: Callable[[Picture], Result]) -> Iterator[tuple[str, Result]]:
        """The name of each picture and what `read` makes of it; threads read a little ahead."""

        def attempt(named: Named) -> tuple[str, Result | ImageError]:
            name, picture = named
            try:
                return name, read(picture)
            except ImageError as error:
                return name, error

        for name, result in read_ahead(attempt, named_pictures(self.words, self.skipped)):
            if isinstance(result, ImageError):
                self._tell(str(result))
                continue
            self._tell(None)
            self.count += 1
            yield name, result

    def _tell(self, error: str | None) -> None:
        """Report a broken picture. The first one waits: it is an error if it is the only one."""
        waiting = [self._first] if self._first else []
        self._first = None
        if error is not None:
            self.broken += 1
            if self.broken == 1 and not self.count:
                self._first = error
            else:
                waiting.append(error)
        for line in waiting:
            print(f"skipped: {line}", file=sys.stderr)

    def finish(self) -> int:
        """0, or 1 if pictures were skipped. Raises ValueError if none could be read."""
        if self._first:
            raise ValueError(self._first)
        if not self.count:
            found = f"{self.broken} that cannot be read" if self.broken else "none"
            also = f"; skipped {self.skipped}" if self.skipped else ""
            named = ", ".join(map(printable, self.words[:3]))
            raise ValueError(f"{named}: expected pictures, found {found}{also}")
        if self.skipped:
            print(f"skipped: {self.skipped}", file=sys.stderr)
        if self.broken:
            total = self.count + self.broken
            print(f"{self.broken} of {total} pictures cannot be read", file=sys.stderr)
        return int(self.broken > 0)


def named_pictures(words: Iterable[str], skipped: Skipped) -> Iterator[Named]:
    """The pictures that each word names, in natural order within folders and globs."""
    for word in words:
        if word == "-":
            yield from _standard_input(skipped)
        elif glob.has_magic(word) and not os.path.lexists(word):
            matches = sorted(glob.glob(word, recursive=True), key=natural)
            for match in matches or [word]:
                if matches and not (os.path.isdir(match) or is_picture(Path(match))):
                    skipped.note(kind_of_file(Path(match)), Path(match))
                else:
                    yield from _file_or_folder(match, skipped)
        else:
            yield from _file_or_folder(word, skipped)


def _file_or_folder(name: str, skipped: Skipped) -> Iterator[Named]:
    if os.path.isdir(name):
        yield from ((str(path), path) for path in pictures_below(Path(name), skipped))
    else:
        yield name, name


def _standard_input(skipped: Skipped) -> Iterator[Named]:
    """A picture, or names of pictures: one per line, or ended by zero bytes (`find -print0`)."""
    data = sys.stdin.buffer.read() if sys.stdin else b""
    if not data:
        raise ValueError("standard input: expected a picture or names of pictures, found nothing")
    if begins_as_picture(io.BytesIO(data)):
        try:
            yield "-", decode(io.BytesIO(data))
        except ImageError as error:
            raise ValueError(f"standard input: {error}") from None
        return
    for line in data.split(b"\0" if b"\0" in data else b"\n"):
        name = os.fsdecode(line.removesuffix(b"\r"))
        if name:
            yield from _file_or_folder(name, skipped)
