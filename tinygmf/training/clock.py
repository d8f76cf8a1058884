"""How long a run will take, from its first steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

TIMED = 3  # steps after the first, which loads or compiles
FORWARD = 1 / 3  # of a training step's time; the gradient takes the rest


class Clock:
    """Times the first steps of a run, then calls `tell` once with the seconds left.

    Time spent waiting for pictures counts for the current epoch only: later epochs find them
    decoded.
    """

    def __init__(self) -> None:
        self.tell: Callable[[float], None] | None = None
        self.steps: list[tuple[float, float]] = []  # seconds of computing and of waiting
        self._begun = self._waited = 0.0

    def __enter__(self) -> None:
        self._begun, self._waited = time.perf_counter(), 0.0

    def __exit__(self, *_: object) -> None:
        whole = time.perf_counter() - self._begun
        self.steps.append((whole - self._waited, self._waited))

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the same batches, recording how long each step waits for one."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step_made(self, left: int, of_epoch: int, batches: float) -> None:
        """Report the time left after the last timed step. `left` steps remain, `of_epoch` of them
        in this epoch; validation sees as many pictures as `batches` steps train on."""
        if self.tell is None or len(self.steps) != 1 + TIMED:
            return
        computing, waiting = (sum(part) / TIMED for part in zip(*self.steps[1:], strict=True))
        self.tell(computing * (left + FORWARD * batches) + waiting * of_epoch)


def spoken(seconds: float) -> str:
    """A duration in a few words: `about 40 s`, `about 3 min`, `about 5 h`."""
    for unit, name, most in ((1, "s", 90), (60, "min", 5400), (3600, "h", 48 * 3600)):
        if seconds < most:
            return f"about {max(1, round(seconds / unit))} {name}"
    return f"about {round(seconds / 86400)} days"
