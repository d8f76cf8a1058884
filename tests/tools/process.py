"""A function of a test, called in a process of its own: what it prints is what comes back.

done = call(print_the_answer, "nano.pth", env=environment(XDG_CACHE_HOME=str(tmp_path)))
assert done.stdout == "7\\n"
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).parent
ROOT = TOOLS.parents[1]


def command(function: Callable, *arguments: object, hidden: str = "") -> list[str]:
    """The command line that calls a function, from the top level of any file, with its arguments
    as text. The package named `hidden` is not found there."""
    place = [function.__code__.co_filename, function.__name__, hidden]
    return [sys.executable, __file__, *place, *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with other variables, in which any process finds the packages of
    this repository and the tools of its tests."""
    path = [str(ROOT), str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)} | variables


def call(
    function: Callable, *arguments: object, hidden: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call a function in a new process. There is no time limit: a busy machine may take long."""
    line = command(function, *arguments, hidden=hidden)
    return subprocess.run(line, env=env or environment(), capture_output=True, text=True)


def hide(package: str) -> None:
    """Let a package be missing from this process."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == package else find(name, *rest)


def main(file: str, name: str, hidden: str, *arguments: str) -> None:
    if hidden:
        hide(hidden)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(*arguments)


if __name__ == "__main__":  # tinygrad's workers import this file, too
    main(*sys.argv[1:])
