"""What `tinygmf train` is about to do: settings fitted to the pictures, and a one-line summary."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygmf.config import Settings, variant_name
from tinygmf.files import counted
from tinygmf.training.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from tinygmf.data.dataset import Dataset

SMALL, USUAL = 32, 64  # pixels, for fresh networks: by the size of the pictures
UNBALANCED = 3  # ratio of the largest class to the smallest from which a line warns
FEWEST = 2  # batches in an epoch, if there are too few pictures for a full one
FEWEST_STEPS = 400  # in fewer, neither fresh nor trained weights learn much
# Recipes for any size and number of pictures
OF_ANY_PICTURES = "quick", "finetune", "finetune-small", "head"


def usual_recipe(args: argparse.Namespace) -> str:
    """The name of the recipe that is used without --recipe."""
    from tinygmf.data.named import known_as
    from tinygmf.weights.reading import is_bundled

    known = known_as(args.data) if args.data else None
    if known in ("digits", "shapes"):  # random crops, or flips, would spoil them
        return known
    if args.weights:
        small = is_bundled(args.weights)
        return "head" if args.head_only else "finetune-small" if small else "finetune"
    return known if known in RECIPES else "quick"


def fitted(args: argparse.Namespace, recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe, with size, batch and epochs fitted to the pictures unless an option sets them.

    Raises CheckpointError if --weights cannot be read.
    """
    changes: dict[str, Any] = {}
    usual = args.recipe is None and usual_recipe(args) in OF_ANY_PICTURES
    if args.size is None and usual:
        changes["size"] = usual_size(args.weights, recipe.size, data)
    most = len(data.train) // recipe.accumulate
    if args.batch_size is None and 1 < most < recipe.batch_size:
        changes["batch_size"] = 1 << ((most // FEWEST).bit_length() - 1)
        say(
            f"{counted(len(data.train), 'picture')} to train on, fewer than a batch of "
            f"{recipe.batch_size}: batches of {changes['batch_size']}"
        )
    recipe = replace(recipe, **changes)
    if args.epochs is None and usual:
        recipe = replace(recipe, epochs=usual_epochs(recipe, len(data.train)))
    return recipe


def usual_epochs(recipe: Recipe, pictures: int) -> int:
    """The recipe's epochs, or as many as give `FEWEST_STEPS` if that is more."""
    steps = max(1, pictures // (recipe.batch_size * recipe.accumulate))
    return max(recipe.epochs, -(-FEWEST_STEPS // steps))


def usual_size(weights: Path | None, otherwise: int, data: Dataset) -> int:
    """The training size of --weights, if their file has it; for fresh or bundled weights 64 pixels,
    or 32 if the pictures are smaller than 64."""
    from tinygmf.weights.reading import CheckpointError, is_bundled, network_file, read_metadata

    if weights is not None and not is_bundled(weights):
        metadata = read_metadata(network_file(weights))
        try:
            return Settings.from_json(metadata).image_size or otherwise
        except ValueError as error:
            raise CheckpointError(f"{weights}: {error}") from None
    return USUAL if data.typical_side() >= USUAL else SMALL


def tell_classes(data: Dataset) -> None:
    """Warn of classes with no held-out picture, or with far fewer pictures than others."""
    counts, held_out = data.counts, np.bincount(data.val_labels, minlength=len(data.classes))
    if missing := [data.classes[i] for i in np.flatnonzero(held_out == 0)]:
        say(f"no picture is held out of {', '.join(missing)}: accuracy does not cover them")
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] >= UNBALANCED * counts[least]:
        say(
            f"classes are unbalanced: {counts[least]} of {data.classes[least]} to train on, "
            f"{counts[most]} of {data.classes[most]}; rare ones are learned worse"
        )


def tell_plan(model: Any, data: Any, recipe: Any, device: Any, out: Path) -> None:
    """`6 classes, 288 pictures to train on, 72 held out, 40 skipped (.heic); nano, 64x64, …`"""
    config = getattr(model.config, "backbone", model.config)
    widths = " ".join(map(str, config.embedding_dims))
    name = (variant_name(config) or f"widths {widths}").removeprefix("groupmixformer_")
    skipped = getattr(data, "skipped", None)
    devices = device if isinstance(device, str) else ", ".join(device)
    what = [
        counted(len(data.classes), "class"),
        f"{counted(len(data.train), 'picture')} to train on",
        f"{len(data.val)} held out",
        *([skipped.count()] if skipped else []),
    ]
    how = [
        name,
        f"{recipe.size}x{recipe.size}",
        f"{counted(recipe.epochs, 'epoch')} in batches of {recipe.batch_size}",
        devices,
    ]
    say(f"{', '.join(what)}; {', '.join(how)}; to {out}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
