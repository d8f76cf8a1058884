"""What a run reports: tables in JSON lines and CSV, curves as a picture, TensorBoard files."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import time
from pathlib import Path
from typing import Any

from tinygmf.files import replacing

Rows = list[dict[str, Any]]  # one for each epoch
MEASURES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "ap50": "AP at 0.5",
    "ap": "AP",
}


def write_tables(folder: Path, rows: Rows) -> None:
    """`log.jsonl` and `log.csv`, rewritten each time, so that a resumed run repeats no line."""
    with replacing(folder / "log.jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with replacing(folder / "log.csv") as file:
        file.write(text.getvalue().encode())


def measures(row: dict[str, Any]) -> dict[str, str]:
    """The measures on the validation pictures, and the labels of their curves."""
    return {name: label for name, label in MEASURES.items() if name in row}


def write_tensorboard(folder: Path, rows: Rows) -> None:
    """The same for TensorBoard, in the folder `tensorboard`, if tensorboardX is installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        return
    tensorboard = importlib.import_module("tensorboardX")
    place = folder / "tensorboard"
    for path in place.glob("events.*"):
        path.unlink()
    moment = time.time() - sum(row["seconds"] for row in rows)
    with tensorboard.SummaryWriter(str(place)) as writer:
        for row in rows:
            moment += row["seconds"]
            for name in ("loss", "learning_rate", *measures(row), "pictures_per_second"):
                writer.add_scalar(name, row[name], row["epoch"], walltime=moment)


def write_curves(path: Path, rows: Rows) -> bool:
    """Plot loss and accuracy over the epochs; return False if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.xaxis.get_major_locator().set_params(integer=True)
    for name, label in measures(rows[0]).items():
        right.plot(epochs, [100 * row[name] for row in rows], marker=".", label=label)
    right.set(xlabel="epoch", ylabel="of the validation pictures, %")
    right.legend()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True
