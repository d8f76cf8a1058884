"""What `tinygmf train` is about to do: what the pictures ask for, and one line that says it all."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygmf.config import variant_name

if TYPE_CHECKING:
    from tinygmf.data.dataset import Dataset
    from tinygmf.training.recipe import Recipe

SMALL, USUAL = 32, 64  # pixels: of fresh networks, by the pictures
UNBALANCED = 3  # times as many pictures in the largest class as in the smallest
FEWEST = 2  # batches in an epoch, where there is no full one


def fitted(args: argparse.Namespace, recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe, its size and batch fitted to the pictures where no option says them.

    Raises CheckpointError where --weights cannot be read.
    """
    changes: dict[str, Any] = {}
    if args.size is None and args.recipe is None and args.data not in ("digits", "shapes"):
        changes["size"] = usual_size(args.weights, recipe.size, data)
    most = len(data.train) // recipe.accumulate
    if args.batch_size is None and 1 < most < recipe.batch_size:
        changes["batch_size"] = 1 << ((most // FEWEST).bit_length() - 1)
        say(
            f"{len(data.train)} pictures to train on, fewer than a batch of {recipe.batch_size}: "
            f"batches of {changes['batch_size']}"
        )
    return replace(recipe, **changes)


def usual_size(weights: Path | None, otherwise: int, data: Dataset) -> int:
    """The size that trained weights were trained on, if their file says so; of fresh ones 64
    pixels, or 32 where the pictures are smaller than that."""
    from tinygmf.weights.reading import network_file, read_metadata

    if weights is not None:
        return read_metadata(network_file(weights)).get("image_size") or otherwise
    return USUAL if data.typical_side() >= USUAL else SMALL


def tell_classes(data: Dataset) -> None:
    """Name what is odd about the numbers of pictures: a class of one, or far fewer than others."""
    counts, held_out = data.counts, np.bincount(data.val_labels, minlength=len(data.classes))
    if missing := [data.classes[i] for i in np.flatnonzero(held_out == 0)]:
        say(f"no picture is held out of {', '.join(missing)}: accuracy says nothing of them")
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] >= UNBALANCED * counts[least]:
        say(
            f"classes are unbalanced: {counts[least]} of {data.classes[least]} to train on, "
            f"{counts[most]} of {data.classes[most]}; rare ones are learned worse"
        )


def tell_plan(model: Any, data: Any, recipe: Any, device: Any, out: Path) -> None:
    """`6 classes, 288 pictures to train on, 72 held out, 40 passed over (.heic); nano, 64x64, …`"""
    config = getattr(model.config, "backbone", model.config)
    name = (variant_name(config) or "GroupMixFormer").removeprefix("groupmixformer_")
    passed = getattr(data, "passed", None)
    devices = device if isinstance(device, str) else ", ".join(device)
    what = [
        f"{len(data.classes)} classes",
        f"{len(data.train)} pictures to train on",
        f"{len(data.val)} held out",
        *([passed.count()] if passed else []),
    ]
    how = [
        name,
        f"{recipe.size}x{recipe.size}",
        f"{recipe.epochs} epochs in batches of {recipe.batch_size}",
        devices,
    ]
    say(f"{', '.join(what)}; {', '.join(how)}; to {out}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
