"""Name what pictures show."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import numpy as np

from tinygmf.commands.options import (
    add_classes,
    add_device,
    add_dtype,
    add_size,
    add_threads,
    add_weights,
    chosen_classes,
    chosen_device,
    chosen_size,
    positive,
)
from tinygmf.commands.pictures import Pictures, add_pictures
from tinygmf.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser)
    add_weights(parser)
    parser.add_argument("--topk", type=positive, default=5, help="answers for each picture")
    add_classes(parser)
    add_size(parser)
    add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Print an answer for each picture as soon as it is there; 1 where one could not be read."""
    from tinygmf.engine.predictor import Predictor
    from tinygmf.weights.checkpoint import load_weights

    out, pictures = sys.stdout, Pictures(args.images)
    with contextlib.redirect_stdout(sys.stderr):  # what tinygrad prints is no answer
        device = chosen_device(args)
        model = load_weights(args.weights, args.entry)
        names = chosen_classes(args, model)
        predict = Predictor(model, chosen_size(args, model), device=device, dtype=args.dtype)
        found = answers(predict, pictures, names, args.topk)
        if args.json:
            print_json(found, out)
        else:
            for answer in found:
                print_answer(answer, out)
        return pictures.finish()


def answers(
    predict: Any, pictures: Pictures, names: list[str], topk: int
) -> Iterator[dict[str, Any]]:
    """For each picture that can be read, its name and its likeliest classes."""
    from tinygmf.engine.predictor import probabilities, ranking

    for name, array in pictures.read(predict.read):
        row = probabilities(predict.run(np.stack([array])))[0]
        best = [int(i) for i in ranking(row)[:topk]]
        top = [{"class": i, "name": names[i], "probability": float(row[i])} for i in best]
        yield {"image": name, "top": top}


def print_answer(answer: dict[str, Any], out: TextIO) -> None:
    print(printable(answer["image"]), file=out)
    for entry in answer["top"]:
        name = printable(entry["name"])
        print(f"  {entry['probability']:8.2%}  {entry['class']:4}  {name}", file=out)


def print_json(found: Iterable[dict[str, Any]], out: TextIO) -> None:
    """One list, whole whatever ends it."""
    before = "["
    try:
        for answer in found:
            text = json.dumps(answer, indent=2, allow_nan=False)
            print(f"{before}\n{textwrap.indent(text, '  ')}", end="", file=out)
            before = ","
    finally:
        if before == ",":
            print("\n]", file=out)
