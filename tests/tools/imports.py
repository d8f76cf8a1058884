"""Who imports whom, read from the source."""

import ast
from pathlib import Path


def imported_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports by name; a relative import stays in its own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}: a relative import must not leave the package"
    return names
