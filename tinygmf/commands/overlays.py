"""Shared by `segment` and `detect`: their options, and the drawings they write."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinygmf.commands.options import (
    add_classes,
    add_device,
    add_weights,
    check_memory,
    chosen_device,
    positive,
)
from tinygmf.commands.pictures import Pictures, add_pictures
from tinygmf.dense.drawing import names_for
from tinygmf.files import make_folder, printable, replacing

DEMO = Path(__file__).parents[1] / "assets" / "scenes"  # three held-out scenes

# What is found in a picture (H, W, 3): lines to print, results in COCO's format, a drawing
Found = tuple[list[str], list[dict[str, Any]], Callable[[], Image.Image]]
Look = Callable[[np.ndarray, Any, int], Found]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pictures(parser, required=False)
    add_weights(parser, required=False)
    parser.add_argument(
        "--demo", action="store_true", help="use the bundled network on three scenes"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the drawings")
    parser.add_argument(
        "--json", action="store_true", help="print results in COCO's format; draw only with --out"
    )
    parser.add_argument(
        "--min-size",
        type=positive,
        metavar="N",
        help="shorter side, in pixels, that the network sees",
    )
    add_classes(parser)
    add_device(parser)


def choose(args: argparse.Namespace, network: str) -> None:
    """Replace `--demo` by the bundled pictures, and by `network` of `BUNDLED`."""
    given = {"PICTURE": args.images, "--weights": args.weights}
    if args.demo:
        if named := [name for name, value in given.items() if value]:
            raise ValueError(f"--demo: expected it alone, found {named[0]} too: leave one out")
        args.images, args.weights = [str(DEMO)], network
    elif missing := [name for name, value in given.items() if not value]:
        raise ValueError(f"{missing[0]}: expected one, found none: name it, or give --demo alone")


def run(args: argparse.Namespace, kinds: str, look: Callable[[Any, str], Look]) -> int:
    """Look at every picture: print, draw, or both; returns 1 if one could not be read.

    `kinds` names the accepted networks; `look(model, device)` returns the function for one
    picture.
    """
    from tinygmf.dense.networks import load_model

    out = args.out or (None if args.json else Path(f"tinygmf_{args.command}"))
    results: list[dict[str, Any]] = []
    pictures, stdout = Pictures(args.images), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what tinygrad prints is not a result
        device = chosen_device(args)
        model = load_model(args.weights, entry=args.entry)
        require(args, model, kinds)
        names = names_for(own_names(args, model), model.config.num_classes)
        look_at = look(model, device)
        paths = places(out) if out else None
        for number, (name, pixels) in enumerate(pictures.read(pixels_of), start=1):
            lines, found, draw = look_at(pixels, names, number)
            results += [{"file_name": name} | result for result in found]
            if not args.json:
                print(printable(name), *(f"  {line}" for line in lines), sep="\n", file=stdout)
            if paths is not None:
                save(draw(), paths(name), None if args.json else stdout)
        code = pictures.finish()
    if args.json:
        print(json.dumps(results, indent=1, allow_nan=False), file=stdout)
    return code


def require(args: argparse.Namespace, model: Any, kinds: str) -> None:
    """Raise ValueError unless the network is one of `kinds`, and a picture fits in memory."""
    from tinygmf.dense.networks import kind_of_network

    kind = kind_of_network(model)
    if kind not in kinds.split():
        expected = " or ".join(kinds.split())
        found = kind or "a classification network"
        raise ValueError(f"{args.weights}: expected {expected}, found {found}: name another file")
    given, settings = getattr(args, "min_size", None), model.settings
    size = min(given or settings.min_size, settings.max_size)
    where = f"--min-size {given}" if given else f"{args.weights}: min_size {size}"
    check_memory(size, model.config.backbone, where)


def own_names(args: argparse.Namespace, model: Any) -> list[str]:
    """The names of the network's classes, by --classes or its file; none if neither has them."""
    from tinygmf.data.classes import known_names

    count = model.config.num_classes
    known = known_names(model.settings, args.weights, args.classes)
    if known and len(known[1]) != count:
        raise ValueError(
            f"{known[0]}: expected {count} names, one for each class of {args.weights}, found "
            f"{len(known[1])}: name another file with --classes"
        )
    return known[1] if known else []


def pixels_of(picture: Any) -> np.ndarray:
    from tinygmf.image import as_rgb

    return np.asarray(as_rgb(picture))


def places(folder: Path) -> Callable[[str], Path]:
    """Return a function from a picture's name to a file for its drawing, new each time."""
    make_folder(folder)
    taken: set[str] = set()

    def place(name: str) -> Path:
        stem = Path(name).stem if name != "-" else "stdin"
        free = next(own for own in numbered(stem) if own not in taken)
        taken.add(free)
        return folder / f"{free}.png"

    return place


def numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def save(image: Image.Image, path: Path, told: Any) -> None:
    with replacing(path) as file:
        image.save(file, "PNG")
    if told is not None:
        print(f"  drawing: {path}", file=told)
