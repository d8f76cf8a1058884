"""Ctrl-C that always arrives.

Python raises KeyboardInterrupt wherever the program happens to be. From a weak reference's callback
or a finalizer no exception gets out: Python would print "Exception ignored in …", and the program
run on as if nobody had asked it to stop.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 130
SOON = 0.01  # seconds, in which a callback has returned


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Raise again a KeyboardInterrupt that Python drops: soon afterwards, or as the block ends."""
    timers: list[threading.Timer] = []

    def unraisable(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
        elif not any(timer.is_alive() for timer in timers):
            timers.append(threading.Timer(SOON, _thread.interrupt_main))
            timers[-1].start()

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        try:
            yield
        finally:
            for timer in timers:
                timer.join()  # raises, if the interrupt has not done so yet
    finally:
        sys.unraisablehook = before
