"""`tinygmf evaluate --task`: a dense network measured on annotated pictures."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import asdict
from typing import Any

from tinygmf.commands.options import chosen_device
from tinygmf.commands.overlays import own_names, require
from tinygmf.files import counted, printable, replacing, require_writable

NETWORKS = {
    "segment": "upernet semantic_fpn",
    "detect": "retinanet maskrcnn",
    "instance": "maskrcnn",
}
# Options of `evaluate` that mean nothing here: pictures are measured one by one, at their own sizes
OTHERS = "size", "labels", "batch_size", "dtype", "out"


def run(args: argparse.Namespace) -> int:
    """Print the figures and a line for each class, then save them; returns 1 if a picture or an
    annotation could not be used."""
    from tinygmf.dense.networks import load_model

    for name in OTHERS:
        if getattr(args, name) != args.parser.get_default(name):
            raise ValueError(
                f"--{name.replace('_', '-')}: expected no such option with --task, found one: "
                "leave it out"
            )
    if args.json:
        require_writable(args.json)
    device = chosen_device(args)
    model = load_model(args.weights, entry=args.entry)
    require(args, model, NETWORKS[args.task])
    data = chosen_data(args, model)
    measure = segmentation_figures if args.task == "segment" else detection_figures
    figures = measure(model, data, device)
    print(*data.report(), sep="\n", end="\n" if data.broken else "")
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps(known(figures), indent=1, allow_nan=False).encode())
    return int(bool(data.broken))


def chosen_data(args: argparse.Namespace, model: Any) -> Any:
    """The annotated pictures, their classes numbered as the network's are: by name, or as they are
    if one side has no names.

    Raises ValueError if the network does not know the classes.
    """
    from tinygmf.data.dense_folders import open_dense
    from tinygmf.dense.evaluation import renumbered

    names, data = own_names(args, model), open_dense(args.folder, args.task)
    if names and are_numbers(names) == are_numbers(data.classes):
        return renumbered(data, names)
    if model.config.num_classes != len(data.classes):
        raise ValueError(
            f"{args.weights}: expected {len(data.classes)} classes, those of {args.folder}, found "
            f"{model.config.num_classes}: evaluate it on the data it was trained on"
        )
    nameless = args.folder if are_numbers(data.classes) else args.weights
    print(f"{nameless}: its classes have no names, their numbers decide", file=sys.stderr)
    return data


def are_numbers(names: list[str]) -> bool:
    """Whether these stand for names that nobody gave: of masks without a list of classes."""
    return all(re.fullmatch(r"class \d+", name) for name in names)


def known(figures: Any) -> Any:
    """Replace NaN, which stands for 0 / 0, by None: JSON has no NaN."""
    if isinstance(figures, dict):
        return {name: known(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [known(value) for value in figures]
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def percent(value: float) -> str:
    """A share as text; of nothing there is none."""
    return "none" if math.isnan(value) else f"{value:.2%}"


def segmentation_figures(model: Any, data: Any, device: str) -> dict[str, Any]:
    from tinygmf.dense.evaluation import score_segmentation

    score = score_segmentation(model, data, device=device)
    print(f"{'class':24} {'IoU':>8} {'found':>8} {'pixels':>12}")
    for row in score.table():
        shares = f"{percent(row['iou']):>8} {percent(row['recall']):>8}"
        print(f"{printable(row['class']):24.24} {shares} {row['pixels']:12,}")
    print(
        f"mean IoU {percent(score.mean_iou)}, pixel accuracy {percent(score.pixel_accuracy)} of "
        f"{counted(score.pictures, 'picture')}"
    )
    figures = {"mean_iou": score.mean_iou, "pixel_accuracy": score.pixel_accuracy}
    return {**figures, "pictures": score.pictures, "classes": score.table()}


def detection_figures(model: Any, data: Any, device: str) -> dict[str, Any]:
    from tinygmf.dense.evaluation import score_detection

    figures = {}
    for kind, score in score_detection(model, data, device=device).items():
        what = {"bbox": "boxes", "segm": "masks"}[kind]
        print(f"{what:24} {'AP':>8} {'AP@50':>8}")
        for name, (ap, ap50) in score.by_class.items():
            print(f"{printable(name):24.24} {percent(ap):>8} {percent(ap50):>8}")
        parts = {"AP": score.ap, "AP@50": score.ap50, "AP@75": score.ap75, "small": score.ap_small}
        parts |= {"medium": score.ap_medium, "large": score.ap_large}
        words = ", ".join(f"{name} {percent(value)}" for name, value in parts.items())
        print(f"{what}: {words} of {counted(score.pictures, 'picture')}")
        figures[kind] = asdict(score)
    return figures
