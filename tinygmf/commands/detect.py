"""Find objects in pictures: boxes, and masks if the network has them."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from tinygmf.commands import overlays
from tinygmf.commands.overlays import Found, Look


def add_arguments(parser: argparse.ArgumentParser) -> None:
    overlays.add_arguments(parser)
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="X",
        help="lowest score shown [0.5]; --json goes down to the network's own threshold",
    )


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.score <= 1:
        raise ValueError(f"--score: expected 0 to 1, found {args.score}")
    overlays.choose(args, "scenes-instance")
    return overlays.run(args, "retinanet maskrcnn", lambda *known: looking(args, *known))


def looking(args: argparse.Namespace, model: Any, device: str) -> Look:
    from tinygmf.data.coco import coco_results
    from tinygmf.dense.detector import Detector
    from tinygmf.dense.drawing import draw_detections

    sizes = {} if args.min_size is None else {"min_size": args.min_size}
    detect = Detector(model, device=device, **sizes)

    def look(pixels: np.ndarray, names: list[str], number: int) -> Found:
        found = detect(pixels)[0]
        results = coco_results(number, found, list(range(len(names))))
        results = [result | {"category": names[result["category_id"]]} for result in results]
        shown = found.above(args.score)
        lines = [
            f"{score:8.2%}  {names[label]}  " + " ".join(f"{side:.0f}" for side in box)
            for box, score, label in zip(shown.boxes, shown.scores, shown.labels, strict=True)
        ]
        return lines or ["nothing found"], results, lambda: draw_detections(pixels, shown, names)

    return look
