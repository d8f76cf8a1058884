"""Ablations of a segmentation network's backbone, for `study/ablation.py`.

Dense networks train in the published form only, so this takes the ablations that equal it with some
weights held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinygmf.config import AttentionConfig, GroupMixFormerConfig
from tinygmf.data.dense_data import DenseDataset
from tinygmf.data.scenes import scenes
from tinygmf.dense.evaluation import score_segmentation
from tinygmf.dense.networks import create_model
from tinygmf.dense.summary import summarize_heads
from tinygmf.study.held import can_be_held, held_weights
from tinygmf.study.summary import summarize
from tinygmf.training.dense_networks import head_options, named
from tinygmf.training.dense_recipe import SCENES, DenseRecipe
from tinygmf.training.dense_trainer import DenseTrainer
from tinygmf.weights.checkpoint import state_arrays

HEAD = "semantic_fpn"


@dataclass(frozen=True)
class SegmentationTask:
    """A Semantic FPN on `scenes`, as `ablation.Task`."""

    recipe: DenseRecipe = SCENES
    pictures: int | None = None
    measure = "mean IoU"

    def takes(self, attention: AttentionConfig) -> bool:
        return can_be_held(attention)

    def open(self) -> DenseDataset:
        found = scenes("segment")
        return replace(found, train=found.train[: self.pictures])

    def bench(
        self, config: GroupMixFormerConfig, data: DenseDataset, device: str
    ) -> SegmentationBench:
        return SegmentationBench(config, data, self.recipe, device)


class SegmentationBench:
    """As `ablation.Bench`, for a Semantic FPN on the backbone that `config` describes."""

    def __init__(
        self, config: GroupMixFormerConfig, data: DenseDataset, recipe: DenseRecipe, device: str
    ) -> None:
        self.backbone = replace(config, attention=AttentionConfig())
        self.data, self.recipe, self.device = data, recipe, device
        model = named(self.network(seed=0), data.classes, recipe.whole_size)
        shapes = {name: array.shape for name, array in state_arrays(model).items()}
        held = held_weights(config.attention, shapes)
        if held is None:
            raise ValueError(
                f"attention: expected one that is the published form with weights held, found "
                f"{config.attention}"
            )
        self.held = held
        self.trainer = DenseTrainer(model, data, recipe, device, progress=False)
        held.stop(self.trainer.numbers)
        size = recipe.size, recipe.size
        parts: list[Any] = [*summarize(config, size)[:-1]]  # without its own head
        parts += summarize_heads(model, size)
        self.costs = sum(p.parameters for p in parts), sum(p.flops for p in parts)
        self.evaluate(replace(data, val=data.val[:1]))  # compiles

    def network(self, seed: int) -> Any:
        options = head_options(HEAD, None, small=True)
        classes = len(self.data.classes)
        return create_model(HEAD, classes, seed=seed, backbone=self.backbone, **options)

    def fresh(self, seed: int) -> dict[str, np.ndarray]:
        return self.held.apply(state_arrays(self.network(seed)))

    def run(self, seed: int, tick: Callable[[], Any]) -> tuple[float, dict[str, float]]:
        """Train from fresh weights; the mean IoU of the held-out pictures and each class's IoU."""
        trainer = self.trainer
        trainer.recipe = replace(self.recipe, seed=seed)
        trainer.numbers.restart(self.fresh(seed))
        trainer.begin()
        for epoch in range(self.recipe.epochs):
            batches = trainer.data.batches(trainer.recipe, epoch)
            for _ in range(trainer.steps_per_epoch):
                trainer.run_step(batches, self.recipe.rate(trainer.step, trainer.steps_per_epoch))
            tick()
        return self.evaluate(self.data)

    def evaluate(self, data: DenseDataset) -> tuple[float, dict[str, float]]:
        model = self.trainer.finish()
        score = score_segmentation(model, data, device=self.device, progress=False)
        return score.mean_iou, {row["class"]: row["iou"] for row in score.table()}
