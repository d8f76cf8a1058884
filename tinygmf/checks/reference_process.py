"""Run the pure-Python reference in a folder, as `python -m reference` does in a clone.

`python -I reference_process.py FOLDER ARGUMENT …`: this file is a separate program that imports
nothing of tinygmf. The package comes from FOLDER and from nowhere else, whatever the folder's name
and Python's module path.
"""

import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def run(folder: str) -> None:
    """Import the package in the folder as `reference` and run its command."""
    spec = spec_from_file_location("reference", Path(folder, "__init__.py"))
    assert spec is not None and spec.loader is not None
    package = sys.modules["reference"] = module_from_spec(spec)
    spec.loader.exec_module(package)
    runpy.run_module("reference", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(sys.argv.pop(1))
