"""One training step as one compiled program: forward, gradients, clipping, AdamW.

tinygrad plans a step in time that grows with the square of its size, so the network is handed over
part by part: each part is a `function`, planned by itself and once for all parts that are alike.
What a part computes is kept for its gradient, as the program runs forward and backward only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tinygrad import Tensor
from tinygrad.function import function

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
            output = part(*inputs)
        statistics.extend(found)
        numbers = [number for _, mean, var, _ in found for number in (mean, var)]
        return output.contiguous(), *numbers, *kept

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
