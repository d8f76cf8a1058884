"""Classes by name: those of networks, of folders and of lines in files."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinygmf.config import Settings
from tinygmf.files import lines_of, one_line, printable, read_text
from tinygmf.image import picture_suffixes, usual_names

CLASSES = "classes.txt"  # beside the weights, where training writes it
IMAGENET = 1000  # classes
SYNSET = re.compile(r"n\d{8}")  # WordNet's number of an ImageNet class
SEPARATORS = re.compile(r"[ \t,;]")
SHOWN = 5  # classes that a message lists


def names_of(
    settings: Settings, num_classes: int, weights: str | os.PathLike[str], file: Path | None = None
) -> list[str]:
    """The names of a network's classes, in their order.

    They come from `file`, if given; else from the weight file; else from classes.txt beside it;
    else they are ImageNet's for 1,000 classes, or the classes' numbers. Raises ValueError if a file
    names more or fewer classes than the network has.
    """
    known = known_names(settings, weights, file)
    if known is None:
        return usual_names(num_classes)
    source, names = known
    if len(names) != num_classes:
        raise ValueError(
            f"{source}: expected {num_classes} lines, the names of {weights}'s classes, found "
            f"{len(names)}: name another file with --classes"
        )
    return names


def known_names(
    settings: Settings, weights: str | os.PathLike[str], file: Path | None = None
) -> tuple[Path, list[str]] | None:
    """The file that names the classes, and the names; None if there is no such file."""
    beside = Path(weights).with_name(CLASSES)
    if file is not None:
        return file, read_names(file)
    if settings.classes:
        return Path(weights), list(settings.classes)
    return (beside, read_names(beside)) if beside.exists() else None


def read_names(path: Path) -> list[str]:
    """The names in a file: one per line, or JSON: a list, names by number or numbers by name.

    Raises ValueError with the file and the line.
    """
    text = _text(path, strict=True)
    if path.suffix.lower() == ".json":
        return _json_names(path, text)
    names = [line.strip() for line in lines_of(text)]
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}, line {number}: expected the name of a class, found none")
    return names


def _json_names(path: Path, text: str) -> list[str]:
    try:
        values = json.loads(text)
        if isinstance(values, dict) and all(type(value) is int for value in values.values()):
            values = {str(number): name for name, number in values.items()}
        if isinstance(values, dict):
            values = [values[str(i)] for i in range(len(values))]
        names = [value[-1] if isinstance(value, list) and value else value for value in values]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = [None]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: expected JSON, a list of names or an object by class number, found another "
            "text: write one name per line"
        )
    return names


def _text(path: Path, strict: bool) -> str:
    try:
        return read_text(path, strict)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}: check the name") from None


class ClassIndex:
    """Class numbers by name. If no class is named by a number, a number means the class with that
    number, unless `numbers` is false.

    Names are compared as written, then in Unicode's composed form, because systems differ there.
    Numeric names are compared as numbers: "07" is "7".
    """

    def __init__(self, names: Sequence[str], numbers: bool = True) -> None:
        self.names = list(names)
        self._exact: dict[str, list[int]] = {}
        self._alike: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            self._exact.setdefault(name, []).append(i)
            self._alike.setdefault(_key(name), []).append(i)
        self._numbered = numbers and not any(map(_is_number, names))

    def __call__(self, name: str) -> int | None:
        """The number of the class with this name, or None; ValueError if two have it."""
        found = self._exact.get(name) or self._alike.get(_key(name), [])
        if len(found) > 1:
            raise ValueError(
                f"{one_line(name)}: expected the name of one class, found that classes "
                f"{', '.join(map(str, found))} all have it: give them other names with --classes"
            )
        if found:
            return found[0]
        numbered = self._numbered and _is_number(name) and int(name) < len(self.names)
        return int(name) if numbered else None

    def __str__(self) -> str:
        """The first few names."""
        dots = ", …" if len(self.names) > SHOWN else ""
        return ", ".join(map(printable, self.names[:SHOWN])) + dots


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) < 10


def _key(name: str) -> str:
    return str(int(name)) if _is_number(name) else unicodedata.normalize("NFC", name)


def folder_classes(folders: Sequence[str], index: ClassIndex, root: Path) -> list[int]:
    """The class of each folder, by its name. Raises ValueError for a folder that is no class.

    ImageNet's folders may be named by WordNet's numbers: sorted, they are the classes in order.
    """
    if len(folders) == len(index.names) and all(SYNSET.fullmatch(name) for name in folders):
        known = [index(name) for name in folders]
        return [i if found is None else found for i, found in enumerate(known)]
    classes: dict[int, str] = {}
    for name in folders:
        found = index(name)
        if found is None or found in classes:
            what = "no class" if found is None else f"the same class as {classes[found]}"
            raise ValueError(
                f"{root}: expected folders named like the network's {len(index.names)} classes "
                f"({index}), found {printable(name)!r}, {what}: rename it, remove it, or give "
                "other names with --classes"
            )
        classes[found] = name
    return list(classes)


def read_labels(folder: Path, index: ClassIndex, labels: Path) -> Iterator[tuple[Path, int]]:
    """The pictures and classes of a file of lines PICTURE CLASS, the name or number of a class.

    A line is split at a comma, semicolon, tab or blank: the last one that has a picture before it
    and a class after it. Comment lines and a first line of headings are skipped. Pictures are
    relative to the folder or to the file. Raises ValueError with the file and the line.
    """
    lines, seen, first = lines_of(_text(labels, strict=False)), dict[Path, int](), True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _sample(line, folder, index, labels)
        if found is None:
            if line.startswith("#") or (first and _is_heading(line)):
                first = first and line.startswith("#")
                continue
            raise ValueError(
                f"{labels}, line {number}: expected a picture, then its class, one of the "
                f"network's {len(index.names)} ({index}), found {one_line(line[:80])!r}"
            )
        (path, label), first = found, False
        if path in seen:
            raise ValueError(
                f"{labels}, line {number}: expected each picture once, found "
                f"{printable(path.name)} in line {seen[path]} too: remove one"
            )
        seen[path] = number
        yield path, label


def _is_heading(line: str) -> bool:
    """Whether a line has words, none of which ends like a picture's name."""
    words = [word.strip("\"' ") for word in SEPARATORS.split(line)]
    pictures = any(Path(word).suffix.lower() in picture_suffixes() for word in words)
    return bool(re.search(r"[^\W\d]", line)) and not pictures


def _sample(line: str, folder: Path, index: ClassIndex, labels: Path) -> tuple[Path, int] | None:
    """A line's picture and class: the last split at which the picture exists, or else the last."""
    likely = None
    for cut in reversed([match.start() for match in SEPARATORS.finditer(line)]):
        label = index(_unquoted(line[cut + 1 :].strip()))
        name = line[:cut]
        if label is None or not name.strip():
            continue
        for path in _places(name, folder, labels.parent):
            if os.path.isfile(path):  # Path's own method raises for a name that is too long
                return path, label
        likely = likely or (folder / _unquoted(name.rstrip(" \t,;")), label)
    return likely


def _places(name: str, *roots: Path) -> Iterator[Path]:
    """Where a picture of this name may be: as written, in either Unicode form, or with the other
    system's slashes."""
    for written in dict.fromkeys((name, name.rstrip(" \t"), _unquoted(name.strip()))):
        for slashes in dict.fromkeys((written, written.replace("\\", "/"))):
            forms = unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes)
            for spelled in dict.fromkeys((slashes, *forms)):
                yield from (root / spelled for root in roots)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text
