"""Compiling a program's kernels while it is still being traced.

tinygrad traces and schedules a program first, on one core, and then has its workers lower and
compile the kernels. A loop nest is a kernel from the moment it is built, so it is handed to them
then, and the other cores have work from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult
from typing import Any

from tinygrad import Device
from tinygrad.codegen import to_program_cache, to_program_context, to_program_key
from tinygrad.engine import realize
from tinygrad.uop.ops import UOp

from tinygmf.loops import calls

Task = tuple[int, tuple[UOp, Any], dict[str, Any]]  # number, (kernel, renderer), settings


class Workers:
    """tinygrad's pool of workers, where some kernels have been begun already."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.renderer = pool, Device["CPU"].renderer
        self.begun: dict[tuple, AsyncResult] = {}

    def begin(self, kernel: UOp) -> None:
        key = to_program_key(kernel, self.renderer)
        if key not in to_program_cache and key not in self.begun:
            settings = {variable.key: variable.value for variable in to_program_context}
            task: Task = 0, (kernel, self.renderer), settings
            self.begun[key] = self.pool.apply_async(realize._compile_kernel, (task,))

    def imap_unordered(
        self, function: Callable[[Task], tuple[int, UOp]], tasks: Iterable[Task]
    ) -> Iterator[tuple[int, UOp]]:
        """The number and the program of each task, as the pool's own method gives them."""
        begun, others = {}, []
        for task in tasks:
            result = self.begun.pop(to_program_key(*task[1]), None)
            if result is None:
                others.append(task)
            else:
                begun[task[0]] = result
        rest = self.pool.imap_unordered(function, others)
        yield from ((number, result.get()[1]) for number, result in begun.items())
        yield from rest


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """In this context the CPU's loop nests are compiled from when they are built."""
    own = realize.get_worker_pool
    if (pool := own()) is None:
        yield
        return
    workers = Workers(pool)
    realize.get_worker_pool = lambda: workers
    calls.listeners.append(workers.begin)
    try:
        yield
    finally:
        calls.listeners.remove(workers.begin)
        realize.get_worker_pool = own
        if workers.begun:  # the trace has failed: nobody waits for these
            realize.terminate_worker_pool()
