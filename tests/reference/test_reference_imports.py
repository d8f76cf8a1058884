"""The reference stands alone: the standard library, and nothing else."""

import ast
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "reference").glob("**/*.py"))


def imported(path: Path) -> set[str]:
    """The top-level packages a file imports by name; relative imports stay in its own package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, "a relative import must not leave the package"
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_imports_only_the_standard_library(path):
    assert imported(path) <= sys.stdlib_module_names
    assert "tinygmf" not in imported(path)
    assert "importlib" not in imported(path)
    assert "__import__" not in path.read_text(encoding="utf-8")


def test_there_are_files_to_look_at():
    assert {"gma.py", "network.py", "ops.py"} <= {path.name for path in FILES}
