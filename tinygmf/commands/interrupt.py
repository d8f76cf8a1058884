"""Ctrl-C that always arrives.

Python raises KeyboardInterrupt wherever the program happens to be. In a weak reference's callback
or a finalizer it is lost: Python prints "Exception ignored in …" and the program runs on.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_CODE = 130


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Re-raise a KeyboardInterrupt that Python drops: soon after, or when the block ends."""
    threads: list[threading.Thread] = []

    def unraisable(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return before(dropped)
        threads.append(threading.Thread(target=_interrupt_after, args=[sys._getframe()]))
        threads[-1].start()

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before
        for thread in threads:
            thread.join()
    if threads:
        raise KeyboardInterrupt


def _interrupt_after(frame: FrameType) -> None:
    """Interrupt the main thread once it has left a frame."""
    while True:
        here: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
        while here is not None and here is not frame:
            here = here.f_back
        if here is None:
            return _thread.interrupt_main()
        time.sleep(0.001)
