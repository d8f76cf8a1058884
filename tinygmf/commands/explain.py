"""Draw what the attention makes of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinygmf.study.observe import KERNELS, PANELS, Observation, Position, choose_block, observe

SUFFIXES = (".png", ".svg", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tinygmf explain`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, …")
    parser.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")
    parser.add_argument("--stage", type=int, help="1 to 4; by default the last with 8x8 tokens")
    parser.add_argument("--block", type=int, help="from 1; by default the fifth, or the last")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--query", type=_position, metavar="Y,X", help="draw what this pixel attends to"
    )
    what.add_argument("--kernel", type=int, choices=KERNELS, help="draw this group aggregator")
    parser.add_argument("--out", default="explain.png", help="ends in .png, .svg or .npz (arrays)")
    parser.add_argument("--size", type=int, default=224, help="picture size in pixels")
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")


def _position(text: str) -> Position:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected two whole numbers Y,X, found {text!r}")
    return int(parts[0]), int(parts[1])


def run(args: argparse.Namespace) -> int:
    """See what Group-Mix Attention makes of pictures."""
    from tinygmf.engine.devices import open_device, set_default_device
    from tinygmf.image import load_image, normalize, resize_and_crop
    from tinygmf.study import figures
    from tinygmf.weights.checkpoint import load_model

    out = Path(args.out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if out.suffix != ".npz":
        figures.require_matplotlib()
    pictures = [resize_and_crop(load_image(path), args.size) for path in args.images]
    set_default_device(open_device(args.device))
    model = load_model(args.weights)
    place = choose_block(model.config, (args.size, args.size), args.stage, args.block)
    _check_query(args.query, args.size)
    seen = observe(model, np.stack([normalize(picture) for picture in pictures]), *place)
    if out.suffix == ".npz":
        _save_arrays(out, args.images, seen, args)
    elif args.query:
        figures.draw_attention(pictures, seen, args.query).savefig(out)
    elif args.kernel:
        figures.draw_proxies(pictures, seen, model, args.kernel).savefig(out)
    else:
        figures.draw_responses(pictures, seen).savefig(out)
    rows, columns = seen[0].size
    print(f"{out}: stage {place[0]}, block {place[1]}, {rows}x{columns} tokens")
    return 0


def _check_query(query: Position | None, size: int) -> None:
    """Before anything is computed: a mistake should not cost a minute."""
    if query and not all(0 <= coordinate < size for coordinate in query):
        y, x = query
        raise ValueError(f"--query: expected Y and X from 0 to {size - 1}, found {y},{x}")


def _save_arrays(
    out: Path, names: Sequence[str], seen: Sequence[Observation], args: argparse.Namespace
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
    np.savez(str(out), allow_pickle=False, **arrays)
