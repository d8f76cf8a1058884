"""One training step as one compiled program: forward, gradients, clipping, AdamW.

tinygrad plans a step in time that grows with the square of its size, so the network is handed over
part by part: each part is a `function`, planned by itself and once for all parts that are alike.
What a part computes is kept for its gradient, as the program runs forward and backward only once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinygrad import Context, Tensor
from tinygrad.function import function
from tinygrad.nn.state import get_state_dict

from tinygmf.config import GroupMixFormerConfig
from tinygmf.gma import to_map
from tinygmf.layers import (
    BatchNorm,
    Conv2d,
    LayerNorm,
    Linear,
    Module,
    Statistics,
    record,
    record_statistics,
)
from tinygmf.model import GroupMixFormer
from tinygmf.training.state import Layout, bind, norms

KEPT = Linear, Conv2d, LayerNorm, BatchNorm


def run_part(
    part: Callable[..., Tensor], modules: list[Module], *inputs: Tensor
) -> tuple[Tensor, Statistics]:
    """`part(*inputs)`, whose weights are those of `modules`, and its BatchNorms' statistics."""
    statistics: Statistics = []

    def body(modules: list[Module], *inputs: Tensor) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []

        def keep(module: Module, output: Any) -> Tensor | None:
            if not isinstance(module, KEPT):
                return None
            kept.append(output.contiguous())
            return kept[-1]

        with record(keep), record_statistics() as found:
            output = part(*inputs).contiguous()
        statistics.extend(found)
        numbers = [number for _, mean, var, _ in found for number in (mean, var)]
        return output, *numbers, *(value for value in kept if value.uop is not output.uop)

    output, *rest = function(body, precompile=True, precompile_backward=True)(modules, *inputs)
    numbers = iter(rest)
    return output, [(norm, next(numbers), next(numbers), n) for norm, _, _, n in statistics]


def run_network(model: GroupMixFormer, pictures: Tensor) -> tuple[Tensor, Statistics]:
    """The logits (B, num_classes), part by part, and the statistics of every BatchNorm."""
    statistics: Statistics = []

    def run(part: Callable[..., Tensor], modules: list[Module], *inputs: Tensor) -> Tensor:
        output, found = run_part(part, modules, *inputs)
        statistics.extend(found)
        return output

    x = run(model.conv_stem, [model.conv_stem], pictures)
    for embed, stage in zip(model.patch_embed_layers, model.groupmixformer_backbone, strict=True):
        size = tuple(-(-int(s) // embed.proj.conv1.stride) for s in x.shape[2:])
        x = run(lambda x, embed=embed: embed(x)[0], [embed], x)
        for block in stage.gma_stage:
            x = run(lambda x, block=block, size=size: block(x, size), [block], x)
        x = to_map(x, size)
    last = [module for module in (model.norm4, model.head) if module is not None]
    return run(model.forward_head, last, x), statistics


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch; logits and targets (B, classes), where each row of targets sums to 1."""
    return -(logits.log_softmax() * targets).sum(1).mean()


class Step:
    """The step of one architecture as a function of nothing but tensors, ready to be compiled.

    Calling it runs a step in place on the flat tensors of a `TrainingState` and returns the loss,
    the norm of the gradient before clipping and the logits.
    """

    BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

    def __init__(self, config: GroupMixFormerConfig, clip: float) -> None:
        self.model, self.clip = GroupMixFormer(config, seed=None), clip
        self.layout = Layout.of(self.model)
        self.norms = norms(self.model)

    def __call__(
        self,
        weights: Tensor,
        first: Tensor,
        second: Tensor,
        statistics: Tensor,
        counters: Tensor,
        decay: Tensor,
        rate: Tensor,
        pictures: Tensor,
        targets: Tensor,
        schedule: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        bind(self.model, self.layout, weights, statistics, counters)
        with Context(TRAINING=1):
            logits, found = run_network(self.model, pictures)
            loss, logits = cross_entropy(logits, targets), logits + 0.0
            gradient = self.gradient(loss)
        batch = self.batch_statistics(found)
        Tensor.realize(loss, logits, gradient, batch)

        norm = gradient.square().sum().sqrt().contiguous()
        gradient = gradient * (self.clip / (norm + 1e-6)).minimum(1)
        learning_rate, correction1, correction2 = schedule[0], schedule[1], schedule[2]
        first.assign(self.BETA1 * first + (1 - self.BETA1) * gradient)
        second.assign(self.BETA2 * second + (1 - self.BETA2) * gradient.square())
        direction = first * correction1 / ((second * correction2).sqrt() + self.EPS)
        weights.assign(weights - learning_rate * rate * (direction + decay * weights))
        statistics.assign(0.9 * statistics + 0.1 * batch)
        counters.assign(counters + 1)
        Tensor.realize(norm, first, second, weights, statistics, counters)
        return loss, norm, logits

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of the flat weights. Parts are gathered first: one kernel that picks from
        every tensor of the network would be slow."""
        state = get_state_dict(self.model)
        names = list(self.layout.weights)
        gradients = loss.gradient(*(state[name] for name in names))
        flat = [gradient.flatten() for gradient in gradients]
        groups = [Tensor.cat(*flat[i : i + 32]).contiguous() for i in range(0, len(flat), 32)]
        return Tensor.cat(*groups).contiguous()

    def batch_statistics(self, found: Statistics) -> Tensor:
        """What the batch adds to the flat statistics: means, and unbiased variances."""
        numbers = {}
        names = {id(norm): name for name, norm in self.norms.items()}
        for norm, mean, var, count in found:
            numbers[f"{names[id(norm)]}.running_mean"] = mean
            numbers[f"{names[id(norm)]}.running_var"] = var * (count / max(count - 1, 1))
        return Tensor.cat(*(numbers[name] for name in self.layout.statistics)).contiguous()


class Evaluation:
    """The network in evaluation mode as a function of nothing but tensors: logits (B, classes)."""

    def __init__(self, config: GroupMixFormerConfig) -> None:
        self.model = GroupMixFormer(config, seed=None)
        self.layout = Layout.of(self.model)

    def __call__(
        self, weights: Tensor, statistics: Tensor, counters: Tensor, pictures: Tensor
    ) -> Tensor:
        bind(self.model, self.layout, weights, statistics, counters)
        return (run_network(self.model, pictures)[0] + 0.0).realize()
