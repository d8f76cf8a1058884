"""The training loop: batches in, a better network out, every epoch measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tinygmf.config import GroupMixFormerConfig
from tinygmf.data.dataset import BRANCHES, Dataset
from tinygmf.data.evaluation import count_correct
from tinygmf.engine.predictor import Predictor
from tinygmf.model import GroupMixFormer
from tinygmf.training.clock import Clock
from tinygmf.training.gradient import draw_factors
from tinygmf.training.head import HEAD, HeadPrograms
from tinygmf.training.programs import Programs, StepPrograms
from tinygmf.training.recipe import Recipe
from tinygmf.training.run_file import Run, has_ended
from tinygmf.training.state import Devices, TrainingState
from tinygmf.training.update import update_schedule
from tinygmf.weights.checkpoint import NetworkWeights, load_state_dict

LARGEST_SCALE, GROWTH = 2.0**14, 500  # float16's loss scale; it doubles after so many steps


class TrainingError(ValueError):
    """A run that cannot continue; the message is one line that says what to do."""


@dataclass(frozen=True)
class EpochReport:
    """The result of an epoch. Accuracies are shares of the validation pictures."""

    epoch: int  # from 1
    step: int  # steps so far
    loss: float  # mean over the epoch's steps
    learning_rate: float
    top1: float
    top5: float
    pictures_per_second: float  # since the epoch started or was resumed
    seconds: float  # of the whole epoch


class Trainer:
    """Trains a network by a recipe, epoch by epoch: call `run_epoch()` while `step < steps`.

    `model` provides the initial weights and receives the trained ones (`finish`). Several devices
    split every batch among them; the first one evaluates. Raises DataError if there is too little
    data, TrainingError if the loss is no longer finite.
    """

    report: Any = EpochReport  # its middle fields are what `evaluate` measures

    def __init__(
        self,
        model: GroupMixFormer,
        data: Dataset,
        recipe: Recipe,
        device: Devices,
        progress: bool = True,
    ) -> None:
        data.check(recipe.batch_size * recipe.accumulate)
        model.settings = replace(
            model.settings,
            image_size=recipe.size,
            classes=tuple(data.classes),
            crop=recipe.centre or model.settings.crop,
        )
        data.settings = model.settings
        self.data, self.recipe, self.device, self.progress = data, recipe, device, progress
        self.model, self.config = model, training_config(model.config, recipe.drop_path)
        weights = NetworkWeights.of(model)
        self.numbers = TrainingState(
            self.config,
            weights.arrays,
            device,
            recipe.weight_decay,
            recipe.layer_decay,
            recipe.head_only,
        )
        self.programs = step_programs(self.config, self.numbers, recipe, device, progress)
        self.predictor = Predictor(
            weights,
            recipe.size,
            batch_size=min(recipe.batch_size, 64),
            device=device if isinstance(device, str) else device[0],
            progress=progress,
        )
        batches = len(data.train) // recipe.batch_size
        self.steps_per_epoch = batches // recipe.accumulate
        self.begin()

    def begin(self) -> None:
        """Set what changes during a run to its initial value."""
        self.step = 0  # steps so far
        self.scale = LARGEST_SCALE if self.recipe.dtype == "float16" else 1.0  # of the loss
        self.losses, self.seconds = 0.0, 0.0  # sums over the current epoch
        self.reports: list[Any] = []  # of the epochs so far
        self.started: dict[str, Any] = {}  # the options that the run was started with
        self.clock = Clock()
        self.stop = False  # set it, for example from a signal handler, to end after this step
        self.pause = math.inf  # seconds after which `run_epoch` returns, so that a run can be saved

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def ended(self) -> bool:
        """Whether the run is over: all steps taken, or the recipe's patience exhausted."""
        return has_ended(self.about())

    def run_epoch(self) -> EpochReport | None:
        """Train to the end of the current epoch and evaluate.

        Returns None if it stopped early, because `stop` was set or `pause` seconds had passed; the
        next call continues from there.
        """
        epoch, done = divmod(self.step, self.steps_per_epoch)
        if not done:
            self.losses, self.seconds = 0.0, 0.0
        rate, speed, before, start = 0.0, 0.0, self.seconds, time.perf_counter()
        batches = self.clock.waiting(
            self.data.batches(self.recipe, epoch, done * self.recipe.accumulate)
        )
        with self.progress_bar(epoch) as bar:
            for made in range(1, self.steps_per_epoch - done + 1):
                rate = self.recipe.rate(self.step, self.steps_per_epoch)
                with self.clock:
                    loss = self.run_step(batches, rate)
                self.losses += loss
                passed = time.perf_counter() - start
                self.seconds = before + passed
                speed = made * self.recipe.batch_size * self.recipe.accumulate / passed
                bar.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.1e}", pictures_s=f"{speed:.0f}")
                bar.update()
                self.tell_clock(self.steps_per_epoch - done - made)
                if (self.stop or passed > self.pause) and self.step % self.steps_per_epoch:
                    return None
        found = self.evaluate()
        self.seconds = before + time.perf_counter() - start
        mean = self.losses / self.steps_per_epoch
        report = self.report(epoch + 1, self.step, mean, rate, *found, speed, self.seconds)
        self.reports.append(report)
        return report

    def progress_bar(self, epoch: int) -> tqdm:
        """A bar of all the run's steps, labeled with the current epoch."""
        return tqdm(
            total=self.steps,
            initial=self.step,
            desc=f"epoch {epoch + 1}/{self.recipe.epochs}",
            unit=" steps",
            disable=not self.progress,
            leave=False,
        )

    def tell_clock(self, of_epoch: int) -> None:
        """Tell the clock that a step is done and `of_epoch` are left in this epoch."""
        measured = len(self.data.val) / (self.recipe.batch_size * self.recipe.accumulate)
        epochs = self.recipe.epochs - len(self.reports)
        self.clock.step_made(self.steps - self.step, of_epoch, measured * epochs)

    def run_step(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], rate: float) -> float:
        """Take a step: the gradients of `accumulate` batches, then the update. Return the loss."""
        recipe, total = self.recipe, 0.0
        for turn in range(recipe.accumulate):
            rng = np.random.default_rng([recipe.seed, BRANCHES, self.step, turn])
            arrays = *next(batches), draw_factors(self.config, recipe.batch_size, rng)
            share = 1 / recipe.accumulate
            total += share * self.programs.gradient(share, *arrays, scale=self.scale)
        schedule = update_schedule(rate, self.step, recipe.clip, recipe.ema_decay(self.step))
        norm = self.programs.update(schedule)
        self.step += 1
        if math.isfinite(total) and math.isfinite(norm):
            if recipe.dtype == "float16" and self.step % GROWTH == 0:
                self.scale = min(2 * self.scale, LARGEST_SCALE)
        elif math.isfinite(total) and self.scale > 1:
            self.scale /= 2  # the gradient overflowed float16, and the step changed nothing
        else:
            with_loss = math.isfinite(total)
            wrong = f"the gradient's norm is {norm}" if with_loss else f"the loss is {total}"
            raise TrainingError(
                f"{wrong} at step {self.step}: the last checkpoint is intact; try a lower "
                "--learning-rate"
            )
        return total

    def evaluate(self) -> tuple[float, float]:
        """Top-1 and top-5 accuracy of the averaged weights on the validation pictures."""
        self.predictor.use_weights(
            NetworkWeights(self.model.config, self.arrays(), self.model.settings)
        )
        best, five, count = 0, 0, 0
        for pictures, labels in self.data.validation(self.recipe.size, self.predictor.batch_size):
            logits = self.predictor.run(pictures)
            best, five = (
                best + count_correct(logits, labels),
                five + count_correct(logits, labels, 5),
            )
            count += len(labels)
        return best / count, five / count

    def state(self) -> Run:
        """All that it takes to continue from here; `restore` reads it."""
        return Run(self.numbers.read(), self.about())

    def about(self) -> dict[str, Any]:
        """What the run's file records about it."""
        return {
            "recipe": asdict(self.recipe),
            "classes": self.data.classes,
            "pictures": len(self.data.train),
            "steps": self.steps,
            "step": self.step,
            "scale": self.scale,
            "losses": self.losses,
            "seconds": self.seconds,
            "reports": [astuple(report) for report in self.reports],
            "started": self.started,
        }

    def restore(self, run: Run) -> None:
        """Continue where a run stopped.

        Raises ValueError, and changes nothing, if the run had another recipe, data or network.
        """
        run.check(self.recipe, self.data)
        expected = {name: self.numbers[name].shape for name in self.numbers.CHANGING}
        if {name: array.shape for name, array in run.arrays.items()} != expected:
            raise ValueError(
                f"{run.source}: expected a run of this network, found another network's: resume "
                "with the options that the run was started with"
            )
        self.numbers.write(run.arrays)
        self.step, self.scale = run.about["step"], run.about["scale"]
        self.losses, self.seconds = run.about["losses"], run.about["seconds"]
        self.reports = [self.report(*row) for row in run.about["reports"]]

    def arrays(self) -> dict[str, np.ndarray]:
        """The current state dict, with averaged weights if the recipe says so."""
        arrays = self.numbers.network("average")
        if self.recipe.head_only:  # averaging would round even the weights that do not change
            head = {name: array for name, array in arrays.items() if name.startswith(HEAD)}
            arrays = self.numbers.network() | head
        return arrays

    def finish(self) -> GroupMixFormer:
        """Load the current weights into the model and return it."""
        load_state_dict(self.model, self.arrays())
        return self.model


def step_programs(
    config: GroupMixFormerConfig,
    state: TrainingState,
    recipe: Recipe,
    device: Devices,
    progress: bool,
) -> StepPrograms:
    """The programs for what the recipe trains, bound to the state."""
    kind: type[HeadPrograms] | type[Programs] = HeadPrograms if recipe.head_only else Programs
    return kind(config, state, recipe.batch_size, recipe.size, device, progress, recipe.dtype)


def training_config(config: GroupMixFormerConfig, drop_path: float | None) -> GroupMixFormerConfig:
    """The network's configuration with this stochastic depth, or its own if that is None.

    Raises ValueError for dropout, because a compiled step draws no random numbers, and for pictures
    other than RGB.
    """
    config.require_colour("training")
    if config.drop_rate:
        raise ValueError(
            f"drop_rate: expected 0 in training, found {config.drop_rate}: use --drop-path instead"
        )
    return config if drop_path is None else replace(config, drop_path_rate=drop_path)
