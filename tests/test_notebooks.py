"""Every notebook runs from top to bottom, and is committed as a reader wants to find it."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from notebook_files import (
    FOLDER,
    NOTEBOOKS,
    ROOT,
    code_cells,
    each_notebook,
    load,
    printed,
    text_of,
)

QUICK = ("01", "02", "03", "07")  # half a minute together; the others are `slow`

MACHINE_PATH = re.compile(r"(?<![\w.])/(home|Users|root|tmp|work|opt|var|usr|mnt)/|[A-Z]:\\")
NETWORK = re.compile(r"https?://|urllib|requests\.|fetch_|wget|curl|pip install|hf_hub")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
DEFINITION = re.compile(r"^\s*(def|class|async def) ", re.MULTILINE)


def test_the_notebooks_are_numbered_without_gaps():
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == list(range(1, len(NOTEBOOKS) + 1))


@each_notebook
def test_a_notebook_is_short_and_small(path):
    assert len(load(path)["cells"]) < 40
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_every_cell_of_code_has_a_sentence_before_it(path):
    cells = load(path)["cells"]
    for before, cell in pairwise(cells):
        assert cell["cell_type"] == "markdown" or before["cell_type"] == "markdown"


@each_notebook
def test_a_notebook_ends_in_exercises_with_folded_solutions(path):
    last = text_of(load(path)["cells"][-1])
    assert "### Exercises" in last and last.count("<details>") == last.count("</details>") >= 3


@each_notebook
def test_outputs_are_committed_and_whole(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


@each_notebook
def test_a_notebook_is_committed_in_one_form(path):
    """No timestamps, no dead widgets, no traces of the one who ran it.

    `python notebooks/course/execute.py` writes it.
    """
    nbformat = pytest.importorskip("nbformat", reason="needs pip install 'tinygmf[notebooks]'")
    from notebooks.course.execute import normalized
    from notebooks.course.execute import text_of as file_of

    text = path.read_text(encoding="utf-8")
    assert file_of(normalized(nbformat.reads(text, as_version=4))) == text


@each_notebook
def test_one_line_chooses_the_device_before_anything_is_computed(path):
    """What is said of kernels and cores is then true wherever the notebook runs."""
    first = text_of(code_cells(path)[0])
    assert first.count('set_default_device(open_device("CPU"))') == 1


@each_notebook
def test_a_notebook_holds_no_path_of_a_machine_and_needs_no_network(path):
    for cell in load(path)["cells"]:
        assert not MACHINE_PATH.search(text_of(cell))
    for cell in code_cells(path):
        assert not MACHINE_PATH.search(printed(cell))
        assert not NETWORK.search(text_of(cell))


@each_notebook
def test_a_notebook_defines_no_function_that_belongs_in_a_package(path):
    """A reader's answer to an exercise is one."""
    for cell in code_cells(path):
        assert "exercise" in cell["metadata"].get("tags", []) or not DEFINITION.search(
            text_of(cell)
        )


def alike(found: str, committed: str) -> bool:
    """The same words and nearly the same numbers: processors round differently."""
    texts = [" ".join(NUMBER.sub(" # ", text).split()) for text in (found, committed)]
    numbers = [
        [float(number.replace(",", "")) for number in NUMBER.findall(text)]
        for text in (found, committed)
    ]
    return texts[0] == texts[1] and all(
        abs(a - b) <= max(0.03 * abs(b), 1e-5) for a, b in zip(*numbers, strict=True)
    )


@pytest.mark.parametrize(
    ("found", "committed", "expected"),
    [
        ("107 kernels\n", "107 kernels", True),
        ("2 kernels", "107 kernels", False),
        ("107 kernels", "107 calls", False),
        ("off by 3.1e-07, 1,024 places", "off by 9.6e-08, 1,030 places", True),
    ],
)
def test_outputs_are_alike_but_for_rounding(found, committed, expected):
    assert alike(found, committed) is expected


def marks(path: Path) -> list:
    return [] if path.name.startswith(QUICK) else [pytest.mark.slow]


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=marks(path), id=path.stem) for path in NOTEBOOKS]
)
def test_a_notebook_runs_and_prints_what_is_committed(path, monkeypatch, tmp_path):
    """A cell whose output depends on the machine has the tag `measured`."""
    for extra in ("ipykernel", "ipywidgets", "matplotlib", "sklearn"):
        pytest.importorskip(extra, reason="needs pip install 'tinygmf[notebooks]'")
    nbclient = pytest.importorskip("nbclient", reason="needs pip install 'tinygmf[notebooks]'")
    nbformat = pytest.importorskip("nbformat", reason="needs pip install 'tinygmf[notebooks]'")
    from notebooks.course.execute import normalized

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # the user's own settings stay out of it
    before = {file.name for file in FOLDER.iterdir()}
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(FOLDER)}}
    client = nbclient.NotebookClient(
        notebook, timeout=None, startup_timeout=600, kernel_name="python3", resources=place
    )
    client.execute()  # CellExecutionError, with the cell, if one fails
    assert {file.name for file in FOLDER.iterdir()} == before, "a notebook left a file behind"
    for cell, committed in zip(normalized(notebook).cells, load(path)["cells"], strict=True):
        if cell.cell_type == "code" and "measured" not in cell.metadata.get("tags", []):
            assert alike(printed(cell), printed(committed)), printed(cell)
