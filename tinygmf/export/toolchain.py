"""The programs that compile or run an export: a C compiler, zig, node."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys


def zig() -> list[str] | None:
    """zig's command, from the ziglang package or on PATH; None without either."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang"]
    found = shutil.which("zig")
    return [found] if found else None


def c_compiler() -> list[str]:
    """The command of a C compiler that can link for this machine. Raises ValueError without one."""
    for name in ("clang", "gcc", "cc"):
        if found := shutil.which(name):
            return [found]
    if command := zig():
        return [*command, "cc"]
    raise ValueError("no C compiler here: run pip install 'tinygmf[clang]', or apt install gcc")


def run_tool(command: list[str]) -> str:
    """A command's output. Raises ValueError with the first line of its complaint."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise ValueError(f"{' '.join(command[:2])} failed: {lines[0][:300]}")
    return done.stdout
