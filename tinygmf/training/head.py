"""Training the head alone: the rest of the network runs as it does in inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tinygrad import Tensor

from tinygmf.config import GroupMixFormerConfig
from tinygmf.engine.predictor import Predictor
from tinygmf.engine.program_cache import program_key
from tinygmf.tensors import read_tensor
from tinygmf.training.gradient import cross_entropy
from tinygmf.training.programs import Input, Update, bind
from tinygmf.training.state import Devices, TrainingState
from tinygmf.weights.checkpoint import NetworkWeights

HEAD = "head."  # the prefix of its weights' names


class HeadPrograms:
    """`Programs` for the head alone, on one device.

    The rest is the folded network of inference: BatchNorm uses its running statistics and leaves
    them as they are, no branch is dropped, and there is no backward pass. Its weights are read at
    the first step and never change.
    """

    def __init__(
        self,
        config: GroupMixFormerConfig,
        state: TrainingState,
        batch: int,
        size: int,
        device: Devices,
        progress: bool,
        dtype: str = "float32",
    ) -> None:
        if not isinstance(device, str):
            raise ValueError(f"--head-only: expected one device, found {', '.join(device)}")
        self.config, self.state = config, state
        self.batch, self.size, self.device, self.progress = batch, size, device, progress
        self.dtype = dtype
        self._rest: Predictor | None = None
        features = batch, config.embedding_dims[-1]
        key = program_key(config, features)
        shapes = (2,), features, (batch, config.num_classes)
        self.inputs = [Input(shape, device) for shape in shapes]
        names = "weights", "gradient"
        self._gradient = bind(
            key | {"program": "head gradient"},
            self._compute,
            lambda state: [*(state[n] for n in names), *(x.tensor for x in self.inputs)],
            state,
            progress,
        )
        self.update = Update(key, state, progress)

    def gradient(
        self,
        share: float,
        pictures: np.ndarray,
        targets: np.ndarray,
        factors: np.ndarray,
        scale: float = 1.0,
    ) -> float:
        """As `Programs.gradient`, for the gradient of the head alone."""
        if self._rest is None:
            self._rest = self._predictor()
        shares = np.array([share, 1], np.float32)
        arrays = shares, self._rest.run(pictures), targets
        for tensor, array in zip(self.inputs, arrays, strict=True):
            tensor.write(array)
        return float(read_tensor(self._gradient()[0]))

    def _predictor(self) -> Predictor:
        """The state's network without its head."""
        arrays = self.state.network().items()
        rest = {name: array for name, array in arrays if not name.startswith(HEAD)}
        return Predictor(
            NetworkWeights(replace(self.config, num_classes=0), rest),
            self.size,
            batch_size=self.batch,
            dtype=self.dtype,
            device=self.device,
            progress=self.progress,
        )

    def _compute(
        self, weights: Tensor, gradient: Tensor, share: Tensor, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = self.state.layout.weights.split(weights)
        logits = features.linear(parts["head.weight"].T, parts["head.bias"])
        loss = cross_entropy(logits, targets)
        new = loss.gradient(weights)[0]
        Tensor.realize(loss, logits, new)
        gradient.assign(gradient + share[0] * new).realize()
        return loss, logits
