"""Measure accuracy on a folder of labeled pictures, or on the test pictures of a data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygmf.commands import evaluate_dense
from tinygmf.commands.options import (
    add_classes,
    add_predictor,
    add_weights,
    chosen_classes,
    chosen_predictor,
    positive,
)
from tinygmf.files import counted, make_folder, printable, replacing, require_writable

if TYPE_CHECKING:
    from PIL.Image import Image

    from tinygmf.data.evaluation import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="one folder per class, or the files of CIFAR-10 or Fashion-MNIST; or a data set of "
        "`tinygmf train`: its test pictures or, if it has none, the held-out ones",
    )
    add_weights(parser)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="lines PICTURE CLASS, instead of class folders"
    )
    add_classes(parser)
    parser.add_argument("--batch-size", type=positive, default=16, help="pictures per run")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures and the confusion matrix"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="draw the confusion matrix, the worst answers and a sheet of answers; write a table "
        "by class",
    )
    parser.add_argument(
        "--task",
        choices=("segment", "detect", "instance"),
        help="measure a dense network: FOLDER holds annotated pictures, or is scenes",
    )
    add_predictor(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report; returns 1 if a picture could not be read."""
    if args.task:
        return evaluate_dense.run(args)
    from tinygmf.data.evaluation import evaluate
    from tinygmf.study.figures import require_matplotlib

    if args.json:
        require_writable(args.json)
    if args.out:
        require_matplotlib()
        make_folder(args.out)
    predict = chosen_predictor(args, args.batch_size)
    names = chosen_classes(args, predict)
    samples, load = chosen_pictures(args, names, predict.image_size)
    result = evaluate(predict, samples, load=load)
    report(result, names, load, args)
    return int(bool(result.unreadable))


def chosen_pictures(
    args: argparse.Namespace, names: list[str], size: int
) -> tuple[list[Any], Callable[[Any], Image]]:
    """The pictures of FOLDER with their class numbers in `names`, and a function to load one."""
    from tinygmf.data.evaluation import find_pictures
    from tinygmf.data.named import is_data_set, measured_pictures, open_data
    from tinygmf.data.pictures import Skipped
    from tinygmf.image import load_image

    if args.labels is None and is_data_set(args.folder):
        return measured_pictures(open_data(str(args.folder), size), names)
    skipped = Skipped()
    samples = find_pictures(args.folder, names, args.labels, skipped)
    if skipped:
        print(f"skipped: {skipped}", file=sys.stderr)
    return samples, load_image


def report(
    result: Evaluation, names: list[str], load: Callable[[Any], Image], args: argparse.Namespace
) -> None:
    """Print the figures, and write the files that were asked for."""
    from tinygmf.study.outcome import write_outcome

    for line in result.unreadable:
        print(f"skipped: {line}", file=sys.stderr)
    figures = {**result.as_json(names), "classes": names}
    print(
        f"top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%} of "
        f"{counted(result.count, 'picture')}, "
        f"{figures['pictures_per_second']:.1f} pictures/s, {len(result.unreadable)} unreadable",
        flush=True,
    )
    print_classes(figures["by_class"])
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps(figures, indent=1, allow_nan=False).encode())
    if args.out:
        written = write_outcome(args.out, result, names, load)
        print(f"{args.out}: {', '.join(written)}")


def print_classes(rows: list[dict[str, Any]], most: int = 20) -> None:
    """Print the accuracy of each class; of many classes only the lowest."""
    lowest = sorted(rows, key=lambda row: row["top1"])[:most] if len(rows) > most else rows
    if lowest is not rows:
        print(f"the {most} lowest of {len(rows)} classes:")
    for row in lowest:
        print(f"  {row['top1']:8.2%} of {row['pictures']:5}  {printable(row['class'])}")
