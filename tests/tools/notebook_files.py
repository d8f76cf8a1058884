"""The notebooks as they are committed, for the tests that read them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    """All text among a cell's outputs; pictures left out."""
    lines: list[str] = []
    for output in cell["outputs"]:
        lines += output.get("text", [])
        for kind, data in sorted(output.get("data", {}).items()):
            if kind.startswith("text/"):
                lines += data
    return "".join(lines)


def each_notebook(function):
    return pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)(function)
