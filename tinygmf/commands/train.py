"""`tinygmf train`: its options and what they choose; the run itself is in `train_loop`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinygmf.commands import train_dense
from tinygmf.commands.options import SHORT, add_entry, add_threads, check_memory, variant
from tinygmf.commands.run_folder import (
    RUN,
    WEIGHTS,
    check_no_pictures,
    check_nothing_lost,
    check_out,
    locked,
    recall,
    started_with,
    usual_folder,
)
from tinygmf.commands.train_plan import fitted, tell_classes, tell_plan, usual_recipe
from tinygmf.config import VARIANTS
from tinygmf.training.recipe import NETWORKS, RECIPES, Recipe, recipe_options

CONVERTERS = {"int": int, "float": float, "float | None": float, "str": str}
RECIPE_OPTIONS = {name for name, *_ in recipe_options()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of `tinygmf train`; the fields of the recipe are options too."""
    parser.usage = "%(prog)s DATA [option …]"  # a list of all forty would hide the error
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="digits, shapes, scenes-shape or scenes-photograph; cifar10 or fashion-mnist, which "
        "tinygrad fetches; or a folder: one folder of pictures per class, the same below train "
        "and val, or the files of CIFAR-10 (binary version) or Fashion-MNIST",
    )
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="preset for the recipe's options")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--model",
        type=variant,
        choices=list(VARIANTS),
        metavar="NAME",
        help=f"a network with fresh weights: {', '.join(SHORT)} (groupmixformer_nano and so on are "
        "understood as well); by default nano, and for fashion-mnist a wider one",
    )
    start.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a trained network to start from; its head is kept if it has the same classes",
    )
    add_entry(parser)
    parser.add_argument("--num-classes", type=int, metavar="N", help="check for N classes")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the run's folder, by default runs/NAME, or runs/NAME-2 and so on if that holds a "
        "finished run; a name in .safetensors or .pth: a file for the trained network alone",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=False,
        metavar="FOLDER",
        help="continue the run in FOLDER, or in --out, with the options it was started with; a "
        "finished run needs more --epochs",
    )
    parser.add_argument(
        "--device",
        help="CPU, CUDA, METAL, …; by default the best one; CUDA:0,CUDA:1 split every batch",
    )
    add_threads(parser)
    add_recipe(parser)
    train_dense.add_arguments(parser, RECIPE_OPTIONS, CONVERTERS)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """An option for each field of the recipe."""
    group = parser.add_argument_group("recipe", "values in brackets are the published ones")
    for name, kind, default, text in recipe_options():
        flag, shown = "--" + name.replace("_", "-"), f"{text} [{default}]"
        if kind == "bool":
            group.add_argument(flag, action="store_true", default=None, help=shown)
        else:
            group.add_argument(flag, type=CONVERTERS[kind], metavar="X", help=shown)


def chosen_recipe(args: argparse.Namespace, then: dict[str, Any] | None = None) -> Recipe:
    """The recipe that the options name, or `then` of a resumed run, with their changes."""
    usual = usual_recipe(args)
    changes: dict[str, Any] = {name: getattr(args, name) for name, *_ in recipe_options()}
    changes = {name: value for name, value in changes.items() if value is not None}
    recipe = replace(Recipe(**then) if then else RECIPES[args.recipe or usual], **changes)
    if recipe.head_only and not args.weights:
        raise ValueError(
            "--head-only: expected a trained network in --weights, found none: name it"
        )
    return recipe


def chosen_data(args: argparse.Namespace, recipe: Recipe) -> Any:
    """The data set that DATA names."""
    from tinygmf.data.dataset import DataError
    from tinygmf.data.named import open_data
    from tinygmf.image import looks_like_picture

    if looks_like_picture(args.data):
        raise DataError(
            f"{args.data}: expected a folder of pictures, found one picture: name its folder"
        )
    own = [chosen_out(args)]  # the run's own files are not a class of pictures
    data = open_data(args.data, recipe.size, recipe.seed, own)
    if args.num_classes not in (None, len(data.classes)):
        raise DataError(
            f"--num-classes: expected {len(data.classes)}, the classes of {args.data}, found "
            f"{args.num_classes}: leave it out, or check the folders"
        )
    return data


def chosen_out(args: argparse.Namespace) -> Path:
    """The run's folder, or the file of the trained network alone."""
    return args.out or usual_folder(args.data)


def chosen_network(args: argparse.Namespace, data: Any, recipe: Recipe) -> Any:
    """The network to start from; trained weights keep their head if it has the data's classes.

    The names in its file decide, and its rows are put in the data's order; without names, the
    number of classes decides.
    """
    from tinygmf.data.classes import known_names
    from tinygmf.model import create_model
    from tinygmf.weights.checkpoint import load_model

    classes = data.classes
    if args.weights is None:
        changes = {} if args.model else NETWORKS.get(usual_recipe(args), {})
        return create_model(args.model or "nano", len(classes), recipe.seed, **changes)
    model = load_model(args.weights, entry=args.entry)
    trained = model.settings.image_size
    if trained not in (None, recipe.size):
        print(
            f"{args.weights}: trained at a size of {trained} pixels, continues at {recipe.size}",
            file=sys.stderr,
        )
    known = known_names(model.settings, args.weights)
    names = known[1] if known else classes
    if model.config.num_classes != len(classes) or sorted(names) != sorted(classes):
        model.reset_classifier(len(classes), recipe.seed)
    elif names != classes:
        model.reorder_classes([names.index(name) for name in classes])
    return model


def run(args: argparse.Namespace) -> int:
    """Train, print a line for each epoch and leave the network, the run and its log in --out."""
    from tinygmf.commands.train_loop import run_to_the_end
    from tinygmf.training.run_file import load_run
    from tinygmf.weights.checkpoint import WRITERS

    about = recall(args)
    if args.task is None:
        train_dense.refuse(args, RECIPE_OPTIONS)
    args.out = chosen_out(args)
    folder = None if args.out.suffix in WRITERS else args.out
    device = opened_devices(args)
    check_no_pictures(args.out)
    recipe, data = recipe_and_data(args, about)
    check_out(args.out, folder)
    with locked(folder) if folder else contextlib.nullcontext():
        saved = load_run(folder / RUN) if folder and about else None
        if saved:
            saved.check(recipe, data)  # before minutes go into compiling
        elif folder:
            check_nothing_lost(folder)
        model = network_to_train(args, data, recipe, saved is not None)
        tell_plan(model, data, recipe, device, args.out)
        return run_to_the_end(model, data, recipe, device, args.out, saved, started_with(args))


def opened_devices(args: argparse.Namespace) -> Any:
    """The device of all tensors from here on, or several that split every batch."""
    from tinygmf.engine.devices import open_device, set_default_device

    opened = tuple(open_device(name or None) for name in (args.device or "").split(","))
    set_default_device(opened[0])
    return opened if len(opened) > 1 else opened[0]


def recipe_and_data(args: argparse.Namespace, about: dict[str, Any] | None) -> tuple[Any, Any]:
    """The recipe and the data set, those of a resumed run if there is one."""
    then = about["recipe"] if about else None
    if args.task is not None:
        recipe: Any = train_dense.chosen_recipe(args, RECIPE_OPTIONS, then)
        require_memory(recipe.size)
        return recipe, train_dense.chosen_data(args, recipe)
    recipe = chosen_recipe(args, then)
    require_memory(recipe.size)  # shapes are drawn in this size
    data = chosen_data(args, recipe)
    if data.skipped:
        print(f"skipped: {data.skipped}", file=sys.stderr)
    recipe = recipe if then else fitted(args, recipe, data)
    require_memory(recipe.size)
    data.check(recipe.batch_size * recipe.accumulate)
    tell_classes(data)
    return recipe, data


def require_memory(size: int) -> None:
    """Raise ValueError if not even nano could see a picture of this size."""
    check_memory(size, VARIANTS["groupmixformer_nano"], f"--size {size}")


def network_to_train(args: argparse.Namespace, data: Any, recipe: Any, resuming: bool) -> Any:
    """The network to start from; for a resumed run its network so far."""
    from tinygmf.dense.networks import load_model

    if resuming:
        return load_model(args.out / WEIGHTS)
    choose = train_dense.chosen_network if args.task else chosen_network
    return choose(args, data, recipe)
