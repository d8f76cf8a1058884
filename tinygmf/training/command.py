"""`tinygmf train`: its options, and what it prints."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinygmf.config import VARIANTS
from tinygmf.training.recipe import RECIPES, Recipe, recipe_options

CONVERTERS = {"int": int, "float": float, "float | None": float, "str": str}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of `tinygmf train`; the fields of the recipe are options too."""
    parser.add_argument("data", metavar="DATA", help="digits")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="where the options start from")
    parser.add_argument("--model", choices=list(VARIANTS), help="the network, with fresh weights")
    parser.add_argument("--out", type=Path, help="the trained network: .safetensors or .pth")
    parser.add_argument("--device", help="CPU, CUDA, METAL, …; by default the best one")
    group = parser.add_argument_group("recipe", "values in brackets are the published ones")
    for name, kind, default, text in recipe_options():
        flag, shown = "--" + name.replace("_", "-"), f"{text} [{default}]"
        if kind == "bool":
            group.add_argument(flag, action="store_true", default=None, help=shown)
        else:
            group.add_argument(flag, type=CONVERTERS[kind], metavar="X", help=shown)


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the options name, with what they change."""
    base = RECIPES[args.recipe or ("digits" if args.data == "digits" else "quick")]
    changes: dict[str, Any] = {name: getattr(args, name) for name, *_ in recipe_options()}
    return replace(base, **{name: v for name, v in changes.items() if v is not None})


def run(args: argparse.Namespace) -> int:
    """Train, print a line for each epoch and write the network."""
    from tinygmf.checkpoint import WRITERS, save_model
    from tinygmf.devices import open_device
    from tinygmf.model import create_model
    from tinygmf.training.data import DataError
    from tinygmf.training.digits import digits
    from tinygmf.training.loop import Trainer

    recipe = chosen_recipe(args)
    out = args.out or Path(f"{args.data}.safetensors")
    if out.suffix not in WRITERS:
        raise ValueError(f"--out {out}: expected a name that ends in .pth or .safetensors")
    if args.data != "digits":
        raise DataError(f"{args.data}: expected digits")
    data = digits()
    model = create_model(args.model or "groupmixformer_nano", len(data.classes), recipe.seed)
    trainer = Trainer(model, data, recipe, open_device(args.device))
    while trainer.step < trainer.steps:
        report = trainer.run_epoch()
        print(
            f"epoch {report.epoch:3}: loss {report.loss:.3f}, top-1 {report.top1:.2%} of "
            f"{len(data.val)} held-out pictures, {report.pictures_per_second:.0f} pictures/s"
        )
    save_model(trainer.finish(), out)
    print(f"{out}: {report.top1:.2%} of the held-out pictures right")
    return 0
