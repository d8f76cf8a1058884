"""A run of `tinygmf train`, from its first step to the files that it leaves in its folder."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from tinygmf.commands import interrupt
from tinygmf.commands.run_folder import BEST, CLASSES, RUN, WEIGHTS
from tinygmf.files import counted, printable, remove_leftovers, replacing
from tinygmf.training.recipe import Recipe

if TYPE_CHECKING:
    from tinygmf.training.run_file import Run
    from tinygmf.training.trainer import Trainer

SAVE_EVERY = 600  # seconds, in epochs that are longer
CURVES = "curves.png"


def run_to_the_end(
    model: Any,
    data: Any,
    recipe: Recipe,
    device: Any,
    out: Path,
    saved: Run | None,
    started: dict[str, Any],
) -> int:
    """Train, from where a saved run stopped if there is one; returns the exit code.

    `started` are the options that the run's file keeps.
    """
    from tinygmf.weights.checkpoint import WRITERS

    folder = None if out.suffix in WRITERS else out
    trainer = make_trainer(model, data, recipe, device, started)
    if saved:
        trainer.restore(saved)
        tell_resumed(trainer, out)
    with stopping(trainer):
        finished = train(trainer, folder)
    for line in trainer.data.report():
        print(f"skipped: {line}", file=sys.stderr)
    if not finished:
        tell_stopped(trainer, folder)
        return interrupt.EXIT_CODE
    save_result(trainer, folder, out)
    tell_result(trainer, folder, out)
    return 0


def make_trainer(
    model: Any, data: Any, recipe: Recipe, device: Any, started: dict[str, Any]
) -> Trainer:
    """The trainer of a classification or a dense network, before its first step."""
    from tinygmf.training.dense_recipe import DenseRecipe
    from tinygmf.training.dense_trainer import DenseTrainer
    from tinygmf.training.trainer import Trainer

    kind: Any = DenseTrainer if isinstance(recipe, DenseRecipe) else Trainer
    trainer: Trainer = kind(model, data, recipe, device)
    trainer.pause, trainer.progress = SAVE_EVERY, sys.stderr.isatty()
    trainer.started, trainer.clock.tell = started, tell_time
    return trainer


def save_result(trainer: Trainer, folder: Path | None, out: Path) -> None:
    """Write the network alone to `out`, or complete a run's folder: the names of the classes, the
    figures of the outcome."""
    from tinygmf.training.dense_recipe import DenseRecipe
    from tinygmf.weights.checkpoint import save_model

    if folder is None:
        save_model(trainer.finish(), out)
        return
    with replacing(folder / CLASSES) as file:  # for network files without class names
        file.write("".join(f"{printable(name)}\n" for name in trainer.data.classes).encode())
    if not isinstance(trainer.recipe, DenseRecipe):
        show_outcome(trainer, folder)


def show_outcome(trainer: Trainer, folder: Path) -> None:
    """Evaluate the network on the held-out pictures; write figures and a table to the folder."""
    from tinygmf.data.evaluation import evaluate
    from tinygmf.study.outcome import write_outcome

    data = trainer.data
    samples = zip(data.val, map(int, data.val_labels), strict=True)
    found = evaluate(trainer.predictor, samples, trainer.progress, data.load)
    with room_for_the_log(folder):
        written = write_outcome(folder, found, data.classes, data.load)
    missing = "" if len(written) > 1 else "; figures need matplotlib: pip install 'tinygmf[plots]'"
    written += [CURVES] * (folder / CURVES).is_file()
    print(f"{folder}: {', '.join(written)}{missing}", file=sys.stderr)


def tell_time(seconds: float) -> None:
    from tinygmf.training.clock import spoken

    tqdm.write(f"{spoken(seconds)} to the end of the run", file=sys.stderr)  # above the bar


def tell_resumed(trainer: Trainer, folder: Path) -> None:
    """Print where a run continues, or that it does not."""
    from tinygmf.training.run_file import best_epoch

    reports, recipe = trainer.about()["reports"], trainer.recipe
    said = f"continues after step {trainer.step} of {trainer.steps}"
    if trainer.step >= trainer.steps:
        said = (
            f"has finished, after {counted(recipe.epochs, 'epoch')}: give more --epochs to continue"
        )
    elif trainer.ended:
        said = (
            f"stopped early, after {counted(len(reports), 'epoch')}, the best of which was epoch "
            f"{best_epoch(reports)}: give a --patience above {recipe.patience}, or 0, to continue"
        )
    print(f"{folder}: this run {said}", file=sys.stderr)


def tell_stopped(trainer: Trainer, folder: Path | None) -> None:
    how = "to be able to resume, give --out a folder"
    if folder:
        how = f"{folder / WEIGHTS} is the network so far; `tinygmf train --resume {folder}` resumes"
    print(f"stopped after step {trainer.step} of {trainer.steps}; {how}")


def tell_result(trainer: Trainer, folder: Path | None, out: Path) -> None:
    """Print the network's file and figure, and those of a better epoch before it."""
    from tinygmf.training.run_file import best_epoch

    reports, broken = trainer.reports, trainer.data.broken
    pictures = sum(str(source) not in broken for source in trainer.data.val)
    best = best_epoch(trainer.about()["reports"])
    if len(reports) < trainer.recipe.epochs:
        patience = trainer.recipe.patience
        print(f"stopped early after epoch {len(reports)}: no better one in the last {patience}")
    if folder and best != len(reports):
        print(f"{folder / BEST}: {first_measure(reports[best - 1])}, of epoch {best}")
    path = folder / WEIGHTS if folder else out
    held_out = counted(pictures, "held-out picture")
    print(f"{path}: {first_measure(reports[-1])} of {held_out}")


def first_measure(report: Any) -> str:
    return measured(report).partition(",")[0]


def measured(report: Any) -> str:
    """An epoch's figures on the validation pictures."""
    from tinygmf.training.log import measures

    row = asdict(report)
    return ", ".join(f"{label} {row[name]:.2%}" for name, label in measures(row).items())


def told(epoch: int, trainer: Trainer) -> bool:
    """Whether an epoch gets a line: the first, the last and, if there are over 100, one in about
    ten steps. A folder of few pictures has hundreds of epochs of a step or two."""
    epochs = trainer.recipe.epochs
    every = max(1, 10 // trainer.steps_per_epoch) if epochs > 100 else 1
    return epoch in (1, epochs) or epoch % every == 0


def train(trainer: Trainer, folder: Path | None) -> bool:
    """Run the remaining epochs, saving after each, and in long ones between; False if the user
    stopped it. Raises ValueError, with the last checkpoint intact, if the disk is full."""
    from tinygmf.training import log

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    while not trainer.ended:
        report = trainer.run_epoch()
        if report is not None and told(report.epoch, trainer):
            print(
                f"epoch {report.epoch:3}: loss {report.loss:.3f}, {measured(report)}, "
                f"{report.pictures_per_second:.0f} pictures/s",
                flush=True,
            )
        if folder is not None:
            save(trainer, folder, epoch_ended=report is not None)
        if trainer.stop and not trainer.ended:
            return False
    if folder is not None:
        with room_for_the_log(folder):
            log.write_curves(folder / CURVES, rows(trainer))
    return True


def save(trainer: Trainer, folder: Path, epoch_ended: bool) -> None:
    """Write the network, the run, then its log: all that a saved run refers to is there.

    After an epoch that none before beats, also write the network as the best one. Raises
    CheckpointError or ValueError if writing fails.
    """
    from tinygmf.training import log
    from tinygmf.training.run_file import best_epoch, save_run
    from tinygmf.weights.checkpoint import write_tensors

    arrays, notes = trainer.arrays(), trainer.model.settings.to_json()
    if epoch_ended and best_epoch(trainer.about()["reports"]) == len(trainer.reports):
        write_tensors(arrays, folder / BEST, notes | {"epoch": len(trainer.reports)})
    write_tensors(arrays, folder / WEIGHTS, notes)
    save_run(folder / RUN, trainer.state())
    if trainer.reports:
        with room_for_the_log(folder):
            log.write_tables(folder, rows(trainer))
            log.write_tensorboard(folder, rows(trainer))


def rows(trainer: Trainer) -> list[dict[str, Any]]:
    """The rows of the log, one for each epoch."""
    return [asdict(report) for report in trainer.reports]


@contextlib.contextmanager
def room_for_the_log(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder}: expected room for the log, found {error.strerror}: the run is saved; make "
            f"room, then `tinygmf train --resume {folder}` continues"
        ) from None


@contextlib.contextmanager
def stopping(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C ends training after the current step; the second ends it at once."""

    def stop(*_: object) -> None:
        trainer.stop = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
