"""Tries devices, each in its own process, so that a broken driver cannot hang or crash ours.

As a program: `probe.py NAME` tries one and prints its report; `probe.py --works` prints the names
of those that open.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from tinygmf.engine.clang import prepare_compiler
from tinygmf.engine.devices import (
    NEEDS,
    PROBE_SECONDS,
    DeviceError,
    device_description,
    first_line,
    open_named,
    probe_command,
    working_devices,
)


@dataclass(frozen=True)
class DeviceReport:
    """One device: what it needs, and either the hardware found or why it does not work."""

    name: str
    needs: str
    available: bool
    detail: str  # hardware, architecture and compiler; or the reason, one short line
    proof: float | None  # milliseconds to compile, run and check one kernel; None if unavailable


def list_devices() -> list[DeviceReport]:
    """Try every device in its own process, so that a broken driver cannot hang or crash us."""
    prepare_compiler()
    return [try_device(name) for name in NEEDS]


def try_device(name: str) -> DeviceReport:
    try:
        done = subprocess.run(**probe_command(name), capture_output=True)
        return DeviceReport(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        reason = f"no answer in {PROBE_SECONDS} s"
    except (IndexError, ValueError, TypeError):
        reason = f"its driver ended the process (exit code {done.returncode})"
    return DeviceReport(name, NEEDS[name], False, reason, None)


def _probe(name: str) -> DeviceReport:
    """Open a device, compile and run one kernel on it, and check the kernel's numbers."""
    try:
        from tinygrad import Tensor

        opened = open_named(name)
        start = time.perf_counter()
        result = (Tensor([1.0, 2.0, 3.0], device=opened) * 2 + 1).tolist()
        milliseconds = 1000 * (time.perf_counter() - start)
        if result != [3.0, 5.0, 7.0]:
            raise DeviceError(f"its kernel gave {result} instead of [3, 5, 7]")
        return DeviceReport(name, NEEDS[name], True, device_description(opened), milliseconds)
    except Exception as error:
        return DeviceReport(name, NEEDS[name], False, first_line(error), None)


if __name__ == "__main__":
    if sys.argv[1] == "--works":
        for working in working_devices():
            print(working, flush=True)
    else:
        print(json.dumps(asdict(_probe(sys.argv[1]))))
