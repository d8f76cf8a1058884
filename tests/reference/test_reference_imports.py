"""The reference stands alone: the standard library, and nothing else."""

import sys
from pathlib import Path

import pytest
from imports import imported_packages

FILES = sorted((Path(__file__).parents[2] / "reference").glob("**/*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_imports_only_the_standard_library(path):
    assert imported_packages(path) <= sys.stdlib_module_names
    assert "tinygmf" not in imported_packages(path)
    assert "importlib" not in imported_packages(path)
    assert "__import__" not in path.read_text(encoding="utf-8")


def test_there_are_files_to_look_at():
    assert {"gma.py", "network.py", "ops.py"} <= {path.name for path in FILES}
