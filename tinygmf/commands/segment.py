"""Label every pixel of pictures."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from tinygmf.commands import overlays
from tinygmf.commands.overlays import Found, Look


def add_arguments(parser: argparse.ArgumentParser) -> None:
    overlays.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    overlays.choose(args, "scenes-segment")
    return overlays.run(args, "upernet semantic_fpn", lambda *known: looking(args, *known))


def looking(args: argparse.Namespace, model: Any, device: str) -> Look:
    from tinygmf.data.outlines import encode
    from tinygmf.dense.drawing import draw_segmentation
    from tinygmf.dense.segmenter import Segmenter

    segment = Segmenter(model, min_size=args.min_size, device=device)

    def look(pixels: np.ndarray, names: list[str], number: int) -> Found:
        classes = segment(pixels)[0].classes
        counts = np.bincount(classes.ravel(), minlength=len(names))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        lines = [f"{counts[i] / classes.size:8.2%}  {i:4}  {names[i]}" for i in order]
        results = [
            {"image_id": number, "category_id": i, "category": names[i]}
            | {"segmentation": encode(classes == i)}
            for i in sorted(order)
        ]
        return lines, results, lambda: draw_segmentation(pixels, classes, names)

    return look
