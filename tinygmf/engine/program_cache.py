"""Captured programs on disk: compile once, start in a second from then on.

A captured `TinyJit` is the list of compiled kernels in launch order; tinygrad can pickle it.
Weights are arguments of the program and stay out of the file. A pickle is code, so entries are read
only from the user's own cache folder, only if they are regular files that the user owns and nobody
else can write, and only if the name, the key inside and the checksum all agree. Anything else is
compiled again and overwritten: a bad entry is never trusted and never fatal.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import secrets
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinygrad import Context, Device, Tensor, TinyJit
from tinygrad.codegen import to_program_config
from tinygrad.dtype import AddrSpace
from tinygrad.engine import realize
from tinygrad.helpers import JIT, PARALLEL
from tinygrad.nn.state import get_parameters
from tinygrad.uop.ops import Ops, UOp
from tqdm.auto import tqdm

from tinygmf.config import GroupMixFormerConfig
from tinygmf.engine.clang import compiler_identity, compiler_version, suit_processor
from tinygmf.engine.compile_ahead import CompileAhead
from tinygmf.engine.devices import DeviceError
from tinygmf.engine.user_cache import cache_directory, do_without_kernel_cache
from tinygmf.files import is_private, replacing_itself
from tinygmf.loops import pairs
from tinygmf.loops.pieces import number_of_pieces
from tinygmf.loops.tiles import processor
from tinygmf.tensors import on_cpu

MAGIC = b"tinygmf program 1\n"
SUFFIX = ".program"
WORTH_WORKERS = 16  # kernels: tinygrad's compile workers take a second to start

Program = Callable[..., Any]


def program_key(
    config: GroupMixFormerConfig, shape: Sequence[int], dtype: str = "float32", **more: Any
) -> dict[str, Any]:
    """The key of a network's program: the configuration, the shape of the input, the dtype of the
    products, and whatever else distinguishes it from the network's other programs."""
    return {"network": asdict(config), "input": list(map(int, shape)), "dtype": dtype, **more}


def load_or_compile(
    key: Mapping[str, Any],
    function: Program,
    *arguments: Any,
    device: str,
    progress: bool = True,
) -> Program:
    """`function`, compiled for the shapes of these arguments or loaded from the cache.

    `key` names everything that the program depends on (`program_key`); device, versions and
    compiler settings are added here. `arguments` are realized tensors or lists of them, and remain
    arguments of the program. `function` runs once if there is no entry.
    """
    full_key = dict(key) | environment(device)
    path = entry_path(full_key)
    if path is not None and (program := load(path, full_key)) is not None:
        return program
    program = compile_program(function, *arguments, progress=progress)
    if path is not None:
        save(path, full_key, program)
    return program


def compile_program(
    function: Program, *arguments: Any, progress: bool = True, beam: int = 0
) -> Program:
    """Trace, schedule and compile; if `beam` is above 0, time candidates for faster kernels."""
    # Otherwise a tinygrad compile worker would restart after every 16 kernels.
    os.environ.setdefault("BEAM_MAX_TASKS_PER_CHILD", "100000")
    # SPEC: tinygrad's internal checks, a third of the time
    settings = Context(BEAM=beam, JIT=JIT.value or 1, SPEC=0, PARALLEL=PARALLEL.value)
    with compile_progress(disable=not progress), settings:
        try:
            return _capture(function, *arguments, progress=progress)
        except sqlite3.Error as error:
            if not do_without_kernel_cache(error):
                raise
            return _capture(function, *arguments, progress=progress)
        except subprocess.CalledProcessError as error:  # clang's; what it said is on the screen
            raise DeviceError(
                f"{compiler_version()} cannot compile a kernel (exit code {error.returncode}): run "
                "pip install 'tinygmf[clang]' and leave CC unset, or name a recent clang in CC"
            ) from None


def _capture(function: Program, *arguments: Any, progress: bool) -> Program:
    def traced(*arguments: Any) -> Any:
        with CompileAhead() as ahead:
            results = function(*arguments)
            Tensor.realize(*get_parameters(results))  # only scheduled, as the program is captured
            calls = [call for linear in program._linears for call in linear.src]
            ahead.finish(calls, _kernel_bar if progress else iter)
        others = {call.src[0] for call in calls if call.src[0].op is Ops.SINK}
        if len(others) < WORTH_WORKERS:
            PARALLEL.value = 0
        return results

    program: Any = TinyJit(traced)
    program.cnt = 1  # capture at the first call: one trace and one schedule, not two
    program(*arguments)
    require_no_data(program.captured)
    return with_own_buffers(program)


def replace_entry(key: Mapping[str, Any], program: Program, device: str) -> None:
    """Keep this program in place of the one under the key."""
    full_key = dict(key) | environment(device)
    if (path := entry_path(full_key)) is not None:
        save(path, full_key, program)


def with_own_buffers(program: Any) -> Any:
    """The captured program with fresh buffers for its results and intermediates.

    tinygrad identifies buffers by a number that restarts in every process, so a program unpickled
    beside live tensors could overwrite theirs: here the numbers are random and long. The fresh
    buffers are not allocated yet and add nothing to the file.
    """
    captured = program.captured
    sink = _sink(captured)
    own = filter(_is_device_buffer, sink.toposort())
    fresh = {b: b.replace(arg=replace(b.arg, slot=secrets.randbits(62))) for b in own}
    linear, *uops = sink.substitute(fresh, walk=True).src
    tensors = [Tensor(uop) for uop in uops]
    result = tensors[0] if isinstance(captured.ret, Tensor) else tuple(tensors)
    names, inputs = captured.expected_names, captured.expected_input_info
    return type(program)(None, type(captured)(result, linear, names, inputs))


def require_no_data(captured: Any) -> None:
    """Raise ValueError if the program holds data of its own: that would end up in the file, and
    belongs in the arguments."""
    own = filter(_is_device_buffer, _sink(captured).toposort())
    if held := [node for node in own if node not in captured._written_uops]:
        raise ValueError(
            f"the function must take all its data as arguments, but holds {len(held)} tensors"
        )


def _sink(captured: Any) -> UOp:
    """The calls and the results of a program."""
    results = [captured.ret] if isinstance(captured.ret, Tensor) else captured.ret
    return UOp.sink(captured._linear, *(tensor.uop for tensor in results))


def _is_device_buffer(node: UOp) -> bool:
    return node.op is Ops.BUFFER and node.arg.addrspace is AddrSpace.GLOBAL  # not a register


def environment(device: str) -> dict[str, Any]:
    """What a program depends on besides its function: hardware, compiler settings, versions."""
    opened = Device[device]
    if on_cpu(device):  # as `open_device` does, so that every process finds the same key
        suit_processor(opened)
    return {
        "device": device,
        "target": str(opened.renderer.target),
        "processor": _processor() if on_cpu(device) else "",
        "compiler": compiler_identity() if on_cpu(device) else "",
        "pieces": number_of_pieces(),
        "pairs": pairs.unit() if on_cpu(device) else None,  # which also requests its registers
        "settings": {variable.key: variable.value for variable in to_program_config},
        "tinygrad": version("tinygrad"),
        "tinygmf": _source_digest(),
        "python": platform.python_version(),
    }


@cache
def _processor() -> str:
    """The CPU's model and features: the code is compiled for exactly this machine."""
    if lines := processor().splitlines():
        wanted = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        return hashlib.sha256("\n".join(sorted(set(wanted))).encode()).hexdigest()[:16]
    return platform.processor() or platform.machine()


@cache
def _source_digest() -> str:
    """A digest of this package's source: another version, or an edit, means other programs."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def programs_directory() -> Path:
    """The folder of the entries, created with mode 0700; CacheError if that is impossible."""
    folder = cache_directory() / "programs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def entry_path(key: Mapping[str, Any]) -> Path | None:
    """The path for the program with this key; None, with a warning, if nothing can be kept."""
    try:
        folder = programs_directory()
    except OSError as error:
        warnings.warn(f"compiled programs will not be kept: {error}", stacklevel=3)
        return None
    return folder / (hashlib.sha256(_key_line(key)).hexdigest()[:32] + SUFFIX)


def _key_line(key: Mapping[str, Any]) -> bytes:
    return json.dumps(key, sort_keys=True).encode()


def load(path: Path, key: Mapping[str, Any]) -> Program | None:
    """The program in this entry, or None if it is missing, untrusted or unusable."""
    content = _read_own_file(path)
    if content is None or not content.startswith(MAGIC):
        return None
    digest, _, body = content[len(MAGIC) :].partition(b"\n")
    key_line, _, payload = body.partition(b"\n")
    if key_line != _key_line(key) or digest != hashlib.sha256(body).hexdigest().encode():
        return None
    try:
        program = pickle.loads(payload)
    except Exception as error:  # whatever another version of tinygrad may have left
        warnings.warn(f"{path}: not usable ({error!r}); compiling again", stacklevel=3)
        return None
    with suppress(OSError):
        os.utime(path)  # `tinygmf cache` shows when an entry was last used
    return with_own_buffers(program)  # so that the same entry can be loaded twice


def _read_own_file(path: Path) -> bytes | None:
    """The content of a regular file that this user owns and nobody else can write, or None."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(OSError), open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        if is_private(os.fstat(file.fileno())):
            return file.read()
    return None


def save(path: Path, key: Mapping[str, Any], program: Any) -> None:
    """Write an entry beside its place, then rename it: no other process ever sees half of one."""
    body = _key_line(key) + b"\n" + pickle.dumps(program)
    try:
        with replacing_itself(path, mode=0o600) as file:
            file.write(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    except OSError as error:
        warnings.warn(f"the compiled program was not kept: {error}", stacklevel=3)


def list_entries() -> list[tuple[Path, dict[str, Any]]]:
    """Every entry that can be read, with its key, the most recently used first."""
    entries = []
    for path in programs_directory().glob("*" + SUFFIX):
        content = _read_own_file(path) or b""
        with suppress(ValueError, IndexError):
            entries.append((path, json.loads(content[len(MAGIC) :].split(b"\n", 2)[1])))
    return sorted(entries, key=lambda entry: -entry[0].stat().st_mtime)


@contextmanager
def compile_progress(disable: bool = False) -> Iterator[None]:
    """Show tinygrad's own progress through the kernels, and say that this happens only once."""
    if disable:
        yield
        return
    _say_that_it_happens_once()
    shown = realize.tqdm
    realize.tqdm = _kernel_bar
    try:
        yield
    finally:
        realize.tqdm = shown


@cache
def _say_that_it_happens_once() -> None:
    tqdm.write("compiling for this device, once: the result is kept", file=sys.stderr)


def _kernel_bar(
    kernels: Iterable[Any] | None = None, total: int | None = None, **options: Any
) -> tqdm:
    """Progress through the kernels, on a terminal and in a notebook; replaces tinygrad's own bar,
    which is only shown when debugging."""
    hidden = None if "ipykernel" not in sys.modules else False  # None: depends on stderr
    return _KernelBar(kernels, total=total, desc="kernels", unit="", leave=False, disable=hidden)


class _KernelBar(tqdm):
    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """tinygrad shows each kernel's name in colours; a count tells a user more."""
