"""`tinygmf evaluate --task`: a dense network measured on annotated pictures."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from typing import Any

from tinygmf.commands.options import chosen_device
from tinygmf.commands.overlays import require
from tinygmf.files import replacing, require_writable

NETWORKS = {
    "segment": "upernet semantic_fpn",
    "detect": "retinanet maskrcnn",
    "instance": "maskrcnn",
}


def run(args: argparse.Namespace) -> int:
    """Print the figures and a line for each class, then save them."""
    from tinygmf.data.dense_folders import open_dense
    from tinygmf.dense.networks import load_model

    if args.out:
        raise ValueError("--out: expected no such option with --task, found one: leave it out")
    if args.json:
        require_writable(args.json)
    device = chosen_device(args)
    model = load_model(args.weights, entry=args.entry)
    require(args.weights, model, NETWORKS[args.task])
    data = open_dense(args.folder, args.task)
    if model.config.num_classes != len(data.classes):
        raise ValueError(
            f"{args.weights}: expected {len(data.classes)} classes, those of {args.folder}, found "
            f"{model.config.num_classes}: evaluate it on the data it was trained on"
        )
    measure = segmentation_figures if args.task == "segment" else detection_figures
    figures = measure(model, data, device)
    print(*data.report(), sep="\n", end="\n" if data.broken else "")
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps(known(figures), indent=1, allow_nan=False).encode())
    return 0


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
        print(f"{row['class']:24.24} {shares} {row['pixels']:12,}")
    print(
        f"mean IoU {percent(score.mean_iou)}, pixel accuracy {percent(score.pixel_accuracy)} of "
        f"{len(data.val)} pictures"
    )
    figures = {"mean_iou": score.mean_iou, "pixel_accuracy": score.pixel_accuracy}
    return {**figures, "classes": score.table()}


def detection_figures(model: Any, data: Any, device: str) -> dict[str, Any]:
    from tinygmf.dense.evaluation import score_detection

    figures = {}
    for kind, score in score_detection(model, data, device=device).items():
        what = {"bbox": "boxes", "segm": "masks"}[kind]
        print(f"{what:24} {'AP':>8} {'AP@50':>8}")
        for name, (ap, ap50) in score.by_class.items():
            print(f"{name:24.24} {percent(ap):>8} {percent(ap50):>8}")
        parts = {"AP": score.ap, "AP@50": score.ap50, "AP@75": score.ap75, "small": score.ap_small}
        parts |= {"medium": score.ap_medium, "large": score.ap_large}
        words = ", ".join(f"{name} {percent(value)}" for name, value in parts.items())
        print(f"{what}: {words} of {len(data.val)} pictures")
        figures[kind] = asdict(score)
    return figures
