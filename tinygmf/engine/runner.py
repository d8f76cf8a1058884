"""Running a program's kernels on all cores, inside one native call: `runner.c`.

tinygrad compiles that file like a kernel and keeps the result in the same private database; nothing
has to be built or installed. The helping threads are Python's: they sleep until a run begins, take
part in it while there are pieces left, and hold no lock meanwhile.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from tinygrad import Device
from tinygrad.device import TinyELF

from tinygmf.threads import thread_count

WORDS = 32  # as in runner.c


class Kernel(NamedTuple):
    """A kernel and its arguments."""

    program: Any  # tinygrad's, with the address `addr` and the callable `fxn`
    pieces: list[list[int]]  # the arguments of each; pieces may run in any order and in parallel


def runner_of(kernels: Sequence[Kernel]) -> Callable[[], None]:
    """A function that runs the kernels in sequence, on all cores if `runner.c` compiles here."""
    fits = all(len(words) <= WORDS for kernel in kernels for words in kernel.pieces)
    if fits and kernels and native() is not None:
        return Runner(kernels)
    calls = [
        (kernel.program.fxn, [ctypes.c_uint64(word) for word in words])
        for kernel in kernels
        for words in kernel.pieces
    ]

    def run() -> None:
        for function, words in calls:
            function(*words)

    return run


class Piece(ctypes.Structure):
    """`struct piece` of runner.c."""

    _fields_ = (
        ("claimed", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("run", ctypes.c_uint64),
        ("words", ctypes.c_uint64 * WORDS),
    )


class Runner:
    """A program bound to its memory, laid out as in runner.c. One run at a time."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        pieces = [
            bytes(Piece(0, len(kernel.pieces), kernel.program.addr, tuple(words)))
            for kernel in kernels
            for words in kernel.pieces
        ]
        work, yield_core = native() or (None, 0)
        self.work: Any = work
        header = (ctypes.c_uint64 * 16)()  # two cache lines, as in `struct program`
        header[8], header[9] = len(pieces), yield_core
        content = bytes(header) + b"".join(pieces)
        self.memory = ctypes.create_string_buffer(len(content) + 64)
        self.program = -(-ctypes.addressof(self.memory) // 64) * 64
        ctypes.memmove(self.program, content, len(content))
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1
        threads = thread_count()
        call_helpers(self, threads)
        self.take_part(self.runs, 0, threads)

    def take_part(self, *numbers: int) -> None:
        self.work(*map(ctypes.c_uint64, (self.program, *numbers)))


@cache
def native() -> tuple[Any, int] | None:
    """The compiled `work`, and the address of the function that yields the core to other threads;
    None if that is not available."""
    device = Device["CPU"]
    source = f"#define ABI {device.renderer.abi}\n" + Path(__file__).with_suffix(".c").read_text()
    try:
        code = device.compiler.compile_cached(source)
        if sys.platform == "win32":
            yield_core = ctypes.windll.kernel32.SwitchToThread
        else:
            yield_core = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError, subprocess.CalledProcessError):
        return None
    program = device.runtime(TinyELF(code, "work", device.renderer.target, ()))
    work = program.fxn
    work.program = program  # keeps the code's memory alive
    return work, ctypes.cast(yield_core, ctypes.c_void_p).value or 0


calls: SimpleQueue[tuple[Runner, int, int, int]] = SimpleQueue()
helpers: list[Thread] = []


def call_helpers(runner: Runner, threads: int) -> None:
    """Wake all threads but the first for a run, and start them if they do not exist yet, or no
    longer, after a fork."""
    helpers[:] = [helper for helper in helpers if helper.is_alive()]
    while len(helpers) < threads - 1:
        helpers.append(Thread(target=help_along, daemon=True))
        helpers[-1].start()
    for number in range(1, threads):
        calls.put((runner, runner.runs, number, threads))


def help_along() -> None:
    while True:
        runner, *numbers = calls.get()
        runner.take_part(*numbers)
        del runner  # otherwise it would live until the next call
