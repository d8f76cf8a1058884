"""Finding the compiler of tinygrad's CPU device.

The device runs clang for every kernel, as named by the variable CC (one word, `clang` if unset).
"""

import atexit
import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tinygmf.engine.user_cache import WRAPPER, CacheError, cache_directory
from tinygmf.files import replacing_itself
from tinygmf.loops.tiles import is_amd, processor_flags


def prepare_compiler() -> None:
    """Let tinygrad's CPU device find a clang before its first kernel; costs about a millisecond.

    The first that exists is used: the clang that CC names, the clang inside zig (the ziglang
    package, or `zig` on PATH) through a wrapper script, or `clang` on PATH. The kernels are written
    for a recent clang, as zig's is; compiled by clang 14 they take 1.7 times as long. If CC names
    another compiler, such as gcc, it is replaced for this process: tinygrad passes options that
    only clang knows.
    """
    if "CC" in os.environ and compiler() is not None:
        return
    found = None
    with contextlib.suppress(OSError):
        found = zig_wrapper()
    if found is None and shutil.which("clang"):
        found = "clang"
    if found is not None:
        os.environ["CC"] = found
        if "tinygrad.helpers" in sys.modules:  # tinygrad caches each variable once it has read it
            sys.modules["tinygrad.helpers"].getenv.cache_clear()


def compiler() -> str | None:
    """Return the clang that tinygrad's CPU device will run, as in CC; None without one."""
    name = os.environ.get("CC", "clang")
    return name if "clang" in Path(name).name and shutil.which(name) else None


def compiler_identity() -> str:
    """Tell this compiler from others and from its own next version, without running it."""
    found = shutil.which(compiler() or "")
    if found is None:
        return "none"
    path = Path(found).resolve()
    return path.stem if _is_wrapper(path) else f"{path.stem}-{_digest(path)}"


def _is_wrapper(path: Path) -> bool:
    return path.name.startswith(WRAPPER)


def _digest(path: Path, text: str = "") -> str:
    """Eight digits that change with a file's place, size or time, and with `text`."""
    info = path.stat()
    content = f"{path} {info.st_size} {info.st_mtime_ns} {text}"
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def suit_processor(device: Any) -> None:
    """Make an opened CPU device compile for this processor in ways that clang does not by itself.

    * Vectors of 512 bits if there are any. Clang uses 256 on Intel's processors, because the first
      ones with 512 slowed down; products run half as fast again with 512.
    * On AMD's processors no gathering or scattering of single numbers, which takes them longer than
      loading these one by one: a training step is a quarter shorter, or more. Only zig's clang is
      known to be recent enough for the options (17).
    """
    if device.arch != "x86_64,native":
        return
    if "avx512f" in processor_flags():
        device.arch += ",prefer-vector-width=512"  # which tinygrad turns into an option, -m…
    if is_amd() and _is_wrapper(Path(compiler() or "")):
        device.arch += ",no-gather,no-scatter"


def zig_wrapper() -> str | None:
    """Write, once, a script that runs zig's clang, and return its path; None without zig."""
    package = importlib.util.find_spec("ziglang")
    folders = (package and package.submodule_search_locations) or ()
    zig = next(filter(None, (shutil.which("zig", path=f) for f in (*folders, None))), None)
    if zig is None:
        return None
    text, ending = f'#!/bin/sh\nexec {shlex.quote(zig)} clang "$@"\n', ""
    if sys.platform == "win32":
        text, ending = f'@"{zig}" clang %*\n', ".cmd"
    name = f"{WRAPPER}-{_digest(Path(zig), text)}{ending}"  # a script for each zig and version
    script = _script_folder() / name
    if not script.is_file() or script.read_text() != text:
        with replacing_itself(script, mode=0o700) as file:
            file.write(text.encode())
    return str(script)


def _script_folder() -> Path:
    """The cache folder, or if it cannot be used a private one until this process ends."""
    try:
        return cache_directory()
    except CacheError:
        return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tinygmf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def compiler_version() -> str:
    """Return what the CPU device compiles with: "clang 19.1.7" or "zig clang 22.1.8"."""
    path = compiler() or "clang"
    zig = "zig " if _is_wrapper(Path(path)) else ""
    with contextlib.suppress(OSError):
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        if match := re.search(r"clang version (\d[\d.]*)", text):
            return f"{zig}clang {match[1]}"
    return f"{zig}clang"
