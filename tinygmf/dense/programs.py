"""Compiled programs of the dense networks: loaded or compiled once, launched again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tinygrad import Tensor

from tinygmf.engine import program_cache
from tinygmf.engine.launcher import Launcher
from tinygmf.tensors import tensor_from_numpy, write_tensor

Array = np.ndarray
Outputs = list[Tensor]


class Program:
    """A function of device tensors, some inputs of a fixed shape, and weights.

    function(*fixed, input or list of inputs, weights) -> a tensor or a tuple of tensors. `inputs`
    are examples with the shapes and types of the real ones; `fixed` tensors, outputs of another
    program, are read in place. The next run overwrites the outputs. `key` names whatever else the
    program depends on.
    """

    def __init__(
        self,
        key: Mapping[str, Any],
        function: Callable[..., Any],
        inputs: Array | list[Array],
        weights: list[Tensor],
        *fixed: Tensor,
        device: str,
        progress: bool,
    ) -> None:
        many = isinstance(inputs, list)
        arrays: list[Array] = inputs if isinstance(inputs, list) else [inputs]
        self.inputs = [tensor_from_numpy(array, device) for array in arrays]
        arguments = (*fixed, self.inputs if many else self.inputs[0], weights)
        shapes = [list(array.shape) for array in arrays]
        program = program_cache.load_or_compile(
            {**key, "inputs": shapes}, function, *arguments, device=device, progress=progress
        )
        self.launch = Launcher(program, *arguments)

    def __call__(self, *inputs: Array) -> Outputs:
        for tensor, array in zip(self.inputs, inputs, strict=True):
            write_tensor(tensor, array)
        found = self.launch()
        return [found] if isinstance(found, Tensor) else list(found)
