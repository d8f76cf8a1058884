"""`tinygmf train --task`: a dense network, from annotated pictures to the files it leaves."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinygmf.training.dense_recipe import ON_SCENES, RECIPES, DenseRecipe, recipe_options

HEADS = {
    "segment": ("upernet", "semantic_fpn"),
    "detect": ("retinanet", "maskrcnn"),
    "instance": ("maskrcnn",),
}


def add_arguments(parser: argparse.ArgumentParser, known: set[str], converters: Any) -> None:
    """The options of dense networks alone, without the recipe options in `known`."""
    parser.add_argument("--task", choices=list(HEADS), help="what to learn from annotated pictures")
    heads = sorted({head for heads in HEADS.values() for head in heads})
    parser.add_argument("--head", choices=heads, help="by default upernet, retinanet, maskrcnn")
    parser.add_argument("--channels", type=int, metavar="N", help="width of the new head")
    group = parser.add_argument_group("recipe with --task", "in brackets the values of segment")
    for name, kind, default, text in recipe_options():
        if name not in known:
            flag = "--" + name.replace("_", "-")
            shown = f"{text} [{default}]"
            group.add_argument(flag, type=converters[kind], metavar="X", help=shown)


def chosen_recipe(
    args: argparse.Namespace, others: set[str], then: dict[str, Any] | None = None
) -> DenseRecipe:
    """The recipe of the task, or `then` of a resumed run, with the options' changes.

    Raises ValueError for an option in `others`, which do not apply to dense networks.
    """
    own = {name: getattr(args, name) for name, *_ in recipe_options()}
    for name in sorted(others - set(own) | {"recipe", "num_classes"}):
        if getattr(args, name, None) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected no such option with --task {args.task}, "
                "found one: leave it out"
            )
    named = (ON_SCENES if args.data == "scenes" else RECIPES)[args.task]
    base = DenseRecipe(**then) if then else named
    return replace(base, **{name: value for name, value in own.items() if value is not None})


def refuse(args: argparse.Namespace, others: set[str]) -> None:
    """Raise ValueError for an option that does not apply to classification networks."""
    own = {name for name, *_ in recipe_options()} - others | {"head", "channels"}
    for name in sorted(own):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected --task with it, found none: name the task, "
                f"{', '.join(HEADS)}"
            )


def chosen_data(args: argparse.Namespace, recipe: DenseRecipe) -> Any:
    """The annotated pictures. Raises ValueError if they cannot be trained on or measured."""
    from tinygmf.data.dense_folders import open_dense
    from tinygmf.dense.measures import MISSING, MeasureError

    if args.task != "segment" and find_spec("pycocotools") is None:
        raise MeasureError(MISSING)  # before an epoch is spent
    data = open_dense(args.data, args.task, recipe.seed)
    if len(data.train) < (batch := recipe.batch_size * recipe.accumulate):
        raise ValueError(
            f"{args.data}: expected at least one batch of {batch} pictures to train on, found "
            f"{len(data.train)}: give a smaller --batch-size"
        )
    return data


def chosen_head(args: argparse.Namespace) -> str:
    heads = HEADS[args.task]
    if args.head and args.head not in heads:
        raise ValueError(
            f"--head: expected {' or '.join(heads)} for --task {args.task}, found {args.head}"
        )
    return args.head or heads[0]


def chosen_network(args: argparse.Namespace, data: Any, recipe: DenseRecipe) -> Any:
    """A fresh head on a fresh or trained backbone, or a whole trained network to continue from: one
    with this head and these classes."""
    from tinygmf.dense.networks import create_model, load_model
    from tinygmf.training.dense_networks import head_options, named

    head, weights = chosen_head(args), args.weights
    model = load_model(weights, entry=args.entry) if weights else None
    if model is None or not has_this_head(weights, model, head, data.classes):
        options = head_options(head, args.channels, small=args.data == "scenes")
        known: dict[str, Any] = {"num_classes": len(data.classes), "seed": recipe.seed}
        backbone = model or args.model or "groupmixformer_nano"
        model = create_model(head, backbone=backbone, **known, **options)
    return named(model, data.classes, recipe.whole_size)


def has_this_head(weights: Path, model: Any, head: str, classes: list[str]) -> bool:
    """Whether a network has this head and these classes in this order; without names in its file,
    as many. If it is another dense network, prints that only its backbone is used."""
    from tinygmf.data.classes import known_names
    from tinygmf.dense.networks import kind_of_network

    kind, known = kind_of_network(model), known_names(model.settings, weights)
    found, names = model.config.num_classes, known[1] if known else classes
    same = (kind, found, names) == (head, len(classes), classes)
    if kind and not same:
        others = "other classes" if (kind, found) == (head, len(classes)) else f"{found} classes"
        used = f"{weights}: only the backbone of this {kind} of {others} is used"
        print(f"tinygmf: {used}, under a fresh {head} of {len(classes)}", file=sys.stderr)
    return same
