"""Measure accuracy on a folder of labelled pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tinygmf.commands.options import add_device, add_dtype, add_size, add_weights, positive
from tinygmf.files import replacing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="one folder for each class")
    add_weights(parser)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="lines PICTURE CLASS instead")
    add_size(parser)
    parser.add_argument("--batch-size", type=positive, default=16, help="pictures in one run")
    add_dtype(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write figures and confusion table"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.data.evaluation import evaluate, find_pictures
    from tinygmf.engine.predictor import Predictor
    from tinygmf.weights.checkpoint import load_weights

    weights = load_weights(args.weights)
    samples = find_pictures(args.folder, weights.config.num_classes, args.labels)
    predict = Predictor(
        weights, args.size, batch_size=args.batch_size, dtype=args.dtype, device=args.device
    )
    result = evaluate(predict, samples)
    for line in result.unreadable:
        print(f"passed over: {line}", file=sys.stderr)
    figures = result.as_json()
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps(figures, indent=1).encode())
    print(
        f"top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%} of {result.count} pictures, "
        f"{figures['pictures_per_second']:.1f} pictures/s, {len(result.unreadable)} unreadable"
    )
    return 0
