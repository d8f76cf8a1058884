"""Trains a network beside the published PyTorch code: same weights, batches, rates and recipe.

    python tests/tools/benchmarks/compare_training.py --official groupmixformer.py
        --official-python PYTHON [--steps N] -- DATA [option of `tinygmf train` …]

Both start from our weights and are given our batches, in turn. A line for each epoch has the mean
losses, the largest difference of a step's losses, accuracy on the pictures held out, and the
seconds that the steps took; the last line has accuracy on the pictures to test on, if the data set
has any. `--steps` ends sooner and prints every tenth step. The published code needs PyTorch and
einops.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("DEV", "CPU")
PROCESS = Path(__file__).with_name("training_process.py")


class TrainingPeer:
    """The published PyTorch network in training, from `state`, a state dict: AdamW with the weight
    decay, the clipping and the moving average of our `recipe`, on the batches that it is given."""

    def __init__(
        self, python: str, path: Path, config: Any, state: dict[str, np.ndarray], recipe: Any
    ) -> None:
        drop_path = config.drop_path_rate if recipe.drop_path is None else recipe.drop_path
        if recipe.layer_decay != 1 or recipe.accumulate != 1 or drop_path:
            raise ValueError("recipe: expected one rate for all layers, one batch, every branch")
        names = "embedding_dims", "serial_depths", "mlp_ratios", "num_classes"
        sizes = json.dumps({name: getattr(config, name) for name in names})
        self.process = subprocess.Popen(
            [python, PROCESS, path, sizes, str(recipe.weight_decay), str(recipe.clip)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._send({name: np.ascontiguousarray(array) for name, array in state.items()})

    def step(
        self, rate: float, decay: float, pictures: np.ndarray, targets: np.ndarray
    ) -> tuple[float, float]:
        """The loss, and the seconds that the step took."""
        return self._ask(rate, decay, pictures, targets)

    def right(self, pictures: np.ndarray, labels: np.ndarray) -> int:
        """How many pictures the averaged weights get right."""
        return int(self._ask(None, None, pictures, labels)[0])

    def _ask(self, *question: Any) -> tuple[float, float]:
        self._send(question)
        assert self.process.stdout is not None
        answer, seconds = map(float, self.process.stdout.readline().split())
        return answer, seconds

    def _send(self, what: Any) -> None:
        assert self.process.stdin is not None
        pickle.dump(what, self.process.stdin)
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.communicate()


def start(options: argparse.Namespace) -> tuple[Any, TrainingPeer]:
    """Our trainer, and its peer."""
    from tinygmf.commands.main import build_parser
    from tinygmf.commands.train import chosen_network, opened_devices, recipe_and_data
    from tinygmf.training.trainer import Trainer
    from tinygmf.weights.checkpoint import state_arrays

    args = build_parser(["train"]).parse_args(["train", *options.arguments, "--device", "CPU"])
    device = opened_devices(args)
    recipe, data = recipe_and_data(args, None)
    model = chosen_network(args, data, recipe)
    peer = TrainingPeer(
        options.official_python, options.official, model.config, state_arrays(model), recipe
    )
    return Trainer(model, data, recipe, device, progress=False), peer


def epoch_of(trainer: Any, peer: TrainingPeer, steps: int | None) -> np.ndarray:
    """An epoch, or what is left of `steps`: losses and seconds of every step, (steps, 2, 2), ours
    before theirs."""
    recipe, found = trainer.recipe, []
    for batch in trainer.data.batches(recipe, trainer.step // trainer.steps_per_epoch):
        step = trainer.step
        rate = recipe.rate(step, trainer.steps_per_epoch)
        began = time.perf_counter()
        loss = trainer.run_step(iter([batch]), rate)
        ours = loss, time.perf_counter() - began
        found.append((ours, peer.step(rate, recipe.ema_decay(step), *batch)))
        if steps and step % 10 == 0:
            print(f"step {step:4}: {found[-1][0][0]:.6f} {found[-1][1][0]:.6f}", flush=True)
        if trainer.step == steps:
            break
    return np.array(found)


def shares(trainer: Any, peer: TrainingPeer) -> tuple[float, float]:
    """The shares of the pictures held out that we get right, and that the peer does."""
    batches = trainer.data.validation(trainer.recipe.size, trainer.recipe.batch_size)
    right = sum(peer.right(pictures, labels) for pictures, labels in batches)
    return trainer.evaluate()[0], right / len(trainer.data.val)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="the published file")
    parser.add_argument("--official-python", default=sys.executable)
    parser.add_argument("--steps", type=int, help="end after so many")
    parser.add_argument("arguments", nargs="+", help="of `tinygmf train`, after --")
    options = parser.parse_args()
    trainer, peer = start(options)
    while trainer.step < (options.steps or trainer.steps):
        (losses, seconds) = np.moveaxis(epoch_of(trainer, peer, options.steps), 2, 0)
        means, apart = losses.mean(0), np.abs(losses[:, 0] - losses[:, 1]).max()
        ours, theirs = shares(trainer, peer)
        print(
            f"step {trainer.step}: ours / PyTorch: loss {means[0]:.4f} / {means[1]:.4f} "
            f"(at most {apart:.1e} apart), top-1 {ours:.2%} / {theirs:.2%}, "
            f"{seconds[:, 0].sum():.0f} / {seconds[:, 1].sum():.0f} s",
            flush=True,
        )
    if trainer.step == trainer.steps and trainer.data.test:
        trainer.data = replace(
            trainer.data, val=trainer.data.test, val_labels=trainer.data.test_labels
        )
        ours, theirs = shares(trainer, peer)
        print(f"{len(trainer.data.val)} pictures to test on: {ours:.2%} / {theirs:.2%}")
    peer.close()


if __name__ == "__main__":
    main()
