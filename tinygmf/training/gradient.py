"""The gradient of a batch, by tinygrad's autograd: for any device and any ablation.

The time tinygrad takes to schedule a step grows with the square of its size, so it gets the network
part by part: each part is a `function`, scheduled on its own, and once for all identical parts.
Intermediate results are kept for the backward pass rather than computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tinygrad import Context, Tensor, dtypes
from tinygrad.dtype import DType
from tinygrad.function import function
from tinygrad.nn.state import get_state_dict

from tinygmf.config import GroupMixFormerConfig
from tinygmf.gma import Size
from tinygmf.layers import (
    GELU,
    BatchNorm,
    Conv2d,
    Hardswish,
    LayerNorm,
    Linear,
    Module,
    Statistics,
    branch_factors,
    record,
    record_statistics,
    run_parts,
)
from tinygmf.model import GMABlock, GroupMixFormer
from tinygmf.training.state import Layout

NORMS = LayerNorm, BatchNorm
KEPT = Linear, Conv2d, LayerNorm, BatchNorm, GELU, Hardswish


def compile_part(
    part: Callable[..., Any], modules: Sequence[Module], *inputs: Tensor
) -> tuple[Any, Statistics]:
    """`part(*inputs)` as one `function` with the weights of `modules`, and the statistics of its
    BatchNorms. The part returns a tensor, or a tuple of which only the first item is a tensor."""
    statistics: Statistics = []
    others: list[Any] = []

    def body(modules: Sequence[Module], *inputs: Tensor) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []

        def keep(module: Module, output: Any) -> Tensor | None:
            if not isinstance(module, KEPT):
                return None
            # tinygrad mistakes a parameter of shape (…, …, 4) for an image and reads it as float32.
            flat = output.ndim == 3 and output.shape[-1] == 4
            kept.append((output.flatten() if flat else output).contiguous())
            return kept[-1].reshape(output.shape).contiguous_backward()

        with record(keep), record_statistics() as found:
            result = part(*inputs)
        result, *rest = result if isinstance(result, tuple) else (result,)
        output = result.contiguous()
        others.extend(rest)
        statistics.extend(found)
        numbers = [number for _, mean, var, _ in found for number in (mean, var)]
        return output, *numbers, *(value for value in kept if value.uop is not output.uop)

    output, *rest = function(body, precompile=True, precompile_backward=True)(modules, *inputs)
    numbers = iter(rest)
    found = [(norm, next(numbers), next(numbers), n) for norm, _, _, n in statistics]
    return (output, *others) if others else output, found


def run_network(
    model: GroupMixFormer, pictures: Tensor, factors: Tensor
) -> tuple[Tensor, Statistics]:
    """The logits (B, num_classes), computed part by part, and the statistics of every BatchNorm.

    factors (2 * blocks, B): stochastic depth's, for the attention and the MLP of each block.
    """
    statistics: Statistics = []
    rows = iter(range(int(factors.shape[0])))

    def run(
        part: Callable[..., Any], modules: Sequence[Module], x: Tensor, *size: Size
    ) -> Tensor | tuple[Tensor, Size]:
        branches: list[Tensor] = []
        if isinstance(part, GMABlock):
            pair = next(rows), next(rows)
            if part.drop_path_rate:
                branches = [factors[row].contiguous() for row in pair]

        def with_branches(x: Tensor, *factors: Tensor) -> Any:
            with branch_factors(iter(factors)):
                return part(x, *size)

        output, found = compile_part(with_branches, modules, x, *branches)
        statistics.extend(found)
        return output

    with run_parts(run):
        return model(pictures), statistics


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch; logits and targets (B, classes), where each row of targets sums to 1."""
    return -(logits.log_softmax() * targets).sum(1).mean()


class GradientProgram:
    """Forward and backward pass of one batch, as a function of tensors alone.

    share (2,): the loss is multiplied by `share[1]` before differentiation, so that small gradients
    do not underflow in float16; the result times `share[0]` is added to `gradient`. Updates
    BatchNorm's statistics and counters; returns the loss and the logits (B, classes).

    Maps and products have `dtype`; weights, norms, softmax and loss stay float32.
    """

    def __init__(self, config: GroupMixFormerConfig, dtype: DType = dtypes.float32) -> None:
        self.model, self.dtype = GroupMixFormer(config, seed=None), dtype
        self.layout = Layout(self.model)

    def __call__(
        self,
        weights: Tensor,
        gradient: Tensor,
        statistics: Tensor,
        counters: Tensor,
        share: Tensor,
        pictures: Tensor,
        targets: Tensor,
        factors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self.layout.bind(self.model, weights, statistics, counters)
        masters = self.lower_precision()
        with Context(TRAINING=1):
            logits, found = run_network(self.model, pictures.cast(self.dtype), factors)
            loss = cross_entropy(logits.float(), targets)
            new = self.flat_gradient(loss * share[1], masters)
            batch = self.flat_statistics(found)
        logits = logits.float() + 0.0  # a separate tensor: the part owns its result
        Tensor.realize(loss, logits, new, batch)
        gradient.assign(gradient + share[0] * new)
        statistics.assign(0.9 * statistics + 0.1 * batch)
        counters.assign(counters + 1)
        Tensor.realize(gradient, statistics, counters)
        return loss, logits

    def lower_precision(self) -> dict[str, Tensor]:
        """Cast the weights of products and convolutions; return all weights as they were."""
        state = get_state_dict(self.model)
        masters = {name: Tensor(state[name].uop) for name in self.layout.weights.shapes}
        norms = {id(m): m for _, m in self.model.named_modules() if isinstance(m, NORMS)}
        kept = {id(t) for norm in norms.values() for t in (norm.weight, norm.bias)}
        for name in masters:
            if id(state[name]) not in kept and self.dtype != dtypes.float32:
                state[name].replace(masters[name].cast(self.dtype))
        return masters

    def flat_gradient(self, loss: Tensor, masters: dict[str, Tensor]) -> Tensor:
        """The gradient of all weights."""
        gradients = loss.gradient(*masters.values())
        return self.layout.weights.join_tensors(dict(zip(masters, gradients, strict=True)))

    def flat_statistics(self, found: Statistics) -> Tensor:
        """The batch's means and unbiased variances, in the order of the flat statistics."""
        names = {id(module): name for name, module in self.model.named_modules()}
        numbers = {}
        for norm, mean, var, count in found:
            numbers[f"{names[id(norm)]}.running_mean"] = mean
            numbers[f"{names[id(norm)]}.running_var"] = var * (count / max(count - 1, 1))
        return self.layout.statistics.join_tensors(numbers)


def draw_factors(config: GroupMixFormerConfig, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Stochastic depth's factors for a batch, (2 * blocks, B): 0, or 1 / (1 - rate)."""
    rates = np.repeat([rate for stage in config.drop_path_rates() for rate in stage], 2)[:, None]
    kept = rng.random((len(rates), batch)) >= rates
    return (kept / (1 - rates)).astype(np.float32)
