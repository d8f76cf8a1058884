"""How a network did on labeled pictures, in figures: confusion, worst answers, a sheet of answers.

The figures need matplotlib (`plots`); `write_outcome` writes a table of accuracy by class anyway.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tinygmf.data.evaluation import Answer, Evaluation
from tinygmf.files import printable, replacing
from tinygmf.study.figures import MARK, has_matplotlib, make_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET, COLUMNS = 24, 6  # pictures on a sheet, and per row
NUMBERED = 25  # the most classes for which every cell of the confusion shows its number
LABELLED = 60  # the most for which every row and column is named
LONGEST = 18  # characters of a name in a figure


def write_outcome(
    folder: Path, found: Evaluation, names: Sequence[str], load: Callable[[Any], Image.Image]
) -> list[str]:
    """Write `by_class.csv` and, if matplotlib is installed, `confusion.png`, `predictions.png` and
    `worst.png`; return the names of the files written. `load(source)` returns a picture."""
    with replacing(folder / "by_class.csv") as file:
        file.write(class_table(found, names).encode())
    if not has_matplotlib():
        return ["by_class.csv"]
    figures = {
        "confusion.png": draw_confusion(found.confusion, names),
        "predictions.png": draw_answers(spread(found.answers), names, load, "Answers"),
        "worst.png": draw_answers(found.worst(SHEET), names, load, "The worst answers"),
    }
    for name, figure in figures.items():
        with replacing(folder / name) as file:
            figure.savefig(file, format="png")
    return ["by_class.csv", *figures]


def class_table(found: Evaluation, names: Sequence[str]) -> str:
    """CSV: each class, its number of pictures, how many were right, and their share."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pictures", "right", "top1"])
    for row in found.by_class(names):
        writer.writerow(row.values())
    return text.getvalue()


def spread(answers: Sequence[Answer], most: int = SHEET) -> list[Answer]:
    """Up to `most` answers, taken from each class in turn."""
    turns: dict[int, int] = {}
    ranked = []
    for place, answer in enumerate(answers):
        turn = turns[answer.label] = turns.get(answer.label, -1) + 1
        ranked.append((turn, answer.label, place))
    return [answers[place] for *_, place in sorted(ranked)[:most]]


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """A row for each true class, a column for each answer; colours are shares of the row."""
    classes = len(names)
    side = max(4.0, 1.6 + 0.42 * min(classes, LABELLED))
    figure, axes = make_panels(1, 1, side + 1.2, side)
    axis, totals = axes[0, 0], confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the pictures of a class", fraction=0.046)
    axis.set(xlabel="answer", ylabel="true class")
    axis.set_title(f"{int(np.trace(confusion))} of {confusion.sum()} right", fontsize=10)
    if classes <= LABELLED:
        labels = [shortened(name) for name in names]
        axis.set_xticks(range(classes), labels, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(classes), labels, fontsize=8)
    if classes <= NUMBERED:
        for t, p in np.argwhere(confusion):
            ink = "black" if shares[t, p] > 0.5 else "white"
            axis.text(p, t, str(confusion[t, p]), ha="center", va="center", color=ink, fontsize=8)
    return figure


def draw_answers(
    answers: Sequence[Answer],
    names: Sequence[str],
    load: Callable[[Any], Image.Image],
    title: str,
) -> Figure:
    """A sheet of pictures with the answer above each, and the true class if that was another."""
    columns = min(COLUMNS, max(len(answers), 1))
    figure, axes = make_panels(-(-max(len(answers), 1) // columns), columns, 1.7, 2.1)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, answer in zip(axes.flat, answers, strict=False):
        picture = load(answer.source).copy()
        picture.thumbnail((256, 256))
        axis.imshow(picture)
        said = f"{shortened(names[answer.answer])} {answer.probability:.0%}"
        truth = "" if answer.right else f"\nit is {shortened(names[answer.label])}"
        axis.set_title(said + truth, fontsize=8, color="black" if answer.right else MARK)
    figure.suptitle(title, fontsize=11)
    return figure


def shortened(name: str) -> str:
    """A name that fits in a figure, escaped so that matplotlib reads no formula in it."""
    name = printable(name).replace("$", r"\$")
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
