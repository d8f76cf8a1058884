"""Ctrl-C, and SIGTERM likewise, that always arrives.

Python raises KeyboardInterrupt wherever the program happens to be. In a weak reference's callback
or a finalizer it is lost: Python prints "Exception ignored in …" and the program runs on. SIGTERM
would end the program where it stands, with its temporary files left behind.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_CODE = 130


class Terminated(KeyboardInterrupt):
    """SIGTERM, from `kill`, a scheduler or a system that shuts down."""


def exit_code(error: KeyboardInterrupt) -> int:
    return 128 + signal.SIGTERM if isinstance(error, Terminated) else EXIT_CODE


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM. Re-raise a KeyboardInterrupt that Python drops: soon after, or
    when the block ends."""
    threads: list[threading.Thread] = []
    lost: list[type[KeyboardInterrupt]] = []

    def unraisable(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return before(dropped)
        lost.append(dropped.exc_type)
        again = [sys._getframe(), dropped.exc_type]
        threads.append(threading.Thread(target=_interrupt_after, args=again))
        threads[-1].start()

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    with _terminable():
        try:
            yield
        finally:
            sys.unraisablehook = before
            for thread in threads:
                thread.join()
    if lost:
        raise lost[0]


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, unless something else was made of it, such as ignoring it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    if multiprocessing := sys.modules.get("multiprocessing"):
        for child in multiprocessing.active_children():  # a terminal itself sends them Ctrl-C
            child.terminate()
    raise Terminated


def _interrupt_after(frame: FrameType, kind: type[KeyboardInterrupt]) -> None:
    """Interrupt the main thread once it has left a frame."""
    while True:
        here: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
        while here is not None and here is not frame:
            here = here.f_back
        if here is None:
            return _thread.interrupt_main(
                signal.SIGTERM if issubclass(kind, Terminated) else signal.SIGINT
            )
        time.sleep(0.001)
