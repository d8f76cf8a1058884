"""Execute notebooks and write them as they are committed:

    python notebooks/course/execute.py          all of them
    python notebooks/course/execute.py 03 07    those whose names begin so

A notebook is committed in one form: executed from top to bottom, with the outputs that the present
code gives, and nothing that tells of the one who ran it: no timestamps, no state of widgets. Of
each cell the seconds of processor time are printed, which other work on the machine does not touch.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}
PROGRESS = re.compile(r"\d+%\||compiling for this device")
SLOW = 3.0  # seconds, from which a cell is named


def main(names: list[str]) -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.name.startswith(tuple(names)) or not names:
            write(path, normalized(smaller(executed(path))))


def write(path: Path, notebook: Any) -> None:
    path.write_text(text_of(notebook), encoding="utf-8")


def text_of(notebook: Any) -> str:
    """The file's text, in the one form that Jupyter itself writes."""
    return nbformat.writes(notebook, version=4) + "\n"


def executed(path: Path) -> Any:
    """The notebook, run from top to bottom in a new kernel; CellExecutionError if a cell fails."""
    import nbclient

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    seconds: list[float] = []
    client.on_cell_execute = lambda cell, cell_index: seconds.append(-processor_time(client))
    client.on_cell_executed = lambda cell, cell_index, execute_reply: report(
        cell_index, seconds, processor_time(client)
    )
    print(path.name, flush=True)
    client.execute()
    print(f"  {sum(seconds):6.1f} s together", flush=True)
    return notebook


def processor_time(client: Any) -> float:
    """Seconds that the kernel and the compilers it called have had a processor."""
    import psutil

    return sum(psutil.Process(client.km.provisioner.pid).cpu_times()[:4])


def report(index: int, seconds: list[float], now: float) -> None:
    seconds[-1] += now
    if seconds[-1] > SLOW:
        print(f"  {seconds[-1]:6.1f} s  cell {index}", flush=True)


def normalized(notebook: Any) -> Any:
    """The notebook without what differs from one run to the next: timestamps, widgets,
    the version of Python, bars, the ids of cells."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [tidy(output) for output in cell.outputs if not passes(output)]
    return notebook


def smaller(notebook: Any) -> Any:
    """The notebook with the same pictures in fewer bytes: opaque, and packed as `packed` does."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).pop("image/png", None):
                kind, data = packed(base64.b64decode(png))
                output["data"][kind] = base64.b64encode(data).decode()
                if "image/png" in output.metadata:
                    output.metadata[kind] = output.metadata.pop("image/png")
    return notebook


def packed(png: bytes) -> tuple[str, bytes]:
    """A picture and its kind: as tightly as PNG goes, which suits lines and letters; or JPEG at a
    quality that looks the same, where that takes less than 0.6 of it, as it does of photographs."""
    with Image.open(io.BytesIO(png)) as picture:
        opaque = picture.convert("RGB")
    exact, close = io.BytesIO(), io.BytesIO()
    opaque.save(exact, "PNG", optimize=True)
    opaque.save(close, "JPEG", quality=90, subsampling=0, optimize=True)
    if close.tell() < 0.6 * exact.tell():
        return "image/jpeg", close.getvalue()
    return "image/png", exact.getvalue()


def passes(output: Any) -> bool:
    """What is only there while a kernel runs: widgets, bars, and the line that says that programs
    are compiled once."""
    if output.output_type != "stream" or output.name != "stderr":
        return "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    lines = [line for line in re.split(r"[\r\n]", output.text) if line.strip()]
    return all(PROGRESS.search(line) for line in lines)


def tidy(output: Any) -> Any:
    """An output without metadata, but for the description of a picture."""
    if "data" in output:
        about = output.metadata.items()
        described = {kind: {"alt": more["alt"]} for kind, more in about if "alt" in (more or ())}
        output.metadata = nbformat.from_dict(described)
    return output


if __name__ == "__main__":
    main(sys.argv[1:])
