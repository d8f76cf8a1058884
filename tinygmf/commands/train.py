"""`tinygmf train`: its options, and a run from the first picture to the files it leaves."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygmf.commands import train_dense
from tinygmf.commands.options import add_entry, add_threads
from tinygmf.commands.run_folder import (
    CLASSES,
    RUN,
    WEIGHTS,
    check_no_pictures,
    check_nothing_lost,
    check_out,
    locked,
)
from tinygmf.config import VARIANTS, full_name
from tinygmf.files import printable, remove_leftovers, replacing
from tinygmf.training.recipe import RECIPES, Recipe, recipe_options

if TYPE_CHECKING:
    from tinygmf.training.run_file import Run
    from tinygmf.training.trainer import Trainer

CONVERTERS = {"int": int, "float": float, "float | None": float, "str": str}
RECIPE_OPTIONS = {name for name, *_ in recipe_options()}
SAVE_EVERY = 600  # seconds, in epochs that are longer
INTERRUPTED = 130  # exit code after Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of `tinygmf train`; the fields of the recipe are options too."""
    parser.usage = "%(prog)s DATA [option …]"  # a list of all forty would hide what is wrong
    parser.add_argument(
        "data",
        metavar="DATA",
        help="digits, shapes; cifar10 or fashion-mnist, which tinygrad fetches; or a folder: one "
        "folder of pictures for each class, the same below train and val, or the files of CIFAR-10 "
        "(binary version) or Fashion-MNIST",
    )
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="where the options start from")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--model", type=full_name, choices=list(VARIANTS), help="a network with fresh weights"
    )
    start.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a trained network to go on from; its head is kept if it has as many classes",
    )
    add_entry(parser)
    parser.add_argument("--num-classes", type=int, metavar="N", help="check that the data has N")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the run's folder; a name in .safetensors or .pth: the trained network alone",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--device",
        help="CPU, CUDA, METAL, …; by default the best one; CUDA:0,CUDA:1 share every batch",
    )
    add_threads(parser)
    group = parser.add_argument_group("recipe", "values in brackets are the published ones")
    for name, kind, default, text in recipe_options():
        flag, shown = "--" + name.replace("_", "-"), f"{text} [{default}]"
        if kind == "bool":
            group.add_argument(flag, action="store_true", default=None, help=shown)
        else:
            group.add_argument(flag, type=CONVERTERS[kind], metavar="X", help=shown)
    train_dense.add_arguments(parser, RECIPE_OPTIONS, CONVERTERS)


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the options name, with what they change."""
    tuning = "head" if args.head_only else "finetune"
    own = args.data in ("digits", "shapes")  # recipes of their own
    usual = args.data if own else tuning if args.weights else "quick"
    changes: dict[str, Any] = {name: getattr(args, name) for name, *_ in recipe_options()}
    changes = {name: value for name, value in changes.items() if value is not None}
    recipe = replace(RECIPES[args.recipe or usual], **changes)
    if recipe.head_only and not args.weights:
        raise ValueError(
            "--head-only: expected a trained network in --weights, found none: name it"
        )
    return recipe


def chosen_data(args: argparse.Namespace, recipe: Recipe) -> Any:
    """The data set that DATA names."""
    from tinygmf.data.archives import fetch_cifar10, fetch_fashion_mnist
    from tinygmf.data.dataset import DataError
    from tinygmf.data.digits import digits
    from tinygmf.data.folders import open_folder
    from tinygmf.data.shapes import shapes

    named: dict[str, Callable[[], Any]] = {
        "digits": digits,
        "shapes": lambda: shapes(recipe.size),
        "cifar10": fetch_cifar10,
        "fashion-mnist": fetch_fashion_mnist,
    }
    if args.data not in named and not Path(args.data).exists():
        raise DataError(
            f"{args.data}: expected {', '.join(named)} or a folder of pictures, found no such "
            "folder: check the name"
        )
    own = [chosen_out(args)]  # what this run leaves is no class of pictures
    data = named.get(args.data, lambda: open_folder(Path(args.data), recipe.seed, own))()
    if args.num_classes not in (None, len(data.classes)):
        raise DataError(
            f"--num-classes: expected {len(data.classes)}, the classes of {args.data}, found "
            f"{args.num_classes}: leave it out, or check the folders"
        )
    return data


def checked(data: Any, recipe: Recipe) -> Any:
    """The data set, after it was said what was passed over; DataError where too little is left."""
    if data.passed:
        print(f"passed over: {data.passed}", file=sys.stderr)
    data.check(recipe.batch_size * recipe.accumulate)
    return data


def chosen_out(args: argparse.Namespace) -> Path:
    """The run's folder, or the file of the trained network alone."""
    return args.out or Path("runs") / Path(args.data).resolve().name


def chosen_network(args: argparse.Namespace, data: Any, recipe: Recipe) -> Any:
    """The network to begin with; trained weights keep their head if it has these classes.

    Its file's names say whether it has, and its rows are put in the order of `classes`; where
    nothing names them, their number decides.
    """
    from tinygmf.data.classes import known_names
    from tinygmf.model import create_model
    from tinygmf.weights.checkpoint import load_model

    classes = data.classes
    if args.weights is None:
        return create_model(args.model or "groupmixformer_nano", len(classes), recipe.seed)
    model = load_model(args.weights, entry=args.entry)
    trained = model.settings.image_size
    if trained not in (None, recipe.size):
        print(
            f"{args.weights}: trained on pictures of {trained} pixels, goes on with {recipe.size}",
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
    from tinygmf.engine.devices import open_device, set_default_device
    from tinygmf.training.run_file import load_run
    from tinygmf.weights.checkpoint import WRITERS

    dense = args.task is not None
    if not dense:
        train_dense.refuse(args, RECIPE_OPTIONS)
    recipe: Any = train_dense.chosen_recipe(args, RECIPE_OPTIONS) if dense else chosen_recipe(args)
    out = chosen_out(args)
    folder = None if out.suffix in WRITERS else out
    names = (args.device or "").split(",")
    opened = tuple(open_device(name or None) for name in names)
    set_default_device(opened[0])
    device = opened if len(opened) > 1 else opened[0]
    check_no_pictures(out)
    if dense:
        data: Any = train_dense.chosen_data(args, recipe)
    else:
        data = checked(chosen_data(args, recipe), recipe)
    choose = train_dense.chosen_network if dense else chosen_network
    model = choose(args, data, recipe)
    check_out(out, folder, args.resume)
    with locked(folder) if folder else contextlib.nullcontext():
        saved = load_run(folder / RUN) if folder and args.resume else None
        if saved:
            saved.check(recipe, data)  # before minutes go into compiling
        elif folder:
            check_nothing_lost(folder)
        return run_to_the_end(model, data, recipe, device, out, saved)


def run_to_the_end(
    model: Any, data: Any, recipe: Recipe, device: Any, out: Path, saved: Run | None
) -> int:
    """Train, from where a saved run stopped if there is one; returns the exit code."""
    from tinygmf.training.dense_recipe import DenseRecipe
    from tinygmf.training.dense_trainer import DenseTrainer
    from tinygmf.training.trainer import Trainer
    from tinygmf.weights.checkpoint import WRITERS, save_model

    folder = None if out.suffix in WRITERS else out
    kind: Any = DenseTrainer if isinstance(recipe, DenseRecipe) else Trainer
    trainer: Trainer = kind(model, data, recipe, device)
    trainer.pause, trainer.progress = SAVE_EVERY, sys.stderr.isatty()
    if saved:
        trainer.restore(saved)
    with stopping(trainer):
        finished = train(trainer, folder)
    said = data.report() if isinstance(recipe, DenseRecipe) else data.broken.values()
    for line in said:
        print(f"passed over: {line}", file=sys.stderr)
    if not finished:
        how = "add --resume to the same command" if folder else "give --out a folder to keep runs"
        print(f"stopped after step {trainer.step} of {trainer.steps}; to go on, {how}")
        return INTERRUPTED
    path = folder / WEIGHTS if folder else out
    save_model(trainer.finish(), path)
    if folder:
        with replacing(folder / CLASSES) as file:  # for networks' files that have no names in them
            file.write("".join(f"{printable(name)}\n" for name in data.classes).encode())
    first = measured(trainer.reports[-1]).partition(",")[0]
    print(f"{path}: {first} of {len(data.val)} held-out pictures")
    return 0


def measured(report: Any) -> str:
    """An epoch's figures on the validation pictures."""
    from tinygmf.training.log import measures

    row = asdict(report)
    return ", ".join(f"{label} {row[name]:.2%}" for name, label in measures(row).items())


def train(trainer: Trainer, folder: Path | None) -> bool:
    """Run the remaining epochs, saving after each, and in long ones between; False if the user
    stopped it. Raises ValueError, with the last checkpoint intact, where the disk is full."""
    from tinygmf.training import log

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    while trainer.step < trainer.steps:
        report = trainer.run_epoch()
        if report is not None:
            print(
                f"epoch {report.epoch:3}: loss {report.loss:.3f}, {measured(report)}, "
                f"{report.pictures_per_second:.0f} pictures/s",
                flush=True,
            )
        if folder is not None:
            save(trainer, folder)
        if trainer.stop and trainer.step < trainer.steps:
            return False
    if folder is not None:
        with room_for_the_log(folder):
            log.write_curves(folder / "curves.png", rows(trainer))
    return True


def save(trainer: Trainer, folder: Path) -> None:
    """Write the run, then its log. Raises CheckpointError or ValueError if the disk refuses."""
    from tinygmf.training import log
    from tinygmf.training.run_file import save_run

    save_run(folder / RUN, trainer.state())
    if trainer.reports:
        with room_for_the_log(folder):
            log.write_tables(folder, rows(trainer))
            log.write_tensorboard(folder, rows(trainer))


def rows(trainer: Trainer) -> list[dict[str, Any]]:
    """Of the log: one for each epoch."""
    return [asdict(report) for report in trainer.reports]


@contextlib.contextmanager
def room_for_the_log(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder}: expected room for the log, found {error.strerror}: the run is saved; make "
            "room and add --resume to the same command"
        ) from None


@contextlib.contextmanager
def stopping(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C ends training after the present step; the second ends it at once."""

    def stop(*_: object) -> None:
        trainer.stop = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
