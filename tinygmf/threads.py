"""How many threads this process may compute with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_asked: int | None = None


def limit_threads(count: int | None) -> None:
    """Use at most `count` threads from now on; None: one for each core of this process."""
    global _asked
    _asked = count


def thread_count() -> int:
    """What `limit_threads`, or else OMP_NUM_THREADS, asks for, but no more than the cores."""
    asked = _asked or _number(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])
    return min(asked or available_cores(), available_cores())


def useless_variable() -> str:
    """A line about OMP_NUM_THREADS if it is set to what is no number of threads; else ""."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if _asked or not value or _number(value.split(",")[0]):
        return ""
    return (
        f"OMP_NUM_THREADS: expected a whole number of at least 1, found {value!r}: one thread per "
        "core is used"
    )


@cache
def available_cores() -> int:
    """The cores that this process may use, by its affinity and its container."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _quotas(groups: Path, root: Path) -> Iterator[int]:
    """The limits of Linux's control groups, version 2, in cores, rounded up: those of the process's
    own group and of all groups around it."""
    with suppress(OSError):
        lines = groups.read_text().splitlines()
        inside = [root / line[3:].lstrip("/") for line in lines if line.startswith("0::")]
        for folder in (parent for own in inside for parent in (own, *own.parents)):
            with suppress(OSError, ValueError):  # no such file, or no limit ("max")
                quota, period = map(int, (folder / "cpu.max").read_text().split())
                yield -(-quota // period)


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() and int(text) > 0 else None
