"""Draw what the attention makes of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL.Image import Image

from tinygmf.commands.options import (
    add_device,
    add_size,
    add_weights,
    chosen_device,
    chosen_size,
)
from tinygmf.commands.pictures import Pictures, add_pictures
from tinygmf.files import replacing, require_writable
from tinygmf.study.observe import KERNELS, PANELS, Observation, Position, choose_block, observe

SUFFIXES = (".png", ".svg", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tinygmf explain`."""
    add_pictures(parser)
    add_weights(parser)
    parser.add_argument("--stage", type=int, help="1 to 4; by default the last with 8x8 tokens")
    parser.add_argument("--block", type=int, help="from 1; by default the fifth, or the last")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--query", type=_position, metavar="Y,X", help="draw what this pixel attends to"
    )
    what.add_argument("--kernel", type=int, choices=KERNELS, help="draw this group aggregator")
    parser.add_argument("--out", default="explain.png", help="ends in .png, .svg or .npz (arrays)")
    add_size(parser)
    add_device(parser)


def _position(text: str) -> Position:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected two whole numbers Y,X, found {text!r}")
    return int(parts[0]), int(parts[1])


def run(args: argparse.Namespace) -> int:
    """See what Group-Mix Attention makes of pictures; 1 where one could not be read."""
    from tinygmf.image import as_rgb, normalize, resize_and_crop
    from tinygmf.study import figures
    from tinygmf.weights.checkpoint import load_model

    out = Path(args.out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    require_writable(out)
    if out.suffix != ".npz":
        figures.require_matplotlib()
    chosen_device(args)
    model = load_model(args.weights, entry=args.entry)
    size, settings, pictures = chosen_size(args, model), model.settings, Pictures(args.images)
    place = choose_block(model.config, (size, size), args.stage, args.block)
    _check_query(args.query, size)
    found = list(pictures.read(lambda picture: resize_and_crop(as_rgb(picture), size, settings)))
    code = pictures.finish()
    names, crops = [name for name, _ in found], [crop for _, crop in found]
    seen = observe(model, np.stack([normalize(crop, settings) for crop in crops]), *place)
    with replacing(out) as file:
        if out.suffix == ".npz":
            _save_arrays(file, names, seen, args)
        else:
            _draw(crops, seen, model, args).savefig(file, format=out.suffix[1:])
    rows, columns = seen[0].size
    print(f"{out}: stage {place[0]}, block {place[1]}, {rows}x{columns} tokens")
    return code


def _draw(
    crops: Sequence[Image], seen: Sequence[Observation], model: Any, args: argparse.Namespace
) -> Any:
    """The figure that the options ask for."""
    from tinygmf.study import figures

    if args.query:
        return figures.draw_attention(crops, seen, args.query)
    if args.kernel:
        return figures.draw_proxies(crops, seen, model, args.kernel)
    return figures.draw_responses(crops, seen)


def _check_query(query: Position | None, size: int) -> None:
    """Before anything is computed: a mistake should not cost a minute."""
    if query and not all(0 <= coordinate < size for coordinate in query):
        y, x = query
        raise ValueError(f"--query: expected Y and X from 0 to {size - 1}, found {y},{x}")


def _save_arrays(
    file: BinaryIO, names: Sequence[str], seen: Sequence[Observation], args: argparse.Namespace
) -> None:
    """Every map of every picture, in one .npz: pictures first, in the order given."""
    maps = [one.responses() for one in seen]
    arrays = {name.replace(" ", "_"): np.stack([m[name] for m in maps]) for name in PANELS}
    if args.query:
        arrays["attention"] = np.concatenate([one.attention_rows([args.query]) for one in seen])
    if args.kernel:
        pairs = [one.before_and_after(args.kernel) for one in seen]
        arrays["before"], arrays["after"] = (np.stack(part) for part in zip(*pairs, strict=True))
    arrays["images"] = np.array([str(name) for name in names])
    np.savez(file, allow_pickle=False, **arrays)
