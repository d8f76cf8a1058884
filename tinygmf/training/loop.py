"""The training loop: batches in, a better network out, every epoch measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from tinygrad.nn.state import get_state_dict
from tqdm.auto import tqdm

from tinygmf.checkpoint import load_state_dict
from tinygmf.config import GroupMixFormerConfig
from tinygmf.model import GroupMixFormer
from tinygmf.predictor import Predictor
from tinygmf.training.data import BRANCHES, Dataset
from tinygmf.training.programs import Programs
from tinygmf.training.recipe import Recipe
from tinygmf.training.state import Layout, TrainingState, rate_factors, weight_decay
from tinygmf.training.step import draw_factors, update_schedule


class TrainingError(ValueError):
    """A run that cannot go on; the message is one line that says what to do."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to. Accuracies are shares of the validation pictures."""

    epoch: int  # from 1
    step: int  # steps made so far
    loss: float  # mean over the epoch's steps
    learning_rate: float
    top1: float
    top5: float
    pictures_per_second: float
    seconds: float


class Trainer:
    """Trains a network by a recipe, epoch by epoch: `run_epoch()` while `step < steps`.

    `model` gives the first weights and gets the trained ones (`finish`). Raises DataError where
    there is too little data, TrainingError where the loss is no number any more.
    """

    def __init__(
        self,
        model: GroupMixFormer,
        data: Dataset,
        recipe: Recipe,
        device: str,
        progress: bool = True,
    ) -> None:
        data.check(recipe.batch_size * recipe.accumulate)
        self.data, self.recipe, self.device, self.progress = data, recipe, device, progress
        self.model, self.config = model, training_config(model.config, recipe)
        self.layout = Layout.of(self.config)
        self.state = TrainingState(
            self.layout,
            network_arrays(model),
            weight_decay(self.layout, recipe.weight_decay),
            rate_factors(self.layout, recipe.layer_decay, recipe.head_only),
            device,
        )
        self.programs = Programs(
            self.config, self.state, recipe.batch_size, recipe.size, device, progress
        )
        self.predictor = Predictor(
            model,
            recipe.size,
            batch_size=min(recipe.batch_size, 64),
            device=device,
            progress=progress,
        )
        batches = len(data.train) // recipe.batch_size
        self.steps_per_epoch = batches // recipe.accumulate
        self.step = 0  # steps made
        self.stop = False  # set it, from a signal handler say, to end after the present step

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    def run_epoch(self) -> EpochReport | None:
        """Train to the end of the present epoch and measure; None if `stop` was set before."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        losses, rate, speed, start = [], 0.0, 0.0, time.perf_counter()
        batches = self.data.batches(self.recipe, epoch, done * self.recipe.accumulate)
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=done,
            desc=f"epoch {epoch + 1}/{self.recipe.epochs}",
            unit=" steps",
            disable=not self.progress,
            leave=False,
        )
        with bar:
            for _ in range(done, self.steps_per_epoch):
                rate = self.recipe.rate(self.step, self.steps_per_epoch)
                losses.append(self.run_step(batches, rate))
                speed = len(losses) * self.recipe.batch_size * self.recipe.accumulate
                speed /= time.perf_counter() - start
                bar.set_postfix(
                    loss=f"{losses[-1]:.3f}", rate=f"{rate:.1e}", pictures_s=f"{speed:.0f}"
                )
                bar.update()
                if self.stop and self.step % self.steps_per_epoch:
                    return None
        top1, top5 = self.evaluate()
        seconds = time.perf_counter() - start
        return EpochReport(
            epoch + 1, self.step, float(np.mean(losses or [0.0])), rate, top1, top5, speed, seconds
        )

    def run_step(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], rate: float) -> float:
        """One step: the gradients of `accumulate` batches, and the update. Returns the loss."""
        recipe, total = self.recipe, 0.0
        for turn in range(recipe.accumulate):
            rng = np.random.default_rng([recipe.seed, BRANCHES, self.step, turn])
            arrays = *next(batches), draw_factors(self.config, recipe.batch_size, rng)
            total += self.programs.gradient(1 / recipe.accumulate, *arrays) / recipe.accumulate
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss is {total} at step {self.step + 1}: the last checkpoint is intact; "
                "try a lower --learning-rate"
            )
        self.programs.update(update_schedule(rate, self.step, recipe.clip, recipe.ema))
        self.step += 1
        return total

    def evaluate(self) -> tuple[float, float]:
        """Top-1 and top-5 accuracy of the averaged weights on the validation pictures."""
        self.finish()
        self.predictor.use_weights(self.model)
        best, five, count = 0, 0, 0
        for pictures, labels in self.data.validation(self.recipe.size, self.predictor.batch_size):
            order = (-self.predictor.run(pictures)).argsort(axis=1, kind="stable")
            hits = order[:, :5] == labels[:, None]
            best, five, count = (
                best + hits[:, 0].sum(),
                five + hits.any(1).sum(),
                count + len(labels),
            )
        return float(best / count), float(five / count)

    def finish(self) -> GroupMixFormer:
        """The network with its present weights, averaged if the recipe says so."""
        load_state_dict(self.model, self.state.network("average"))
        return self.model


def training_config(config: GroupMixFormerConfig, recipe: Recipe) -> GroupMixFormerConfig:
    """The network's configuration with the recipe's stochastic depth, if it has one."""
    if recipe.drop_path is None:
        return config
    return replace(config, drop_path_rate=recipe.drop_path)


def network_arrays(model: GroupMixFormer) -> dict[str, np.ndarray]:
    """The state dict as arrays."""
    return {name: tensor.numpy() for name, tensor in get_state_dict(model).items()}
