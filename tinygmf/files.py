"""Writing files so that none is ever lost or half-written; reading people's text files."""

import difflib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_MESSAGE = 600  # characters: a file can choose long names
STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}


def one_line(message: str) -> str:
    """An error's text as one line of bounded length, without control characters."""
    line = printable(" ".join(message[: 4 * MAX_MESSAGE].split()))
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def printable(name: str) -> str:
    """A file name for a terminal or a list: characters that cannot be shown, such as line feeds and
    undecodable bytes, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def counted(number: int, noun: str) -> str:
    """`1 class`, `2 classes`, `0 pictures`"""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that it resembles, if any does."""
    near = difflib.get_close_matches(word, list(names), 1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def is_private(found: os.stat_result) -> bool:
    """Whether this is a regular file, not a link, that is this user's and no other can write."""
    own = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)
    return own and stat.S_ISREG(found.st_mode)


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the name `path` when the block succeeds.

    Until then it has another name in the same folder; if the block raises, it is removed and what
    was at `path` stays. A link stays a link: its target is replaced. A device, a pipe or an open
    stream such as /dev/stdout is written to directly. `mode` is limited by the umask; a file that
    is replaced passes on its mode. Raises OSError.
    """
    old = _status(path)
    if (stream := _open_stream(path, old)) is not None:
        with stream:
            yield stream
        return
    if old is not None and mode == 0o666:
        mode = stat.S_IMODE(old.st_mode)
    with replacing_itself(os.path.realpath(path), mode) as file:
        yield file


@contextmanager
def replacing_itself(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """What `replacing` does, but a link or a device at `path` is itself replaced: for our own cache
    folders, where another user's link must not be followed."""
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: `path` may have no room
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove files that `replacing` left behind when its process was killed."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name):
            path.unlink()


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What is at `path`, following links; None for nothing. OSError if no file can be written."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(21, "Is a directory", os.fspath(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return found


def _open_stream(path: str | os.PathLike[str], old: os.stat_result | None) -> BinaryIO | None:
    """The device, pipe or open descriptor at `path`, for writing; None if a file belongs there."""
    name = os.path.abspath(path)
    number = re.fullmatch(r"(?:/dev/fd|/proc/self/fd)/(\d+)", name)
    descriptor = int(number[1]) if number else STREAMS.get(name)
    if descriptor is None and old is not None:  # standard output or error is this file
        descriptor = next((n for n in (1, 2) if _is_open_at(n, old)), None)
    if descriptor is not None:
        for text in filter(None, (sys.stdout, sys.stderr)):
            text.flush()
        return os.fdopen(os.dup(descriptor), "wb")
    if old is None or stat.S_ISREG(old.st_mode):
        return None
    return open(path, "wb")


def _is_open_at(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found) and stat.S_ISREG(found.st_mode)
    except OSError:
        return False


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError, in one line, if a result could not be written, before time is spent on it.
    Nothing is left behind."""
    try:
        old = _status(path)
        if old is None or stat.S_ISREG(old.st_mode):
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
    except OSError as error:
        raise ValueError(
            f"{one_line(os.fspath(path))}: cannot be written: {error.strerror}: choose another "
            "path, or make its folder"
        ) from None


def make_folder(path: Path) -> None:
    """Make the folder that results are written to. Raises ValueError, in one line."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = "a file of this name" if path.is_file() else error.strerror
        raise ValueError(
            f"--out {one_line(str(path))}: expected a folder, new or not, found {found}: choose "
            "another"
        ) from None


def read_text(path: str | os.PathLike[str], strict: bool = True) -> str:
    """Read a text file as editors and spreadsheets write it: UTF-8 or, by its mark, UTF-16.

    Other bytes raise ValueError, which names file and line; unless `strict`, they become the
    surrogates that file names have for them. Raises OSError.
    """
    data = Path(path).read_bytes()
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return _decoded(path, data, encoding, True)
    half = data[:400]
    if half.count(0) * 3 > len(half):  # no mark, but every other byte is zero
        return _decoded(path, data, "utf-16-be" if half[:1] == b"\0" else "utf-16-le", True)
    return _decoded(path, data, "utf-8-sig", strict)


def _decoded(path: str | os.PathLike[str], data: bytes, encoding: str, strict: bool) -> str:
    try:
        return data.decode(encoding, "strict" if strict else "surrogateescape")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise ValueError(
            f"{path}, line {line}: expected text in UTF-8, found the byte "
            f"{data[error.start]:#04x}: save the file as UTF-8"
        ) from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, split at the line ends of any system, without blank ones at the end."""
    lines = re.split(r"\r\n|\r|\n", text)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder that takes the name `path` when the block succeeds.

    Until then it has another name beside it; if the block raises, it is removed. Raises ValueError
    if `path` exists and is not an empty folder; OSError.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            f"{path}: expected a new or empty folder, found files in it: choose another"
        )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
