"""How to train a dense network: every choice is a field of `DenseRecipe`, and an option of
`tinygmf train --task`.

AdamW with a linear warm-up, then the polynomial decay of mmsegmentation or half a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from tinygmf.data.augment import option
from tinygmf.data.dense_augment import DenseAugment
from tinygmf.training.recipe import Recipe, require_finite

SCHEDULES = "poly", "cosine"


@dataclass(frozen=True)
class DenseRecipe:
    """Everything that shapes a run, apart from the network and the pictures.

    Raises ValueError, in one line, for an impossible value.
    """

    batch_size: int = option(16, "pictures in one step")
    size: int = option(512, "picture size in pixels")
    seed: int = option(0, "of the new weights, the order and the augmentation")
    epochs: int = option(60, "passes over the training pictures")
    accumulate: int = option(1, "batches whose gradients are added up before the weights change")

    learning_rate: float = option(2e-4, "peak")
    warmup_steps: int = option(500, "steps of linear warm-up")
    schedule: str = option("poly", "after the warm-up: poly (of power 1) or cosine, to zero")
    weight_decay: float = option(0.05, "AdamW's; none on biases and one-dimensional weights")
    patience: int = option(
        0, "stop after so many epochs, and 100 steps, without a better one; 0: never"
    )
    clip: float = option(5.0, "largest norm of the gradient")
    layer_decay: float = option(1.0, "learning-rate factor from each stage to the one below")
    drop_path: float | None = option(None, "stochastic depth; by default the network's own")
    ema: float = option(0.0, "decay of the weights' moving average, which is the result")

    scale_min: float = option(0.5, "smallest random scale of a picture; 1 just fits the square")
    scale_max: float = option(2.0, "largest random scale")
    grow: float = option(1.0, "enlargement of pictures after the first third of the epochs")
    flip: float = option(0.5, "how often a picture is mirrored")
    colour: float = option(0.4, "largest change of brightness, contrast and saturation")

    dtype = "float32"
    head_only = False
    ema_decay = Recipe.ema_decay

    def __post_init__(self) -> None:
        require_finite(self)
        for name in ("batch_size", "epochs", "accumulate"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("size", self.size >= 32, "at least 32 pixels")
        self._require("seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        self._require("schedule", self.schedule in SCHEDULES, " or ".join(SCHEDULES))
        for name in ("learning_rate", "clip", "scale_min", "grow"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "warmup_steps", "patience"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("ema", "drop_path"):
            self._require(name, 0 <= (getattr(self, name) or 0) < 1, "0 <= value < 1")
        for name in ("flip", "colour"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._require("layer_decay", 0 < self.layer_decay <= 1, "above 0, at most 1")
        self._require("scale_max", self.scale_max >= self.scale_min, "no less than --scale-min")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            option_name = "--" + name.replace("_", "-")
            raise ValueError(f"{option_name}: expected {expected}, found {getattr(self, name)!r}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0."""
        total = self.epochs * steps_per_epoch
        if step < (warmup := min(self.warmup_steps, total)):
            return self.learning_rate * (step + 1) / warmup
        part = (step - warmup) / max(total - warmup, 1)
        if self.schedule == "poly":
            return self.learning_rate * (1 - part)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))

    @property
    def whole_size(self) -> int:
        """Side, in pixels, at which the trained network sees whole pictures. It exceeds the
        training crops if even the smallest random scale does."""
        return round(self.size * max(1.0, self.scale_min * self.grow))

    def augment(self, epoch: int) -> DenseAugment:
        """The augmentation of an epoch, counted from 0."""
        grown = self.grow if 3 * epoch >= self.epochs else 1.0
        scale = self.scale_min * grown, self.scale_max * grown
        return DenseAugment(self.size, scale, self.flip, self.colour)


SCENES = DenseRecipe(  # drawn in random sizes and colours: only mirroring adds variety
    batch_size=8,
    size=128,
    epochs=4,
    learning_rate=3e-3,
    warmup_steps=200,
    schedule="cosine",
    ema=0.998,
    scale_min=1.0,
    scale_max=1.0,
    colour=0.0,
)

# Small, four objects fit in the place of one, which teaches their classes faster; large, their
# borders and corners can be seen.
SCENES_SEGMENTATION = replace(SCENES, epochs=10, grow=2.0)

# For heads without normalization, on a backbone that was trained to segment
SCENES_DETECTION = replace(SCENES, epochs=1, learning_rate=8e-4)

RECIPES = {
    "segment": DenseRecipe(),
    "detect": DenseRecipe(epochs=36, schedule="cosine", scale_min=0.6, scale_max=1.6),
    "instance": DenseRecipe(epochs=36, schedule="cosine", scale_min=0.6, scale_max=1.6),
}
ON_SCENES = {
    "segment": SCENES_SEGMENTATION,
    "detect": SCENES_DETECTION,
    "instance": SCENES_DETECTION,
}


def recipe_options() -> list[tuple[str, str, Any, str]]:
    """Each field's name, type, default and explanation."""
    return [(f.name, str(f.type), f.default, f.metadata["help"]) for f in fields(DenseRecipe)]


def changed(recipe: DenseRecipe, **changes: Any) -> DenseRecipe:
    return replace(recipe, **{k: v for k, v in changes.items() if v is not None})
