"""Which files in people's folders are pictures, and which folders are classes.

Whatever is skipped is counted and reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinygmf.files import printable
from tinygmf.image import looks_like_picture, picture_suffixes

# Names that systems and programs leave among people's files, besides those with a leading dot.
SYSTEM = {
    *("__macosx", "@eadir", "@tmp", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "system volume information"),
    *("lost+found", "__pycache__"),
}
LOCK = ".run.lock"  # held by a training run in its folder
RUN_MARKS = LOCK, "run.safetensors", "log.jsonl"
SHOWN = 3  # names of each kind that a message lists

NOT_PICTURES = "files that are not pictures"
HEIC = "photographs in HEIC, readable after pip install pillow-heif"
SYSTEM_NAMES = "hidden or system names"
RUNS = "folders of runs"
LOOPS = "links to folders already seen"
CLOSED = "folders that cannot be read"
BESIDE = "pictures beside the class folders"
NESTED = "folders that hold only folders"


@dataclass
class Skipped:
    """Names that were skipped, grouped by what they are."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, path: Path) -> None:
        self.names.setdefault(kind, []).append(path.name)

    def count(self) -> str:
        """`40 skipped (.heic, .txt)`: files and folders, and the files' suffixes."""
        names = [name for found in self.names.values() for name in found]
        suffixes = sorted({Path(name).suffix.lower() for name in names} - {""})
        shown = [*map(printable, suffixes[:SHOWN]), *["…"][: len(suffixes) > SHOWN]]
        return f"{len(names)} skipped" + (f" ({', '.join(shown)})" if shown else "")

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        """`files that are not pictures (4: a.txt, b.txt, c.md, …), …`; empty for nothing."""
        parts = []
        for kind, names in self.names.items():
            dots = ", …" if len(names) > SHOWN else ""
            shown = ", ".join(map(printable, names[:SHOWN]))
            parts.append(f"{kind} ({len(names)}: {shown}{dots})")
        return ", ".join(parts)


def kind_of_file(path: Path) -> str:
    """The group of a file that is not a picture."""
    return HEIC if path.suffix.lower() in (".heic", ".heif", ".hif") else NOT_PICTURES


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key for names that compares the numbers in them as numbers: 9 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_system(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM


def is_run(folder: Path) -> bool:
    """Whether the folder holds the files of a training run."""
    return any((folder / name).is_file() for name in RUN_MARKS)


def is_picture(path: Path) -> bool:
    """By suffix, else by content. A broken picture counts: reading it will name it."""
    return path.suffix.lower() in picture_suffixes() or looks_like_picture(path)


def entries(folder: Path, skipped: Skipped) -> list[Path]:
    """The contents of a folder without system names, in natural order."""
    try:
        names = os.listdir(folder)
    except OSError:
        skipped.note(CLOSED, folder)
        return []
    found = [folder / name for name in sorted(names, key=natural)]
    for path in found:
        if is_system(path.name) and path.name not in RUN_MARKS:
            skipped.note(SYSTEM_NAMES, path)
    return [path for path in found if not is_system(path.name)]


def pictures_below(
    folder: Path, skipped: Skipped, exclude: Collection[Path] = ()
) -> Iterator[Path]:
    """The pictures in a folder and the folders in it, in natural order.

    Links are followed, but no folder is entered twice, nor any that contains this one. `exclude`
    lists resolved folders to leave out; runs are always left out.
    """
    whole = folder.resolve()
    yield from _below(folder, skipped, {*exclude}, {whole, *whole.parents})


def _below(folder: Path, skipped: Skipped, exclude: set[Path], seen: set[Path]) -> Iterator[Path]:
    for path in entries(folder, skipped):
        if not path.is_dir():
            if is_picture(path):
                yield path
            else:
                skipped.note(kind_of_file(path), path)
        elif (place := path.resolve()) in seen:
            skipped.note(LOOPS, path)
        elif place in exclude or is_run(path):
            skipped.note(RUNS, path)
        else:
            seen.add(place)
            yield from _below(path, skipped, exclude, seen)


def class_folders(root: Path, skipped: Skipped, exclude: Collection[Path] = ()) -> dict[str, Path]:
    """The class folders in a folder, by name, in natural order.

    A class folder may be empty. Runs, links back and folders that hold only folders do not count.
    """
    found, above = {}, {root.resolve(), *root.resolve().parents}
    for path in entries(root, skipped):
        if not path.is_dir():
            skipped.note(BESIDE if is_picture(path) else kind_of_file(path), path)
        elif path.resolve() in above:
            skipped.note(LOOPS, path)
        elif path.resolve() in exclude or is_run(path):
            skipped.note(RUNS, path)
        elif holds_only_folders(path):
            skipped.note(NESTED, path)
        else:
            found[path.name] = path
    return found


def holds_only_folders(folder: Path) -> bool:
    inside = entries(folder, Skipped())
    return bool(inside) and all(path.is_dir() for path in inside)
