"""Taking Group-Mix Attention apart: networks that each lack one thing, trained alike and compared.

An ablation is a value of `AttentionConfig`; everything else, recipe and seeds included, is the same
for all. The networks and the data are small: a difference no larger than the spread over seeds
means nothing, and what holds here need not hold for ImageNet.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tinygrad import Tensor
from tqdm.auto import tqdm

from tinygmf.config import AttentionConfig, GroupMixFormerConfig
from tinygmf.data.dataset import Dataset
from tinygmf.data.digits import digits
from tinygmf.data.evaluation import count_correct
from tinygmf.data.scenes import scene_photographs, scene_shapes
from tinygmf.engine.devices import open_device, set_default_device
from tinygmf.engine.program_cache import load_or_compile, program_key
from tinygmf.files import replacing
from tinygmf.model import GroupMixFormer, state_shapes
from tinygmf.study.dense_ablation import SegmentationTask
from tinygmf.study.held import held_weights
from tinygmf.study.summary import summarize
from tinygmf.tensors import tensor_from_numpy
from tinygmf.threads import limit_threads
from tinygmf.training.programs import Programs
from tinygmf.training.recipe import RECIPES, Recipe
from tinygmf.training.state import TrainingState
from tinygmf.training.update import update_schedule
from tinygmf.weights.checkpoint import state_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABLATIONS = {
    "published": AttentionConfig(),
    "average": AttentionConfig(aggregator="average"),
    "maximum": AttentionConfig(aggregator="maximum"),
    "minimum": AttentionConfig(aggregator="minimum"),
    "tokens": AttentionConfig(kernels=(1, 1, 1)),  # no groups, everything else as published
    "kernels-3": AttentionConfig(kernels=(3, 3, 3)),
    "kernels-5-7-9": AttentionConfig(kernels=(5, 7, 9)),
    "no-branch": AttentionConfig(non_attention=False),
    "no-cpe": AttentionConfig(cpe=False),
    "no-crpe": AttentionConfig(crpe=False),
    "no-position": AttentionConfig(cpe=False, crpe=False),  # what the paper describes
    "softmax": AttentionConfig(softmax=True),
    # multi-head self-attention of the same width, with nothing that knows a token's neighbors
    "plain": AttentionConfig("none", non_attention=False, cpe=False, crpe=False, softmax=True),
    "plain-cpe": AttentionConfig("none", non_attention=False, crpe=False, softmax=True),
}


class AnyBench(Protocol):
    """A network ready to be trained for one seed after another. `costs`: its parameters and its
    FLOPs for one picture, as in `tinygmf info`."""

    costs: tuple[int, int]

    def run(self, seed: int, tick: Callable[[], Any]) -> tuple[float, dict[str, float]]:
        """Train from fresh weights; the task's measure on the held-out pictures, and for each class
        where it has one. `tick` is called after every epoch."""


@dataclass(frozen=True)
class Task:
    """The data and the recipe for training; `pictures` of the data, or all of them."""

    data: Callable[[], Dataset]
    recipe: Recipe
    pictures: int | None = None
    measure = "top-1"

    def takes(self, attention: AttentionConfig) -> bool:
        """Whether this ablation can be trained on the task."""
        return True

    def open(self) -> Dataset:
        found = self.data()
        few = slice(self.pictures)
        return replace(found, train=found.train[few], train_labels=found.train_labels[few])

    def bench(self, config: GroupMixFormerConfig, data: Dataset, device: str) -> Bench:
        return Bench(config, data, self.recipe, device)


AnyTask = Task | SegmentationTask
TASKS: dict[str, AnyTask] = {
    "digits": Task(digits, RECIPES["digits"]),
    # which of 13 photographs a patch comes from, and which shape lies in the middle of a scene
    "scenes-photograph": Task(scene_photographs, RECIPES["scenes-photograph"], 1950),
    "scenes-shape": Task(scene_shapes, RECIPES["scenes-shape"], 6000),
    "scenes-segment": SegmentationTask(),
}


@dataclass(frozen=True)
class Outcome:
    """The result of an ablation."""

    name: str
    parameters: int
    flops: int  # for one picture, as in `tinygmf info`
    accuracies: tuple[float, ...]  # `measure` for each seed, from 0 to 1
    seconds: float  # to train and evaluate one seed, without compiling
    measure: str = "top-1"  # on the held-out pictures
    by_class: dict[str, tuple[float, ...]] = field(default_factory=dict)  # if the task has it

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; 0 for a single one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


class Bench:
    """A network's compiled programs for one recipe, used for every seed.

    An ablation that equals the published form with some weights held fixed is trained in that form,
    which is faster and compiled only once. The trained network is evaluated unfolded, because not
    every ablation can be folded.
    """

    def __init__(
        self, config: GroupMixFormerConfig, data: Dataset, recipe: Recipe, device: str
    ) -> None:
        rows = summarize(config, (recipe.size, recipe.size))
        self.costs = sum(r.parameters for r in rows), sum(r.flops for r in rows)
        published = replace(config, attention=AttentionConfig())
        self.held = held_weights(config.attention, state_shapes(published))
        config = config if self.held is None else published
        self.config, self.data, self.recipe, self.device = config, data, recipe, device
        self.state = TrainingState(
            config,
            self._fresh(seed=0),
            device,
            recipe.weight_decay,
            recipe.layer_decay,
        )
        if self.held:
            self.held.stop(self.state)
        # one of several side by side would draw over the others
        self.progress = sys.stderr.isatty() and multiprocessing.parent_process() is None
        self.programs = Programs(
            config, self.state, recipe.batch_size, recipe.size, device, self.progress
        )
        paths = 2 * sum(config.serial_depths)
        self.kept = np.ones((paths, recipe.batch_size), np.float32)  # no stochastic depth
        self.forward = self._compile_forward()

    def _tensor(self, array: Any) -> Tensor:
        return tensor_from_numpy(np.asarray(array), self.device)

    def _compile_forward(self) -> Any:
        model, recipe = GroupMixFormer(self.config, seed=None), self.recipe
        layout = self.state.layout

        def forward(weights: Tensor, statistics: Tensor, counters: Tensor, x: Tensor) -> Tensor:
            layout.bind(model, weights, statistics, counters)
            return model(x)

        shape = (recipe.batch_size, 3, recipe.size, recipe.size)
        key = program_key(self.config, shape, program="plain forward")
        arguments = (*self._network(), self._tensor(np.zeros(shape, np.float32)))
        return load_or_compile(key, forward, *arguments, device=self.device, progress=self.progress)

    def _fresh(self, seed: int) -> dict[str, np.ndarray]:
        arrays = state_arrays(GroupMixFormer(self.config, seed))
        return self.held.apply(arrays) if self.held else arrays

    def _network(self) -> list[Tensor]:
        return [self.state[name] for name in ("weights", "statistics", "counters")]

    def run(self, seed: int, tick: Callable[[], Any]) -> tuple[float, dict[str, float]]:
        """The share of held-out pictures that are right after training."""
        recipe, step = replace(self.recipe, seed=seed), 0
        self.state.restart(self._fresh(seed))
        steps_per_epoch = len(self.data.train) // recipe.batch_size
        for epoch in range(recipe.epochs):
            batches = self.data.batches(recipe, epoch)
            for _, (pictures, targets) in zip(range(steps_per_epoch), batches, strict=False):
                self.programs.gradient(1, pictures, targets, self.kept)
                rate = recipe.rate(step, steps_per_epoch)
                self.programs.update(update_schedule(rate, step, recipe.clip, ema=0.0))
                step += 1
            tick()
        return self.evaluate(), {}

    def evaluate(self) -> float:
        """Top-1 accuracy on the held-out pictures."""
        right, count, batch = 0, 0, self.recipe.batch_size
        for pictures, labels in self.data.validation(self.recipe.size, batch):
            padded = np.zeros((batch, *pictures.shape[1:]), np.float32)
            padded[: len(pictures)] = pictures
            logits = self.forward(*self._network(), self._tensor(padded)).numpy()
            right += count_correct(logits[: len(labels)], labels)
            count += len(labels)
        return right / count


def chosen_ablations(task: AnyTask, asked: Sequence[str]) -> list[str]:
    """The ablations asked for, by default all that the task takes. Raises ValueError for others."""
    known = [name for name, attention in ABLATIONS.items() if task.takes(attention)]
    for name in asked:
        if name not in known:
            why = ": the others can only be trained to classify" if name in ABLATIONS else ""
            raise ValueError(f"ablation: expected {', '.join(known)}, found {name!r}{why}")
    return list(asked) or known


def ablate(
    names: Sequence[str],
    config: GroupMixFormerConfig,
    task: AnyTask,
    seeds: Sequence[int],
    device: str,
    jobs: int = 1,
) -> Iterator[Outcome]:
    """Train each of the named `ABLATIONS` once per seed; yield an outcome as each is done, and on a
    terminal show a bar for all of them. `jobs` of them train side by side, each on one core.
    """
    each = len(seeds) * task.recipe.epochs
    with tqdm(total=len(names) * each, unit=" epochs", disable=None, leave=False) as bar:
        if jobs == 1:
            one = partial(train_ablation, config, task, task.open(), seeds, device, bar.update)
            yield from map(one, names)
            return
        for outcome in side_by_side(partial(alone, config, task, seeds, device), names, jobs):
            bar.update(each)
            yield outcome


def side_by_side(
    train: Callable[[str], Outcome], names: Sequence[str], jobs: int
) -> Iterable[Outcome]:
    """Train each in its own process, so many at a time; yield in the order of the names."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, limit_threads, (1,), max_tasks_per_child=1) as pool:
        yield from pool.map(train, names)


def alone(
    config: GroupMixFormerConfig,
    task: AnyTask,
    seeds: Sequence[int],
    device: str,
    name: str,
) -> Outcome:
    """`train_ablation` in a new process, which has opened nothing yet."""
    set_default_device(open_device(device))
    return train_ablation(config, task, task.open(), seeds, device, lambda: None, name)


def train_ablation(
    config: GroupMixFormerConfig,
    task: AnyTask,
    data: Any,
    seeds: Sequence[int],
    device: str,
    tick: Callable[[], Any],
    name: str,
) -> Outcome:
    """Train one of `ABLATIONS` for each seed; `tick` is called after every epoch."""
    changed = replace(
        config, attention=ABLATIONS[name], num_classes=len(data.classes), drop_path_rate=0.0
    )
    bench: AnyBench = task.bench(changed, data, device)
    start = time.perf_counter()
    accuracies, parts = zip(*(bench.run(seed, tick) for seed in seeds), strict=True)
    seconds = (time.perf_counter() - start) / len(seeds)
    by_class = {kind: tuple(part[kind] for part in parts) for kind in parts[0]}
    return Outcome(name, *bench.costs, accuracies, seconds, task.measure, by_class)


def heading(measure: str) -> str:
    """The line above the rows of `format_outcome`."""
    return f"{'':14} {'parameters':>10} {'FLOPs':>8} {measure:>8} {'spread':>7} {'seconds':>8}"


def format_outcome(outcome: Outcome) -> str:
    """A row of the table."""
    return (
        f"{outcome.name:14} {outcome.parameters:10,} {outcome.flops / 1e6:7.2f}M "
        f"{outcome.accuracy:8.2%} {outcome.spread:7.2%} {outcome.seconds:8.1f}"
    )


def save_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write outcomes as JSON; `load_outcomes` reads them back."""
    text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1, allow_nan=False)
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


def load_outcomes(path: Path) -> list[Outcome]:
    """The outcomes in a file of `save_outcomes`."""
    rows = json.loads(path.read_text())
    for row in rows:
        row["accuracies"] = tuple(row["accuracies"])
        row["by_class"] = {kind: tuple(own) for kind, own in row.get("by_class", {}).items()}
    return [Outcome(**row) for row in rows]


def draw_outcomes(outcomes: Sequence[Outcome]) -> Figure:
    """One row for each ablation: a dot for each seed, a line for their mean."""
    from tinygmf.study.figures import require_matplotlib

    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.3 * len(outcomes)), layout="constrained", dpi=110)
    axis = figure.subplots()
    for i, outcome in enumerate(outcomes):
        accuracies = [100 * accuracy for accuracy in outcome.accuracies]
        axis.plot(accuracies, [i] * len(accuracies), "o", color="#4477aa", alpha=0.6)
        middle = 100 * outcome.accuracy
        axis.plot([middle, middle], [i - 0.35, i + 0.35], color="black")
    axis.set_yticks(range(len(outcomes)), [outcome.name for outcome in outcomes])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    measure = outcomes[0].measure
    axis.set_xlabel(f"{measure} on held-out pictures, % (a dot: a seed; the line: their mean)")
    axis.set_title("Ablations of Group-Mix Attention")
    return figure
