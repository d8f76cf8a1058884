"""What this machine has for tinygrad to compute on, and what is missing.

tinygrad calls a place to compute a device: METAL, AMD, NV, CUDA, CL, CPU or WEBGPU. Its CPU device
runs clang for every kernel and finds it through the variable CC (one word, `clang` when unset).
Importing this file touches no device and does not import tinygrad; its functions do.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

NEEDS = {  # in the order of choice
    "METAL": "a Mac with Apple's GPU",
    "AMD": "an AMD GPU on Linux with its driver",
    "NV": "an NVIDIA GPU on Linux with its driver",
    "CUDA": "an NVIDIA GPU with its driver and the CUDA libraries",
    "CL": "an OpenCL driver",
    "CPU": "clang, which pip install 'tinygmf[clang]' brings",
    "WEBGPU": "the Dawn library, named by WEBGPU_PATH",
}
PROBE_SECONDS = 30


class DeviceError(RuntimeError):
    """A device that does not work here; the message is one line that says what to do."""


@dataclass(frozen=True)
class DeviceReport:
    """One device: what it needs, and either the hardware found or why it does not work."""

    name: str
    needs: str
    available: bool
    detail: str  # hardware, architecture and compiler; or the reason, one short line
    proof: float | None  # milliseconds to compile, run and check one kernel; None if unavailable


# A folder of our own


def cache_directory() -> Path:
    """Return the user's own folder for tinygmf's caches, created with mode 0700.

    It is `tinygmf` below `XDG_CACHE_HOME` or ~/.cache, ~/Library/Caches, `LOCALAPPDATA`. What lies
    there is run as code: DeviceError if the folder cannot be written or is another user's.
    """
    usual = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}.get(sys.platform, "~/.cache")
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    folder = Path(named if os.path.isabs(named) else usual).expanduser() / "tinygmf"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid():
            raise PermissionError("it belongs to another user")
        folder.chmod(0o700)
        if os.access(folder, os.W_OK):
            return folder
        raise PermissionError("it cannot be written")
    except (OSError, RuntimeError) as error:
        reason = _reason(error)
    raise DeviceError(f"no cache in {folder}: {reason}; set XDG_CACHE_HOME to a folder of your own")


def keep_kernels_private() -> None:
    """Have tinygrad keep its compiled kernels in our folder: it unpickles what it finds there.

    Its workers learn of it from the environment. Kernels that others could have written are not
    read, and none are kept.
    """
    from tinygrad import helpers

    from tinygmf.files import is_private

    try:
        path = cache_directory() / "kernels.db"
        path.touch(mode=0o600)
        files = path.parent.glob(path.name + "*")  # SQLite keeps a log beside it
        shared = [file for file in files if not is_private(file.lstat())]
    except (OSError, DeviceError):  # `program_cache` says so when it has something to keep
        _keep_no_kernels()
        return
    if shared:
        _keep_no_kernels()
        warnings.warn(
            f"{shared[0]}: expected a file that only you can write, found that others can: no "
            "kernels are read from it or kept; remove it",
            stacklevel=2,
        )
        return
    os.environ["CACHEDB"] = helpers.CACHEDB = str(path)
    helpers._db_connection = None


def _keep_no_kernels() -> None:
    from tinygrad.helpers import CACHELEVEL

    os.environ["CACHELEVEL"], CACHELEVEL.value = "0", 0


# The compiler of the CPU device


def prepare_compiler() -> None:
    """Let tinygrad's CPU device find a clang before its first kernel; costs about a millisecond.

    The first that exists is used: the clang that CC names, `clang` on PATH, or the clang inside zig
    (the ziglang package, or `zig` on PATH) by way of a wrapper script. A CC that names another
    compiler, gcc say, is replaced for this process: tinygrad passes options that only clang knows.
    """
    if compiler() is not None:
        return
    found = "clang" if shutil.which("clang") else None
    with contextlib.suppress(OSError, DeviceError):
        found = found or _zig_wrapper()
    if found is not None:
        os.environ["CC"] = found
        if "tinygrad.helpers" in sys.modules:  # tinygrad remembers each variable that it has read
            sys.modules["tinygrad.helpers"].getenv.cache_clear()


def compiler() -> str | None:
    """Return the clang that tinygrad's CPU device will run, as CC names it; None without one."""
    name = os.environ.get("CC", "clang")
    return name if "clang" in Path(name).name and shutil.which(name) else None


def _zig_wrapper() -> str | None:
    """Write, once, a script that runs zig's clang, and return its path; None without zig."""
    from tinygmf.files import replacing

    package = importlib.util.find_spec("ziglang")
    folders = (package and package.submodule_search_locations) or ()
    zig = next(filter(None, (shutil.which("zig", path=f) for f in (*folders, None))), None)
    if zig is None:
        return None
    text, ending = f'#!/bin/sh\nexec {shlex.quote(zig)} clang "$@"\n', ""
    if sys.platform == "win32":
        text, ending = f'@"{zig}" clang %*\n', ".cmd"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]  # each environment has its own script
    script = cache_directory() / f"zig-clang-{digest}{ending}"
    if not script.is_file() or script.read_text() != text:
        with replacing(script, mode=0o700) as file:
            file.write(text.encode())
    return str(script)


# Opening a device


def open_device(name: str | None = None) -> str:
    """Open a device and return tinygrad's name for it: "CUDA", or "CPU:1" for the second one.

    `name` is read without regard to case. Without it, `DEV` decides if it is set; otherwise the
    first GPU that opens, in tinygrad's order, else the CPU. OpenCL on a CPU is left to those who
    ask for it: its kernels take longer to compile. Raises DeviceError: one line, with what works.
    """
    from tinygrad.helpers import DEV

    prepare_compiler()
    asked = name or DEV.device or next(_working_devices(), "CPU")
    try:
        return _open(asked)
    except DeviceError as error:
        reason = str(error)
    except Exception as error:
        needs = NEEDS.get(asked.split(":")[0].upper(), "hardware that is not here")
        reason = f"{_reason(error)} (it needs {needs})"
    works = ", ".join(_others_that_work()) or "none yet"
    raise DeviceError(f"device {asked} does not open: {reason}. Working here: {works}")


def _others_that_work() -> list[str]:
    """Those that open within PROBE_SECONDS, in a process of its own: a driver that hangs must not
    keep the message from the user."""
    try:
        done = subprocess.run(
            **_probe_command("--works"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return done.stdout.split()
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode().split()  # bytes, whatever was asked for


def set_default_device(name: str) -> None:
    """Make an opened device the one for tensors made without a device, in this process."""
    from tinygrad.helpers import DEV

    # As text, "CPU:1" would name a renderer called 1; the device of a Target may carry a number.
    chosen = replace(DEV.target(name.split(":")[0]), device=name)
    DEV.value = [chosen, *(target for target in DEV.value if target.device != name)]


def _open(name: str) -> str:
    """Open a device and its code generator; return its canonical name, or raise any Exception."""
    from tinygrad.device import ALL_DEVICES, Device

    canonical = Device.canonicalize(name)
    family, _, index = canonical.partition(":")
    if family not in ALL_DEVICES or (":" in canonical and not index.isdecimal()):
        raise DeviceError(f"there is no such device; tinygrad has {', '.join(NEEDS)}")
    if family == "METAL" and sys.platform != "darwin":
        raise DeviceError("this is not a Mac")
    if family == "CPU" and compiler() is None and _zig_wrapper() is None:
        system = {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}
        other = system.get(sys.platform, "apt install clang")
        raise DeviceError(f"clang is missing: run pip install 'tinygmf[clang]', or {other}")
    try:
        _ = Device[canonical].renderer
    except sqlite3.Error as error:  # opening the CPU device compiles a kernel
        if not do_without_kernel_cache(error):
            raise
        _ = Device[canonical].renderer
    return canonical


def do_without_kernel_cache(error: sqlite3.Error) -> bool:
    """Leave tinygrad's database of kernels alone, which a full disk breaks; False if it was."""
    from tinygrad.engine.worker import terminate_worker_pool
    from tinygrad.helpers import CACHEDB, CACHELEVEL

    if not CACHELEVEL.value:
        return False
    _keep_no_kernels()
    terminate_worker_pool()  # new workers read the environment again
    warnings.warn(f"kernels are not kept: {CACHEDB} cannot be used ({error})", stacklevel=2)
    return True


def _working_devices() -> Iterator[str]:
    """Yield the devices that open here, the one to choose first; OpenCL on a CPU comes last."""
    later = []
    for name in NEEDS:
        try:
            _open(name)
        except Exception:
            continue
        if name == "CL" and not _opencl_is_gpu():
            later.append(name)
        else:
            yield name
    yield from later


def _opencl_is_gpu() -> bool:
    from tinygrad.device import Device
    from tinygrad.runtime.autogen import opencl

    kind = ctypes.c_uint64()
    device = Device["CL"].cl_dev
    opencl.clGetDeviceInfo(device, opencl.CL_DEVICE_TYPE, 8, ctypes.byref(kind), None)
    return bool(kind.value & opencl.CL_DEVICE_TYPE_GPU)


def _reason(error: BaseException) -> str:
    """Return the first line of an error (of the first in a group), without its traceback."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} is missing"
    line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return line if len(line) <= 160 else line[:157] + "..."


# Describing devices


def device_description(name: str) -> str:
    """Name an opened device's hardware: "CPU (x86_64, zig clang 22.1)", "H200 (CUDA sm_90)"."""
    from tinygrad.device import Device

    device, family = Device[name], name.split(":")[0]
    if family == "CPU":
        return f"{name} ({platform.machine()}, {_compiler_version()})"
    arch = "" if family == "CL" or not device.arch else f" {device.arch}"  # CL's is very long
    hardware = None
    with contextlib.suppress(Exception):
        hardware = _hardware_name(family, device)
    return f"{hardware} ({name}{arch})" if hardware else f"{name}{arch}"


def _hardware_name(family: str, device: Any) -> str | None:
    if family == "CL":
        return device.device_name
    if family == "METAL":
        from tinygrad.runtime.ops_metal import from_ns_str

        return from_ns_str(device.sysdevice.name())
    if family == "CUDA":
        from tinygrad.runtime.autogen import cuda

        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(name, len(name), device.cu_device)
        return name.value.decode()
    return None


def _compiler_version() -> str:
    """Return what the CPU device compiles with: "clang 19.1.7" or "zig clang 22.1.8"."""
    path = compiler() or "clang"
    zig = "zig " if Path(path).name.startswith("zig-clang") else ""
    with contextlib.suppress(OSError):
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        if match := re.search(r"clang version (\d[\d.]*)", text):
            return f"{zig}clang {match[1]}"
    return f"{zig}clang"


def list_devices() -> list[DeviceReport]:
    """Try every device in a process of its own, so that a broken driver cannot hang or crash us."""
    prepare_compiler()
    return [_try_device(name) for name in NEEDS]


def _try_device(name: str) -> DeviceReport:
    try:
        done = subprocess.run(**_probe_command(name), capture_output=True)
        return DeviceReport(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        reason = f"no answer in {PROBE_SECONDS} s"
    except (IndexError, ValueError, TypeError):
        reason = f"its driver ended the process (exit code {done.returncode})"
    return DeviceReport(name, NEEDS[name], False, reason, None)


def _probe_command(argument: str) -> dict[str, Any]:
    """This file as a program, for `subprocess.run`."""
    path = os.pathsep.join(filter(None, sys.path))
    return {
        "args": [sys.executable, "-P", __file__, argument],  # -P: no module here is in the way
        "env": os.environ | {"PYTHONPATH": path, "CACHELEVEL": "0"},  # 0: compile the kernel anew
        "text": True,
        "timeout": PROBE_SECONDS,
    }


def _probe(name: str) -> DeviceReport:
    """Open a device, compile and run one kernel on it, and check the kernel's numbers."""
    try:
        from tinygrad import Tensor

        opened = _open(name)
        start = time.perf_counter()
        result = (Tensor([1.0, 2.0, 3.0], device=opened) * 2 + 1).tolist()
        milliseconds = 1000 * (time.perf_counter() - start)
        if result != [3.0, 5.0, 7.0]:
            raise DeviceError(f"its kernel gave {result} in place of [3, 5, 7]")
        return DeviceReport(name, NEEDS[name], True, device_description(opened), milliseconds)
    except Exception as error:
        return DeviceReport(name, NEEDS[name], False, _reason(error), None)


if __name__ == "__main__":
    if sys.argv[1] == "--works":
        for working in _working_devices():
            print(working, flush=True)
    else:
        print(json.dumps(asdict(_probe(sys.argv[1]))))
