"""`tinygmf train`: its options, and a run from the first picture to the files it leaves."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tinygmf.config import VARIANTS
from tinygmf.training.recipe import RECIPES, Recipe, recipe_options

CONVERTERS = {"int": int, "float": float, "float | None": float, "str": str}
WEIGHTS, RUN = "model.safetensors", "run.safetensors"  # in the run's folder
INTERRUPTED = 130  # exit code after Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of `tinygmf train`; the fields of the recipe are options too."""
    parser.add_argument(
        "data",
        metavar="DATA",
        help="digits, shapes, or a folder: one folder for each class, the same below train and "
        "val, or the files of CIFAR-10 or Fashion-MNIST",
    )
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="where the options start from")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--model", choices=list(VARIANTS), help="a network with fresh weights")
    start.add_argument("--weights", type=Path, help="a trained network to go on from")
    parser.add_argument("--num-classes", type=int, metavar="N", help="check that the data has N")
    parser.add_argument(
        "--out",
        type=Path,
        help="the run's folder; a name in .safetensors or .pth: the trained network alone",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
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
    usual = "digits" if args.data == "digits" else "finetune" if args.weights else "quick"
    changes: dict[str, Any] = {name: getattr(args, name) for name, *_ in recipe_options()}
    changes = {name: value for name, value in changes.items() if value is not None}
    return replace(RECIPES[args.recipe or usual], **changes)


def chosen_data(args: argparse.Namespace, recipe: Recipe) -> Any:
    """The data set that DATA names."""
    from tinygmf.training.data import DataError
    from tinygmf.training.digits import digits
    from tinygmf.training.folders import open_folder
    from tinygmf.training.shapes import shapes

    if args.data == "digits":
        data = digits()
    elif args.data == "shapes":
        data = shapes(recipe.size)
    else:
        data = open_folder(Path(args.data), recipe.seed)
    if args.num_classes not in (None, len(data.classes)):
        raise DataError(
            f"--num-classes {args.num_classes}: {args.data} has {len(data.classes)} classes: "
            f"{', '.join(data.classes[:10])}"
        )
    return data


def chosen_model(args: argparse.Namespace, classes: int, seed: int) -> Any:
    """The network to begin with; trained weights keep their head if it has as many classes."""
    from tinygmf.checkpoint import load_model
    from tinygmf.model import create_model

    if args.weights is None:
        return create_model(args.model or "groupmixformer_nano", classes, seed)
    model = load_model(args.weights)
    if model.config.num_classes != classes:
        model.reset_classifier(classes, seed)
    return model


def run(args: argparse.Namespace) -> int:
    """Train, print a line for each epoch and leave the network, the run and its log in --out."""
    from tinygmf.checkpoint import WRITERS, save_model
    from tinygmf.devices import open_device
    from tinygmf.training.loop import Trainer

    recipe = chosen_recipe(args)
    out = args.out or Path("runs") / Path(args.data).name
    folder = None if out.suffix in WRITERS else out
    if args.resume and folder is None:
        raise ValueError(f"--resume: expected the folder of a run in --out, found {out}")
    data = chosen_data(args, recipe)
    model = chosen_model(args, len(data.classes), recipe.seed)
    trainer = Trainer(model, data, recipe, open_device(args.device))
    rows = resume(trainer, folder) if args.resume and folder else []
    with stopping(trainer):
        finished = train(trainer, folder, rows)
    for line in data.broken.values():
        print(f"passed over: {line}", file=sys.stderr)
    if not finished:
        how = "add --resume to the same command" if folder else "give --out a folder to keep runs"
        print(f"stopped after step {trainer.step} of {trainer.steps}; to go on, {how}")
        return INTERRUPTED
    path = folder / WEIGHTS if folder else out
    save_model(trainer.finish(), path)
    print(f"{path}: top-1 {rows[-1]['top1']:.2%} of {len(data.val)} held-out pictures")
    return 0


def train(trainer: Any, folder: Path | None, rows: list[dict[str, Any]]) -> bool:
    """Run the remaining epochs, saving after each; False if the user stopped it."""
    from tinygmf.training import log
    from tinygmf.training.checkpoints import save_run

    def save() -> None:
        about = {"recipe": asdict(trainer.recipe), "data": trainer.data.name, "rows": rows}
        if folder is not None:
            save_run(folder / RUN, trainer.state, trainer.step, about)

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    while trainer.step < trainer.steps:
        report = trainer.run_epoch()
        if report is not None:
            rows.append(asdict(report))
            print(
                f"epoch {report.epoch:3}: loss {report.loss:.3f}, top-1 {report.top1:.2%}, top-5 "
                f"{report.top5:.2%}, {report.pictures_per_second:.0f} pictures/s",
                flush=True,
            )
            if folder is not None:
                log.write_tables(folder, rows)
                log.write_tensorboard(folder, rows[-1])
        save()
        if trainer.stop and trainer.step < trainer.steps:
            return False
    if folder is not None:
        log.write_curves(folder / "curves.png", rows)
    return True


def resume(trainer: Any, folder: Path) -> list[dict[str, Any]]:
    """Put the trainer where the run in this folder stopped; returns the rows of its log."""
    from tinygmf.training.checkpoints import load_run

    about = load_run(folder / RUN, trainer.state)
    then, now = about["recipe"], asdict(trainer.recipe)
    if changed := [name for name in now if now[name] != then.get(name)]:
        options = ", ".join(f"--{n.replace('_', '-')} {then.get(n)}" for n in changed)
        raise ValueError(f"{folder}: expected the options of the run to resume: {options}")
    trainer.step = about["step"]
    return about["rows"]


@contextlib.contextmanager
def stopping(trainer: Any) -> Iterator[None]:
    """The first Ctrl-C ends training after the present step; the second ends it at once."""

    def stop(*_: object) -> None:
        trainer.stop = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
