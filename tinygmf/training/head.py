"""Training the head alone: the rest of the network answers as it does in inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from tinygrad import Tensor

from tinygmf.checkpoint import load_state_dict
from tinygmf.config import GroupMixFormerConfig
from tinygmf.model import GroupMixFormer
from tinygmf.predictor import Predictor
from tinygmf.program_cache import load_or_compile
from tinygmf.tensors import tensor_from_numpy
from tinygmf.training.state import Layout
from tinygmf.training.step import cross_entropy, update

HEAD = "head."  # what its weights' names begin with


class HeadPrograms:
    """What `Programs` is, for the head alone: `gradient` and `update`, of the same arguments.

    The rest of the network is the folded one of inference: BatchNorm uses its running statistics
    and moves none of them, no branch is dropped, and nothing is computed backward.
    """

    def __init__(
        self, config: GroupMixFormerConfig, batch: int, size: int, device: str, progress: bool
    ) -> None:
        self.config, self.batch, self.size = config, batch, size
        self.device, self.progress = device, progress
        self.layout = Layout(GroupMixFormer(config, seed=None))
        self._rest: Predictor | None = None
        width = config.embedding_dims[-1]
        flat, share = (self.layout.weights.size,), (1,)
        features, targets = (batch, width), (batch, config.num_classes)
        self.head = self._compile("gradient", self._gradient, flat, flat, share, features, targets)
        self.update = self._compile("update", update, *[flat] * 7, (5,))

    def _compile(
        self, what: str, function: Callable[..., Any], *shapes: tuple[int, ...]
    ) -> Callable[..., Any]:
        network, rows = asdict(self.config), (self.batch, self.config.embedding_dims[-1])
        return load_or_compile(
            {"network": network, "input": rows, "program": f"head {what}"},
            function,
            *(tensor_from_numpy(np.zeros(shape, np.float32), self.device) for shape in shapes),
            device=self.device,
            progress=self.progress,
        )

    def gradient(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        """What `GradientProgram` does with the same arguments, but to the gradient of the head
        alone. The weights below it are taken at the first call; they do not change."""
        weights, gradient, statistics, counters, share, pictures, targets, _ = arguments
        if self._rest is None:
            self._rest = self._predictor(weights, statistics, counters)
        features = tensor_from_numpy(self._rest.run(pictures.numpy()), self.device)  # (B, D4)
        return self.head(weights, gradient, share, features, targets)

    def _predictor(self, *flat: Tensor) -> Predictor:
        """The network without its head, with the weights, statistics and counters of the state."""
        layout = self.layout
        arrays: dict[str, np.ndarray] = {}
        for pieces, tensor in zip(
            (layout.weights, layout.statistics, layout.counters), flat, strict=True
        ):
            arrays |= pieces.split(tensor.numpy())
        model = GroupMixFormer(replace(self.config, num_classes=0), seed=None)
        rest = {name: array for name, array in arrays.items() if not name.startswith(HEAD)}
        load_state_dict(model, rest)
        return Predictor(
            model, self.size, batch_size=self.batch, device=self.device, progress=self.progress
        )

    def _gradient(
        self, weights: Tensor, gradient: Tensor, share: Tensor, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = self.layout.weights.split(weights)
        logits = features.linear(parts["head.weight"].T, parts["head.bias"])
        loss = cross_entropy(logits, targets)
        new = loss.gradient(weights)[0]
        Tensor.realize(loss, logits, new)
        gradient.assign(gradient + share[0] * new).realize()
        return loss, logits
