"""Classify pictures."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image, ImageDraw

from tinygmf.commands.options import (
    add_classes,
    add_predictor,
    add_weights,
    chosen_classes,
    chosen_predictor,
    positive,
)
from tinygmf.commands.overlays import places, save
from tinygmf.commands.pictures import Pictures, add_pictures
from tinygmf.dense.drawing import font_for
from tinygmf.files import printable

LARGEST = 1600  # pixels of the longer side of a captioned picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser)
    add_weights(parser)
    parser.add_argument("--topk", type=positive, default=5, help="answers per picture")
    add_classes(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV: one line per picture")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder for the pictures, each with its answer written below",
    )
    add_predictor(parser)


def run(args: argparse.Namespace) -> int:
    """Print each answer as soon as it is known; returns 1 if a picture could not be read."""
    out, pictures = sys.stdout, Pictures(args.images)
    with contextlib.redirect_stdout(sys.stderr):  # what tinygrad prints is not a result
        predict = chosen_predictor(args)
        names = chosen_classes(args, predict)
        found = answers(predict, pictures, names, args.topk, args.out)
        if args.json:
            print_json(found, out)
        elif args.csv:
            print_csv(found, min(args.topk, len(names)), out)
        else:
            for answer in found:
                print_answer(answer, out)
        return pictures.finish()


def answers(
    predict: Any, pictures: Pictures, names: list[str], topk: int, folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the name and the likeliest classes of each readable picture; with `folder`, save the
    picture there with its answer written below."""
    from tinygmf.engine.predictor import probabilities, ranking
    from tinygmf.image import as_rgb

    def read(picture: Any) -> tuple[np.ndarray, Image.Image | None]:
        if folder is None:
            return predict.read(picture), None
        whole = as_rgb(picture)
        array, drawn = predict.read(whole), whole.copy()
        drawn.thumbnail((LARGEST, LARGEST))
        return array, drawn

    paths = places(folder) if folder else None
    for name, (array, drawn) in pictures.read(read):
        row = probabilities(predict.run(np.stack([array])))[0]
        best = [int(i) for i in ranking(row)[:topk]]
        top = [{"class": i, "name": names[i], "probability": float(row[i])} for i in best]
        if paths is not None and drawn is not None:
            told = f"{printable(names[best[0]])} {row[best[0]]:.0%}"
            save(written_on(drawn, told), paths(name), None)
        yield {"image": name, "top": top}


def written_on(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a line of text in a band below it, as large as fits the width."""
    width, height = max(picture.width, 96), picture.height
    size = max(12, min(width // 16, 48))
    while size > 8 and font_for(text, size).getlength(text) > width - 8:
        size -= 2
    sheet = Image.new("RGB", (width, height + 2 * size), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    middle = width // 2, height + size
    draw = ImageDraw.Draw(sheet)
    draw.text(middle, text, fill="black", font=font_for(text, size), anchor="mm")
    return sheet


def print_answer(answer: dict[str, Any], out: TextIO) -> None:
    print(printable(answer["image"]), file=out)
    for entry in answer["top"]:
        name = printable(entry["name"])
        print(f"  {entry['probability']:8.2%}  {entry['class']:4}  {name}", file=out)


def print_csv(found: Iterable[dict[str, Any]], topk: int, out: TextIO) -> None:
    """`image,answer_1,probability_1,answer_2,…`"""
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{what}_{i}" for i in range(1, topk + 1) for what in ("answer", "probability")]
    writer.writerow(["image", *heads])
    for answer in found:
        cells = [x for top in answer["top"] for x in (top["name"], f"{top['probability']:.6f}")]
        writer.writerow([answer["image"], *cells])


def print_json(found: Iterable[dict[str, Any]], out: TextIO) -> None:
    """Print one list; it is valid JSON even if an error ends it."""
    before = "["
    try:
        for answer in found:
            text = json.dumps(answer, indent=2, allow_nan=False)
            print(f"{before}\n{textwrap.indent(text, '  ')}", end="", file=out)
            before = ","
    finally:
        if before == ",":
            print("\n]", file=out)
