"""The dense networks by name: fresh ones, and those in weight files.

A file's keys and shapes tell which network it holds, its classes, and the width and depth of every
part. What they cannot tell comes from the metadata, or else is the library's default
(`settings.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from tinygrad import Context
from tinygrad.nn.state import get_state_dict

from tinygmf import model as classification
from tinygmf.config import STAGES, VARIANTS, GroupMixFormerConfig, full_name
from tinygmf.dense.maskrcnn import MaskRCNN, MaskRCNNConfig
from tinygmf.dense.retinanet import RetinaNet, RetinaNetConfig
from tinygmf.dense.segmentation import AuxiliaryConfig, SegmentationConfig, SegmentationNetwork
from tinygmf.dense.settings import (
    DenseSettings,
    MaskRCNNSettings,
    RetinaNetSettings,
    SegmentationSettings,
)
from tinygmf.engine.pretrained import pretrained_model
from tinygmf.layers import Module
from tinygmf.model import FeatureNetwork, GroupMixFormer
from tinygmf.weights.checkpoint import build_model, counters, load_state_dict, require_whole
from tinygmf.weights.entries import Found, find_network, find_tensors
from tinygmf.weights.reading import CheckpointError, find_weights, network_file, read_checkpoint

Shapes = Mapping[str, tuple[int, ...]]
Network = GroupMixFormer | SegmentationNetwork | RetinaNet | MaskRCNN
MOST_BINS = 64  # of UPerNet's pooling: a file must not claim unlimited memory
BODY = {False: "backbone.", True: "backbone.body."}  # of segmentation, of detection


class Kind(NamedTuple):
    """A dense network: the class that builds it, what configures it, the library's default width
    and number of classes, and a key that no other network has."""

    network: Any
    config: Any
    settings: type[DenseSettings]
    channels: int
    classes: int
    mark: str


SEGMENTATION = SegmentationNetwork, SegmentationConfig, SegmentationSettings
DETECTION = RetinaNet, RetinaNetConfig, RetinaNetSettings
INSTANCES = MaskRCNN, MaskRCNNConfig, MaskRCNNSettings
KINDS = {
    "upernet": Kind(*SEGMENTATION, 512, 150, "decode_head.psp_modules.0.1.conv.weight"),
    "semantic_fpn": Kind(*SEGMENTATION, 128, 150, "decode_head.scale_heads.0.0.conv.weight"),
    "retinanet": Kind(*DETECTION, 256, 91, "head.classification_head.cls_logits.weight"),
    "maskrcnn": Kind(*INSTANCES, 256, 91, "roi_heads.mask_predictor.mask_fcn_logits.weight"),
}


def list_models() -> list[str]:
    """The names that `create_model` takes: classification, smallest first, then the dense ones."""
    return [*classification.list_models(), *KINDS]


def create_model(
    name: str,
    num_classes: int | None = None,
    seed: int = 0,
    *,
    backbone: str | os.PathLike[str] | GroupMixFormerConfig | GroupMixFormer | None = None,
    pretrained: bool | str | os.PathLike[str] = False,
    features_only: bool = False,
    out_indices: Sequence[int] = range(STAGES),
    **changes: Any,
) -> Any:
    """A fresh network, the same for the same `seed`; or with `pretrained` weights, those of a file
    or, if True, the published ones (`engine.pretrained`). With `features_only` it returns the maps
    of the stages in `out_indices`, 0 to 3; with `in_chans=1` it takes grey pictures.

    `name` is one of `list_models()`. A dense network is built on `backbone`: a listed name or a
    configuration (fresh weights), or a network of any task or the file of one (its backbone's
    weights); the default is a fresh nano. Its heads are initialized as in their libraries and, if
    `num_classes` is None, have the libraries' number of classes; a detector's include the
    background. `changes` replace fields of the configuration, or of a dense network's settings
    (`score_thresh=0.3`). Raises ValueError, in one line, for an unknown name or an impossible
    combination; CheckpointError for a file that cannot be used.
    """
    if name in KINDS:
        if features_only or pretrained is not False:
            raise ValueError(
                f"model {name!r}: expected a classification network for pretrained and "
                "features_only: give a dense one its trained backbone"
            )
        return _dense_network(name, num_classes, seed, backbone, changes)
    if backbone is not None:
        raise ValueError(f"model {name!r}: expected one of {', '.join(KINDS)} on a backbone")
    if pretrained is not False:
        model = pretrained_model(name, pretrained, num_classes, seed, **changes)
    else:
        classes = 1000 if num_classes is None else num_classes
        model = classification.create_model(name, classes, seed, **changes)
    return FeatureNetwork(model, out_indices) if features_only else model


def _dense_network(
    name: str, num_classes: int | None, seed: int, backbone: Any, changes: Mapping[str, Any]
) -> Any:
    """A fresh network of `KINDS` on a backbone, as `create_model` describes it."""
    kind, source = KINDS[name], _backbone(backbone)
    own = source if isinstance(source, GroupMixFormerConfig) else body_of(source).config
    known = {f.name for f in fields(kind.config)} - {"backbone", "num_classes", "head"}
    parts = {"channels": kind.channels} | {k: v for k, v in changes.items() if k in known}
    rest = {k: v for k, v in changes.items() if k not in known}
    if kind.config is SegmentationConfig:
        parts["head"] = name
    if kind.config is RetinaNetConfig:
        parts.setdefault("p6_channels", parts["channels"])
    classes = kind.classes if num_classes is None else num_classes
    if classes < 1:
        raise ValueError(f"num_classes: expected at least 1, found {classes}")
    config = kind.config(backbone=replace(own, num_classes=0), num_classes=classes, **parts)
    network = kind.network(config, seed)
    network.settings = _agreeing(kind.settings().changed(**rest), config)
    if not isinstance(source, GroupMixFormerConfig):
        use_backbone(network, source)
    return network


def _backbone(source: Any) -> Any:
    """The configuration, or the network, that `source` names."""
    if source is None or (isinstance(source, str) and full_name(source) in VARIANTS):
        return VARIANTS[full_name(source or "nano")]
    if isinstance(source, str | os.PathLike):
        if not find_weights(source).exists():
            raise ValueError(
                f"backbone {str(source)!r}: expected one of {', '.join(VARIANTS)} or a weight file"
            )
        source = load_model(source)
    if not isinstance(source, GroupMixFormerConfig | Module):
        raise ValueError(f"backbone: expected a network, or the name of one, found {source!r}")
    return source


def use_backbone(network: Any, model: Any) -> None:
    """Load another network's backbone weights into a dense network; a classification network's
    `norm4` and `head` are left out. Raises CheckpointError if the forms differ."""
    body = body_of(network)
    state = get_state_dict(body_of(model))
    behind = ("norm4.", "head.")
    arrays = {k: t.numpy() for k, t in state.items() if not k.startswith(behind)}
    load_state_dict(body, arrays, "the backbone's weights")


def body_of(network: Any) -> Any:
    """The four stages of a network; a classification network is its own."""
    if isinstance(network, GroupMixFormer):
        return network
    return getattr(network.backbone, "body", network.backbone)


def _agreeing(settings: DenseSettings, config: Any) -> DenseSettings:
    """The settings, taking the configuration's value for whatever is in both."""
    if isinstance(settings, SegmentationSettings):
        return settings.changed(pool_scales=config.pool_scales, dropout_ratio=config.dropout_ratio)
    return settings


def load_model(
    path: str | os.PathLike[str],
    device: str | None = None,
    entry: str | None = None,
    **changes: Any,
) -> Any:
    """Return the network in a weight file, classification or dense; its configuration is inferred
    from keys and shapes.

    `device` is the tinygrad device of its weights; None is the default device. `entry` names one of
    several classification networks in the file (`weights.checkpoint.load_weights`). `changes`
    replace settings of a dense network, whether or not the file has them.

    Raises:
        CheckpointError: the file cannot be read or is no such network.
    """
    checkpoint = read_checkpoint(network_file(path), partial(find_any, entry=entry))
    tensors, metadata, _ = checkpoint
    shapes = {key: array.shape for key, array in tensors.items()}
    name = kind_of(shapes)
    if name is None:
        if changes:
            raise ValueError(f"{path}: expected a dense network for {', '.join(changes)}")
        return build_model(checkpoint, path, device)
    kind = KINDS[name]
    try:
        settings = kind.settings.from_json(metadata).changed(**changes)
        config = configuration(name, shapes, settings)
        require_whole(config.backbone, shapes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with Context(DEV=device) if device else nullcontext():
        network = kind.network(config, seed=None)
        state = get_state_dict(network).items()
        lacking = {k: tuple(map(int, t.shape)) for k, t in state if k not in tensors}
        load_state_dict(network, tensors | counters(lacking), str(path))
    network.settings = _agreeing(settings, config)
    return network


def find_any(tree: Any, entry: str | None) -> Found:
    """The tensors of the dense network in a file's containers; if there is none, or `entry` names a
    part of the file, what `find_network` finds."""
    if entry is None:
        with suppress(ValueError):  # no tensors by name, or one twice
            found = find_tensors(tree)
            if kind_of({key: note.shape for key, note in found.notes.items()}):
                return found
    return find_network(tree, entry)


# From keys and shapes to configurations


def kind_of_network(network: Module) -> str | None:
    """Which dense network this is; None for a classification network."""
    return kind_of({name: tensor.shape for name, tensor in get_state_dict(network).items()})


def kind_of(shapes: Shapes) -> str | None:
    """Which dense network has these keys; None for any other."""
    return next((name for name, kind in KINDS.items() if kind.mark in shapes), None)


def configuration(name: str, shapes: Shapes, settings: Any) -> Any:
    """The configuration of the dense network of this name that has these tensors.

    Raises ValueError, in one line, if a tensor is missing.
    """
    prefix = BODY[KINDS[name].config is not SegmentationConfig]
    body = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
    backbone = GroupMixFormerConfig.from_state_dict(body)
    infer: Any = {"retinanet": _retinanet, "maskrcnn": _maskrcnn}.get(name, _segmentation)
    try:
        return infer(name, shapes, backbone, settings)
    except (KeyError, IndexError) as missing:
        raise ValueError(f"not a complete {name}: it has no tensor {missing}") from None


def number(shapes: Shapes, key: str) -> int:
    """How many of the keys with 0, 1, … for `{}` there are, without a gap."""
    return next(i for i in count() if key.format(i) not in shapes)


def _segmentation(
    name: str, shapes: Shapes, backbone: GroupMixFormerConfig, settings: SegmentationSettings
) -> SegmentationConfig:
    classes, channels = shapes["decode_head.conv_seg.weight"][:2]
    scales = settings.pool_scales
    if name == "upernet":
        if not all(type(bins) is int and bins <= MOST_BINS for bins in scales):
            raise ValueError(f"pool_scales: expected whole numbers to {MOST_BINS}, found {scales}")
        found = number(shapes, "decode_head.psp_modules.{}.1.conv.weight")
        if len(scales) != found:
            raise ValueError(
                f"pool_scales: the file has {found} but does not say their sizes; "
                f"expected as many, found {scales}; give pool_scales"
            )
    neck = shapes["neck.fpn_convs.0.conv.weight"][0] if name == "semantic_fpn" else 256
    return SegmentationConfig(
        name,
        backbone,
        classes,
        channels,
        neck_channels=neck,
        pool_scales=scales,
        auxiliary=_auxiliary(shapes),
        dropout_ratio=settings.dropout_ratio,
    )


def _auxiliary(shapes: Shapes) -> AuxiliaryConfig | None:
    if "auxiliary_head.conv_seg.weight" not in shapes:
        return None
    channels, _, kernel, _ = shapes["auxiliary_head.convs.0.conv.weight"]
    convs = number(shapes, "auxiliary_head.convs.{}.conv.weight")
    return AuxiliaryConfig(channels, convs, kernel, "auxiliary_head.conv_cat.conv.weight" in shapes)


def _retinanet(
    name: str, shapes: Shapes, backbone: GroupMixFormerConfig, settings: RetinaNetSettings
) -> RetinaNetConfig:
    anchors = shapes["head.regression_head.bbox_reg.weight"][0] // 4
    channels = shapes["backbone.fpn.layer_blocks.0.0.weight"][0]
    if not anchors:
        raise ValueError("not a complete retinanet: its bbox_reg has no anchor")
    return RetinaNetConfig(
        backbone,
        shapes["head.classification_head.cls_logits.weight"][0] // anchors,
        channels,
        num_anchors=anchors,
        num_convs=number(shapes, "head.classification_head.conv.{}.0.weight"),
        p6_channels=shapes["backbone.fpn.extra_blocks.p6.weight"][1],
    )


def _maskrcnn(
    name: str, shapes: Shapes, backbone: GroupMixFormerConfig, settings: MaskRCNNSettings
) -> MaskRCNNConfig:
    heads = "roi_heads"
    representation, inputs = shapes[f"{heads}.box_head.fc6.weight"]
    channels = shapes["backbone.fpn.layer_blocks.0.0.weight"][0]
    masks = number(shapes, heads + ".mask_head.{}.0.weight")
    return MaskRCNNConfig(
        backbone,
        shapes[f"{heads}.box_predictor.cls_score.weight"][0],
        channels,
        num_anchors=shapes["rpn.head.cls_logits.weight"][0],
        rpn_convs=number(shapes, "rpn.head.conv.{}.0.weight"),
        box_bins=round((inputs // channels) ** 0.5),
        representation=representation,
        mask_channels=tuple(shapes[f"{heads}.mask_head.{i}.0.weight"][0] for i in range(masks)),
        mask_reduced=shapes[f"{heads}.mask_predictor.conv5_mask.weight"][1],
    )
