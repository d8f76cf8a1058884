"""What `segment` and `detect` have in common: their options, the demo, the drawings they leave."""

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

from tinygmf.commands.options import add_classes, add_device, chosen_device
from tinygmf.commands.pictures import Pictures
from tinygmf.dense.drawing import names_for
from tinygmf.files import printable, replacing

ASSETS = Path(__file__).parents[1] / "assets"
SCENES = ASSETS / "scenes"  # held-out ones

# What is found in a picture (H, W, 3): lines to print, results for COCO, a drawing
Found = tuple[list[str], list[dict[str, Any]], Callable[[], Image.Image]]
Look = Callable[[np.ndarray, Any, int], Found]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="files, folders, globs, or - for standard input: a picture, or names, one a line",
    )
    parser.add_argument("--weights", metavar="FILE", help=".pth or .safetensors")
    parser.add_argument(
        "--demo", action="store_true", help="three generated scenes, and the network that comes"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the drawings")
    parser.add_argument(
        "--json", action="store_true", help="print COCO's results; draw only with --out"
    )
    parser.add_argument(
        "--min-size", type=int, metavar="N", help="pixels of the shorter side, for the network"
    )
    add_classes(parser)
    add_device(parser)


def run(args: argparse.Namespace, demo: str, kinds: str, look: Callable[[Any, str], Look]) -> int:
    """Look at every picture: print, draw, or both; 1 where one could not be read.

    `demo` names the shipped weights, `kinds` the networks that will do; `look(model, device)` gives
    what looks at one picture.
    """
    from tinygmf.dense.networks import load_model

    chosen_pictures(args, demo)
    out = args.out or (None if args.json else Path(f"tinygmf_{args.command}"))
    results: list[dict[str, Any]] = []
    pictures, stdout = Pictures(args.images), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what tinygrad prints is no answer
        device = chosen_device(args)
        model = load_model(args.weights)
        require(args.weights, model, kinds)
        names, look_at = chosen_names(args, model), look(model, device)
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


def chosen_pictures(args: argparse.Namespace, demo: str) -> None:
    """Fills in the demo's pictures and weights. Raises ValueError where there are none."""
    if args.demo:
        args.images = args.images or [str(SCENES)]
        args.weights = args.weights or ASSETS / demo
    if not args.images or not args.weights:
        missing = "pictures" if not args.images else "a network in --weights"
        raise ValueError(
            f"{args.command}: expected {missing}, found none: name them, or add --demo"
        )


def require(path: Any, model: Any, kinds: str) -> str:
    """The network's kind. Raises ValueError where it is none of `kinds`."""
    from tinygrad.nn.state import get_state_dict

    from tinygmf.dense.networks import kind_of

    kind = kind_of({name: tensor.shape for name, tensor in get_state_dict(model).items()})
    if kind not in kinds.split():
        expected = " or ".join(kinds.split())
        found = kind or "a classification network"
        raise ValueError(f"{path}: expected {expected}, found {found}: name another file")
    return kind


def chosen_names(args: argparse.Namespace, model: Any) -> list[str]:
    from tinygmf.data.classes import known_names

    count = model.config.num_classes
    known = known_names(model.settings, args.weights, args.classes)
    if known and len(known[1]) != count:
        raise ValueError(
            f"{known[0]}: expected {count} names, one for each class of {args.weights}, found "
            f"{len(known[1])}: name another file with --classes"
        )
    return names_for(known[1] if known else (), count)


def pixels_of(picture: Any) -> np.ndarray:
    from tinygmf.image import as_rgb

    return np.asarray(as_rgb(picture))


def places(folder: Path) -> Callable[[str], Path]:
    """A name for each picture's drawing, none twice."""
    folder.mkdir(parents=True, exist_ok=True)
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
