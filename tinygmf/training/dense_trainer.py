"""Training a dense network: `Trainer` with its data, programs and measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tinygrad.nn.state import get_state_dict

from tinygmf.data.dataset import MIX
from tinygmf.data.dense_data import DenseDataset
from tinygmf.dense.evaluation import score_detection, score_segmentation
from tinygmf.dense.networks import kind_of_network
from tinygmf.training.dense_gradient import GRADIENTS
from tinygmf.training.dense_programs import DensePrograms
from tinygmf.training.dense_recipe import DenseRecipe
from tinygmf.training.dense_state import DenseState
from tinygmf.training.dense_targets import Known
from tinygmf.training.state import Devices
from tinygmf.training.trainer import Trainer, training_config


@dataclass(frozen=True)
class SegmentationReport:
    """What an epoch came to, as `EpochReport`, on the validation pictures."""

    epoch: int
    step: int
    loss: float
    learning_rate: float
    mean_iou: float
    pixel_accuracy: float
    pictures_per_second: float
    seconds: float


@dataclass(frozen=True)
class DetectionReport:
    """The same with COCO's average precision at an overlap of 0.5, and the mean from 0.5 to 0.95;
    of masks, where there are any."""

    epoch: int
    step: int
    loss: float
    learning_rate: float
    ap50: float
    ap: float
    pictures_per_second: float
    seconds: float


@dataclass
class DenseBatches:
    """A `DenseDataset` as `Trainer` draws from it."""

    data: DenseDataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def batches(
        self, recipe: DenseRecipe, epoch: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, Known]]:
        """Pictures (B, 3, S, S) and what is known of them, from batch `first` of the epoch on."""
        augment = recipe.augment(epoch)
        drawn = self.data.batches(augment, recipe.batch_size, recipe.seed, epoch, first)
        for number, (pictures, known) in enumerate(drawn, first):
            rng = np.random.default_rng([recipe.seed, MIX, epoch, number])
            yield pictures, Known(known, rng)


class DenseTrainer(Trainer):
    """Trains a dense network by a recipe, as `Trainer` does a classification network."""

    def __init__(
        self,
        model: Any,
        data: DenseDataset,
        recipe: DenseRecipe,
        device: Devices,
        progress: bool = True,
    ) -> None:
        self.data: Any = DenseBatches(data)
        self.recipe: Any = recipe
        self.device, self.progress, self.model = device, progress, model
        arrays = {name: tensor.numpy() for name, tensor in get_state_dict(model).items()}
        name = kind_of_network(model)
        assert name is not None
        self.config = training_config(model.config.backbone, recipe.drop_path)
        model.config = replace(model.config, backbone=self.config)
        prefix, decays = GRADIENTS[name].prefix, (recipe.weight_decay, recipe.layer_decay)
        self.numbers = DenseState(model, arrays, device, prefix, *decays)
        self.programs: Any = DensePrograms(
            name, model, self.numbers, recipe.batch_size, recipe.size, device, progress
        )
        self.report = SegmentationReport if data.task == "segment" else DetectionReport
        self.steps_per_epoch = len(data.train) // recipe.batch_size // recipe.accumulate
        self.begin()

    def evaluate(self) -> tuple[float, float]:
        """What the reports name, of the averaged weights on the validation pictures; 0 where there
        is nothing to be found."""
        self.finish()
        options = {"device": str(self.device), "progress": self.progress}
        if self.data.task == "segment":
            score = score_segmentation(self.model, self.data.data, **options)
            return number(score.mean_iou), number(score.pixel_accuracy)
        *_, found = score_detection(self.model, self.data.data, **options).values()
        return number(found.ap50), number(found.ap)

    def arrays(self) -> dict[str, np.ndarray]:
        return self.numbers.network("average")


def number(value: float) -> float:
    """Of a share of nothing, which is NaN, 0: a run's file holds JSON."""
    return 0.0 if math.isnan(value) else value
