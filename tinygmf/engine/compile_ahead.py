"""Compiling the loop nests of a program on all cores while the rest of it is still traced.

tinygrad compiles when a program is complete, in worker processes that first have to import it.
Nests come with their source, so clang is all that they need, and a thread can wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any

from tinygrad import Device
from tinygrad.codegen import to_program_cache, to_program_key
from tinygrad.helpers import diskcache_get, diskcache_put
from tinygrad.uop.ops import Ops, UOp

from tinygmf.engine.object_file import compile_all
from tinygmf.loops.calls import on_build
from tinygmf.threads import available_cores

MOST = 8  # kernels that one run of clang compiles


class CompileAhead:
    """In the `with` block, each nest that is built is compiled in the background; `finish` hands
    the results to tinygrad."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.kept: dict[str, bytes] = {}  # by source, from tinygrad's database
        self.compiled: dict[str, Future[bytes]] = {}
        self.waiting: deque[str] = deque()

    def __enter__(self) -> CompileAhead:
        self.token = on_build.set(self.add)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        on_build.reset(self.token)
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def add(self, program: UOp) -> None:
        source, compiler = source_of(program), Device["CPU"].compiler
        if source in self.kept or source in self.compiled:
            return
        if compiler.cachekey and (library := diskcache_get(compiler.cachekey, source)) is not None:
            self.kept[source] = library
            return
        if self.pool is None:
            self.pool = ThreadPoolExecutor(available_cores())
        self.compiled[source] = Future()
        self.waiting.append(source)
        self.pool.submit(self.compile_some, compiler)

    def compile_some(self, compiler: Any) -> None:
        """Compile a share of what waits: the longer the queue, the more at once."""
        share = min(MOST, -(-len(self.waiting) // available_cores()))
        sources: list[str] = []
        with suppress(IndexError):  # another thread was faster
            while len(sources) < share:
                sources.append(self.waiting.popleft())
        try:
            for source, library in zip(sources, compile_all(compiler, sources), strict=True):
                self.compiled[source].set_result(library)
        except BaseException as error:
            for source in sources:
                self.compiled[source].set_exception(error)

    def finish(self, calls: Iterable[UOp], progress: Callable[[list], Iterable]) -> None:
        """Wait for the programs of these calls, and leave them where tinygrad looks first."""
        device = Device["CPU"]
        programs = {call.src[0] for call in calls if is_nest(call.src[0])}
        keys = {to_program_key(program, device.renderer): program for program in programs}
        for key in progress([key for key in keys if key not in to_program_cache]):
            source = source_of(keys[key])
            if (library := self.kept.get(source)) is None:
                library = self.compiled[source].result()
                if device.compiler.cachekey:
                    diskcache_put(device.compiler.cachekey, source, library)
            binary = UOp(Ops.BINARY, arg=library)
            to_program_cache[key] = keys[key].replace(src=(*keys[key].src, binary))


def is_nest(node: UOp) -> bool:
    return node.op is Ops.PROGRAM and node.src[-1].op is Ops.SOURCE


def source_of(program: UOp) -> str:
    """A program's text in the language of its device."""
    return next(node.arg for node in program.src if node.op is Ops.SOURCE)
