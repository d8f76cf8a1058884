"""A dense network's numbers in training: `TrainingState` under the names of a dense network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygmf.config import STAGES
from tinygmf.training.state import Devices, Layout, Pieces, TrainingState, decays, place


class DenseState(TrainingState):
    """As `TrainingState`; `layer_decay` slows the backbone alone."""

    def __init__(
        self,
        network: Any,
        arrays: Mapping[str, np.ndarray],
        device: Devices,
        prefix: str,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
    ) -> None:
        self.layout, self.device = Layout(network), device
        values = self._values(arrays)
        values["decay"] = decays(self.layout.weights, weight_decay)
        values["rates"] = rate_factors(self.layout.weights, prefix, layer_decay)
        self.tensors = {name: place(a, device) for name, a in values.items()}


def rate_factors(weights: Pieces, prefix: str, layer_decay: float) -> np.ndarray:
    """For every weight the factor of its learning rate: 1 in neck and heads, times `layer_decay`
    for each stage below."""

    def factor(name: str) -> float:
        if not name.startswith(prefix) or name.startswith("backbone.fpn."):
            return 1.0
        own = name.removeprefix(prefix)
        stage = -1 if own.startswith("conv_stem.") else int(own.split(".")[1])
        return layer_decay ** (STAGES - stage)

    return weights.fill(factor)
