"""Writing files so that nothing is ever lost or seen half-written."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_MESSAGE = 600  # characters: a file can choose long names


def one_line(message: str) -> str:
    """An error's text as one line of bounded length, free of a terminal's control characters."""
    line = " ".join(message[: 4 * MAX_MESSAGE].split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def is_private(found: os.stat_result) -> bool:
    """Whether a regular file, no link, is this user's and nobody else can write it."""
    own = not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)
    return own and stat.S_ISREG(found.st_mode)


@contextmanager
def replacing(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the name `path` when the block ends well.

    Until then it lies beside it under another name; if the block raises, it is removed and what
    was at `path` stays. `mode` is limited by the umask. Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
