"""The devices that tinygrad can compute on here, and what the others need.

A device is tinygrad's name for a place to compute: METAL, AMD, NV, CUDA, CL, CPU or WEBGPU.
Importing this file touches no device and does not import tinygrad; its functions do.
"""

import contextlib
import ctypes
import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinygmf.engine.clang import (
    compiler,
    compiler_version,
    prepare_compiler,
    suit_processor,
    zig_wrapper,
)
from tinygmf.engine.user_cache import do_without_kernel_cache

NEEDS = {  # in the order of choice
    "METAL": "a Mac with Apple's GPU",
    "AMD": "an AMD GPU on Linux with its driver",
    "NV": "an NVIDIA GPU on Linux with its driver",
    "CUDA": "an NVIDIA GPU with its driver and the CUDA libraries",
    "CL": "an OpenCL driver",
    "CPU": "clang, which pip install 'tinygmf[clang]' installs",
    "WEBGPU": "the Dawn library, named by WEBGPU_PATH",
}
BUSES = Path("/sys/bus")
LISTED = {  # Linux's driver, and the vendors of what tinygrad drives without it, by PCI or USB
    "AMD": (Path("/dev/kfd"), {"1002", "add1", "3801"}),
    "NV": (Path("/dev/nvidiactl"), {"10de"}),
}
PROBE_SECONDS, PROBE = 30, Path(__file__).with_name("probe.py")


class DeviceError(RuntimeError):
    """A device that does not work here; the message is one line that says what to do."""


# Opening a device


def open_device(name: str | None = None) -> str:
    """Open a device and return tinygrad's name for it: "CUDA", or "CPU:1" for the second one.

    `name` is not case-sensitive. Without it, `DEV` decides, if set; otherwise the first GPU that
    opens, in tinygrad's order, or else the CPU. OpenCL on a CPU is only used on request, because
    its kernels take longer to compile. Raises DeviceError: one line, with what works.
    """
    from tinygrad.helpers import DEV

    prepare_compiler()
    asked = name or DEV.device or next(working_devices(), "CPU")
    try:
        return open_named(asked)
    except DeviceError as error:
        reason = str(error)
    except Exception as error:
        needs = NEEDS.get(asked.split(":")[0].upper(), "hardware that is not present")
        reason = f"{first_line(error)} (it needs {needs})"
    works = ", ".join(_others_that_work()) or "none yet"
    raise DeviceError(f"device {asked} does not open: {reason}. Working here: {works}")


def _others_that_work() -> list[str]:
    """The devices that open within PROBE_SECONDS, tried in another process: a hanging driver must
    not keep the message from the user."""
    try:
        done = subprocess.run(
            **probe_command("--works"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return done.stdout.split()
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode().split()  # bytes, even though text was requested


def set_default_device(name: str) -> None:
    """Make an opened device the default for tensors in this process."""
    from tinygrad.helpers import DEV

    # As text, "CPU:1" would name a renderer called 1; in a Target the device may carry a number.
    chosen = replace(DEV.target(name.split(":")[0]), device=name)
    DEV.value = [chosen, *(target for target in DEV.value if target.device != name)]


def open_named(name: str) -> str:
    """Open a device and its code generator; return its canonical name, or raise any Exception."""
    from tinygrad.device import ALL_DEVICES, Device

    canonical = Device.canonicalize(name)
    family, _, index = canonical.partition(":")
    if family not in ALL_DEVICES or (":" in canonical and not index.isdecimal()):
        raise DeviceError(f"there is no such device; tinygrad has {', '.join(NEEDS)}")
    if family == "METAL" and sys.platform != "darwin":
        raise DeviceError("this is not a Mac")
    if family == "CPU":
        if compiler() is None and zig_wrapper() is None:
            system = {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}
            other = system.get(sys.platform, "apt install clang")
            raise DeviceError(f"clang is missing: run pip install 'tinygmf[clang]', or {other}")
        keep_queue_programs()
    try:
        _ = Device[canonical].renderer
    except sqlite3.Error as error:  # opening the CPU device compiles a kernel
        if not do_without_kernel_cache(error):
            raise
        _ = Device[canonical].renderer
    if family == "CPU":
        if (writes := Device[canonical].renderer.target.renderer) not in ("", "CLANG"):
            raise DeviceError(
                f"its kernels are in C, for clang: expected DEV=CPU, found CPU:{writes}"
            )
        suit_processor(Device[canonical])
    return canonical


@cache
def keep_queue_programs() -> None:
    """tinygrad's CPU device lowers four programs of its own whenever it opens, which takes it 0.15
    seconds: keep them where it keeps their compiled code."""
    from tinygrad.helpers import diskcache_get, diskcache_put
    from tinygrad.runtime import ops_cpu

    lower = ops_cpu.do_to_program

    def kept(kernel: Any, renderer: Any) -> Any:
        key = f"{kernel.key.hex()} {renderer.target} {version('tinygrad')}"
        if (program := diskcache_get("queue_programs", key)) is None:
            program = diskcache_put("queue_programs", key, lower(kernel, renderer))
        return program

    ops_cpu.do_to_program = kept


def working_devices() -> Iterator[str]:
    """Yield the devices that open here, the preferred one first; OpenCL on a CPU comes last."""
    later = []
    for name in filter(may_be_here, NEEDS):
        try:
            open_named(name)
        except Exception:
            continue
        if name == "CL" and not _opencl_is_gpu():
            later.append(name)
        else:
            yield name
    yield from later


def may_be_here(name: str) -> bool:
    """Whether it is worth opening a device that nobody asked for. Linux says what hardware there
    is, and importing what opens AMD and NVIDIA GPUs takes a third of a second."""
    if sys.platform != "linux" or name not in LISTED or os.environ.get("REMOTE"):
        return True
    driver, vendors = LISTED[name]
    if driver.exists():
        return True
    with contextlib.suppress(OSError):
        files = *BUSES.glob("pci/devices/*/vendor"), *BUSES.glob("usb/devices/*/idVendor")
        found = {file.read_text().strip().removeprefix("0x") for file in files}
        return not found.isdisjoint(vendors)
    return True


def _opencl_is_gpu() -> bool:
    from tinygrad.device import Device
    from tinygrad.runtime.autogen import opencl

    kind = ctypes.c_uint64()
    device = Device["CL"].cl_dev
    opencl.clGetDeviceInfo(device, opencl.CL_DEVICE_TYPE, 8, ctypes.byref(kind), None)
    return bool(kind.value & opencl.CL_DEVICE_TYPE_GPU)


def first_line(error: BaseException) -> str:
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

    from tinygmf.tensors import on_cpu

    device, family = Device[name], name.split(":")[0]
    if on_cpu(name):
        return f"{name} ({platform.machine()}, {compiler_version()})"
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


def probe_command(argument: str) -> dict[str, Any]:
    """The arguments of `subprocess.run` that run `probe.py` as a program."""
    path = os.pathsep.join(filter(None, sys.path))
    return {
        "args": [sys.executable, "-P", str(PROBE), argument],  # -P: no module here gets in the way
        "env": os.environ | {"PYTHONPATH": path, "CACHELEVEL": "0"},  # 0: compile the kernel anew
        "text": True,
        "timeout": PROBE_SECONDS,
    }
