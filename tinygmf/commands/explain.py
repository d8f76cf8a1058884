"""Draw how the attention sees pictures."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL.Image import Image
from tqdm.auto import tqdm

from tinygmf.commands.options import (
    add_device,
    add_size,
    add_weights,
    chosen_device,
    chosen_size,
)
from tinygmf.commands.pictures import Pictures, add_pictures
from tinygmf.config import Settings
from tinygmf.files import replacing, require_writable
from tinygmf.study.observe import KERNELS, PANELS, Observation, Position, choose_block, observe

SUFFIXES = (".png", ".svg", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    if not (found := re.fullmatch(r"\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*", text)):
        raise argparse.ArgumentTypeError(f"expected two whole numbers Y,X, found {text[:60]!r}")
    return int(found[1]), int(found[2])


class Looked(NamedTuple):
    """A picture as the network sees it, and the query's position in it."""

    name: str
    crop: Image
    query: Position | None


def run(args: argparse.Namespace) -> int:
    """Draw what Group-Mix Attention makes of pictures; returns 1 if one could not be read."""
    from tinygmf.study import figures
    from tinygmf.weights.checkpoint import load_model

    out = Path(args.out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    require_writable(out)
    if out.suffix != ".npz":
        figures.require_matplotlib()
    device = chosen_device(args)
    model = load_model(args.weights, entry=args.entry)
    size, pictures = chosen_size(args, model), Pictures(args.images)
    place = choose_block(model.config, (size, size), args.stage, args.block)
    looked = read_pictures(pictures, size, model.settings, args.query)
    code = pictures.finish()
    seen = look(model, looked, place)
    with replacing(out) as file:
        if out.suffix == ".npz":
            _save_arrays(file, looked, seen, args.kernel)
        else:
            titles = captions(model, args.weights, looked, device, args.query)
            draw(looked, seen, model, args.kernel, titles).savefig(file, format=out.suffix[1:])
    rows, columns = seen[0].size
    print(f"{out}: stage {place[0]}, block {place[1]}, {rows}x{columns} tokens")
    return code


def read_pictures(
    pictures: Pictures, size: int, settings: Settings, query: Position | None
) -> list[Looked]:
    """The readable pictures. Raises ValueError, before anything is computed, if the query lies
    outside the crop that the network sees."""
    from tinygmf.image import as_rgb, resize_and_crop

    def read(picture: Any) -> tuple[Image, tuple[int, int]]:
        whole = as_rgb(picture)
        return resize_and_crop(whole, size, settings), whole.size

    return [
        Looked(name, crop, query and place_in_crop(name, query, whole, size, settings))
        for name, (crop, whole) in pictures.read(read)
    ]


def place_in_crop(
    name: str, query: Position, whole: tuple[int, int], size: int, settings: Settings
) -> Position:
    """Map a pixel (y, x) of a picture of `whole` (width, height) into the square of `size` pixels
    that the network sees. Raises ValueError for a pixel outside it."""
    from tinygmf.image import resized_and_corner

    resized, corner = resized_and_corner(*whole, size, settings)
    place, bounds = [], []
    for at, side, new, start in zip(query, whole[::-1], resized[::-1], corner[::-1], strict=True):
        scale = new / side
        place.append(int((at + 0.5) * scale) - start)
        first = max(math.ceil(start / scale - 0.5), 0)
        bounds.append((first, min(math.ceil((start + size) / scale - 0.5), side) - 1))
    if not all(low <= at <= high for at, (low, high) in zip(query, bounds, strict=True)):
        (top, bottom), (left, right) = bounds
        raise ValueError(
            f"--query: {name}: expected a pixel that the network sees, Y from {top} to {bottom} "
            f"and X from {left} to {right} of the picture's {whole[1]} rows and {whole[0]} "
            f"columns, found {query[0]},{query[1]}"
        )
    return place[0], place[1]


def look(model: Any, looked: Sequence[Looked], place: tuple[int, int]) -> list[Observation]:
    """Observe one block on each picture; its program is compiled once and cached."""
    from tinygmf.image import normalize

    arrays = (normalize(one.crop, model.settings)[None] for one in looked)
    bar = tqdm(arrays, total=len(looked), unit=" pictures", disable=None, leave=False)
    return [observe(model, array, *place)[0] for array in bar]


def captions(
    model: Any, weights: str, looked: Sequence[Looked], device: str, query: Position | None
) -> list[str]:
    """The caption of each picture: its name, the network's answer, the query in its own pixels."""
    from tinygmf.data.classes import names_of
    from tinygmf.engine.predictor import Predictor, probabilities
    from tinygmf.image import normalize
    from tinygmf.study.outcome import shortened

    lines = [[shortened(Path(one.name).name)] for one in looked]
    if model.config.num_classes:
        predict = Predictor(model, looked[0].crop.width, device=device)
        names = names_of(model.settings, model.config.num_classes, weights)
        for one, line in zip(looked, lines, strict=True):
            [row] = probabilities(predict([normalize(one.crop, model.settings)]))
            line.append(f"{shortened(names[row.argmax()])} {row.max():.0%}")
    where = [f"query at y={query[0]}, x={query[1]}"] if query else []
    return ["\n".join([*line, *where]) for line in lines]


def draw(
    looked: Sequence[Looked],
    seen: Sequence[Observation],
    model: Any,
    kernel: int | None,
    titles: Sequence[str],
) -> Any:
    """Draw the figure that the options ask for."""
    from tinygmf.study import figures

    crops, queries = [one.crop for one in looked], [one.query for one in looked if one.query]
    if queries:
        return figures.draw_attention(crops, seen, queries, titles)
    if kernel:
        return figures.draw_proxies(crops, seen, model, kernel, titles)
    return figures.draw_responses(crops, seen, titles)


def _save_arrays(
    file: BinaryIO, looked: Sequence[Looked], seen: Sequence[Observation], kernel: int | None
) -> None:
    """Save every map of every picture in one .npz; the first axis counts the pictures."""
    maps = [one.responses() for one in seen]
    arrays = {name.replace(" ", "_"): np.stack([m[name] for m in maps]) for name in PANELS}
    queries = [one.query for one in looked if one.query]
    if queries:
        rows = [one.attention_rows([at]) for one, at in zip(seen, queries, strict=True)]
        arrays["attention"] = np.concatenate(rows)
    if kernel:
        pairs = [one.before_and_after(kernel) for one in seen]
        arrays["before"], arrays["after"] = (np.stack(part) for part in zip(*pairs, strict=True))
    arrays["images"] = np.array([one.name for one in looked])
    np.savez(file, allow_pickle=False, **arrays)
