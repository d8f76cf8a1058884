"""Name what pictures show."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tinygmf.commands.options import add_device, add_dtype, add_size, add_weights, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, …")
    add_weights(parser)
    parser.add_argument("--topk", type=positive, default=5, help="answers for each picture")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="names of the classes, one a line"
    )
    add_size(parser)
    add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.engine.predictor import Predictor, probabilities, ranking
    from tinygmf.image import load_image
    from tinygmf.weights.checkpoint import load_weights

    pictures = [load_image(path) for path in args.images]  # mistakes first, compiling later
    predict = Predictor(load_weights(args.weights), args.size, device=args.device, dtype=args.dtype)
    if not predict.config.num_classes:
        raise ValueError(f"{args.weights}: expected a network with a head, found one without")
    names = class_names(predict.config.num_classes, Path(args.weights), args.classes)
    topk = min(args.topk, len(names))
    answers: list[dict[str, Any]] = []
    for path, row in zip(args.images, probabilities(predict(pictures)), strict=True):
        best = [int(i) for i in ranking(row)[:topk]]
        top = [{"class": i, "name": names[i], "probability": float(row[i])} for i in best]
        answers.append({"image": str(path), "top": top})
    if args.json:
        print(json.dumps(answers, indent=2))
        return 0
    for answer in answers:
        print(answer["image"])
        for entry in answer["top"]:
            print(f"  {entry['probability']:8.2%}  {entry['class']:4}  {entry['name']}")
    return 0


def class_names(num_classes: int, weights: Path, file: Path | None) -> list[str]:
    """From a file, a name a line: the given one, else classes.txt beside the weights, as training
    writes it. Without one ImageNet's names for 1,000 classes, or the classes' numbers."""
    from tinygmf.image import imagenet_labels

    path = file or weights.with_name("classes.txt")
    if file is None and not path.exists():
        return imagenet_labels() if num_classes == 1000 else [str(i) for i in range(num_classes)]
    names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != num_classes:
        raise ValueError(
            f"{path}: expected {num_classes} lines, the names of {weights}'s classes, found "
            f"{len(names)}: name another file with --classes"
        )
    return names
