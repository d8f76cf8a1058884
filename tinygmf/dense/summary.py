"""What a dense network costs, part by part: parameters and FLOPs.

FLOPs are counted as for classification (`study/summary.py`): multiply-adds of convolutions and
linear layers, for one picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.dense.detector import grids_of
from tinygmf.dense.maskrcnn import MASK_BINS, DoublingConv, MaskRCNN
from tinygmf.dense.segmentation import SegmentationNetwork
from tinygmf.layers import Conv2d, Linear, Module, record

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Part(NamedTuple):
    """A part behind the backbone. `flops` are for one picture, or for each of `boxes`."""

    name: str
    parameters: int
    flops: int
    boxes: int = 1


def summarize_heads(model: Any, image_size: tuple[int, int]) -> list[Part]:
    """The parts of a dense network for a picture size (H, W); nothing is computed."""
    sizes = zip(model.config.backbone.embedding_dims, grids_of(image_size, 0, 4), strict=True)
    maps = [Tensor.empty(1, dim, *grid) for dim, grid in sizes]
    if isinstance(model, SegmentationNetwork):
        parts = {"neck": model.neck, "decode head": model.decode_head}
        parts["auxiliary head"] = model.auxiliary_head
        flops = count(lambda: (model.decode(maps), model.auxiliary(maps)))
        return [part(name, [own], flops) for name, own in parts.items() if own is not None]
    first = model.rpn if isinstance(model, MaskRCNN) else model.head
    flops = count(lambda: first(model.backbone.fpn(maps[-model.backbone.stages :])))
    found = [part("pyramid", [model.backbone.fpn], flops)]
    if not isinstance(model, MaskRCNN):
        return [*found, part("head", [first], flops)]
    return [*found, part("proposals", [first], flops), *roi_parts(model)]


def roi_parts(model: MaskRCNN) -> list[Part]:
    """The heads that run on boxes, on as many as the settings allow."""
    heads, config, settings = model.roi_heads, model.config, model.settings
    boxes = Tensor.empty(1, config.channels, config.box_bins, config.box_bins)
    masks = Tensor.empty(1, config.channels, MASK_BINS, MASK_BINS)
    flops = count(lambda: (heads.box(boxes), heads.mask(masks)))
    box = [heads.box_head, heads.box_predictor]
    mask = [*heads.mask_head, heads.mask_predictor]
    return [
        part("box head", box, flops, settings.rpn_post_nms_top_n_test),
        part("mask head", mask, flops, settings.box_detections_per_img),
    ]


def count(run: Any) -> Counter[int]:
    """Multiply-adds of every layer that runs, by its id."""
    flops: Counter[int] = Counter()

    def note(module: Module, output: Any) -> None:
        if isinstance(module, DoublingConv):
            flops[id(module)] += math.prod(output.shape) * int(module.weight.shape[0])
        elif isinstance(module, Conv2d):
            flops[id(module)] += math.prod(output.shape) * math.prod(module.weight.shape[1:])
        elif isinstance(module, Linear):
            flops[id(module)] += math.prod(output.shape) * int(module.weight.shape[1])

    with record(note):
        run()
    return flops


def part(name: str, modules: Iterable[Module], flops: Counter[int], boxes: int = 1) -> Part:
    parameters = cost = 0
    for module in modules:
        state = get_state_dict(module).items()
        parameters += sum(math.prod(t.shape) for k, t in state if not k.endswith(STATISTICS))
        cost += flops[id(module)] + sum(flops[id(below)] for _, below in module.named_modules())
    return Part(name, parameters, cost, boxes)


def format_heads(model: Any, image_size: tuple[int, int]) -> str:
    """The lines that `tinygmf info` adds to those of the backbone."""
    lines = []
    for own in summarize_heads(model, image_size):
        giga = f"{own.flops * own.boxes / 1e9:.3f} G"
        times = f" for {own.boxes} boxes" if own.boxes > 1 else ""
        lines.append(f"{own.name:14} {own.parameters:>12,} parameters {giga:>10} FLOPs{times}")
    return "\n".join(lines)
