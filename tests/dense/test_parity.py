"""Proof that the dense networks are their libraries': every measured map, logit and detection."""

import numpy as np
import pytest
from dense_case import ANCHOR_SIZES, THRESHOLDS, furthest, measured, network, picture
from parity import dense_values, sampled
from tinygrad import Tensor

from tinygmf import Detector, Segmenter
from tinygmf.dense.boxes import grid_anchors
from tinygmf.dense.detector import grids_of
from tinygmf.dense.settings import sizes_of_levels

pytestmark = pytest.mark.usefixtures("backbones_in_loop_nests")

STAGES = ("stage1", "stage2", "stage3", "stage4")


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    Tensor.realize(*tensors.values())
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def segmentation_maps(name):
    model = network(name)
    maps = model.backbone(Tensor(picture()))
    found = dict(zip(STAGES, maps, strict=True))
    if model.neck is not None:
        found |= {f"fpn{i}": level for i, level in enumerate(model.neck(maps))}
    return found | {"logits": model.decode(maps), "auxiliary": model.auxiliary(maps)}


def retinanet_maps(name):
    model = network(name)
    levels = model.backbone(Tensor(picture()))
    names = ("fpn/1", "fpn/2", "fpn/3", "fpn/p6", "fpn/p7")
    return dict(zip(names, levels, strict=True)) | model.head(levels)


def maskrcnn_maps(name):
    found = network(name)(Tensor(picture()))
    names = ("fpn/0", "fpn/1", "fpn/2", "fpn/3", "fpn/pool")
    levels = dict(zip(names, found["pyramid"], strict=True))
    for part in ("objectness", "deltas"):
        levels |= {f"rpn{i}/{part}": level for i, level in enumerate(found[part])}
    return levels


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("upernet", segmentation_maps),
        ("semantic_fpn", segmentation_maps),
        ("retinanet", retinanet_maps),
        ("maskrcnn", maskrcnn_maps),
    ],
)
def test_every_map_and_logit_is_the_measured_one(name, maps):
    distances = furthest(name, arrays(maps(name)))
    assert max(distances.values()) < 1e-5, distances


def test_the_anchors_are_the_measured_ones():
    model = network("retinanet", anchor_sizes=ANCHOR_SIZES)
    sizes = sizes_of_levels(model.settings, model.config.num_anchors)
    found = np.concatenate(grid_anchors((96, 128), grids_of((96, 128), 1), sizes, (0.5, 1, 2)))
    assert found.shape == (2313, 4)
    assert (sampled(found, 200) == dense_values("retinanet")["anchors"][0]).all()


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn"])
def test_every_pixel_has_the_measured_class(name):
    found = Segmenter(network(name), device="CPU", progress=False).run(picture())
    assert found.shape == (2, 96, 128)
    assert (sampled(found, 1500) == measured()[f"{name}/full_argmax"]).all()


@pytest.mark.parametrize("name", ["retinanet", "maskrcnn"])
def test_the_detections_are_the_measured_ones_in_their_order(name):
    detect = Detector(
        network(name), anchor_sizes=ANCHOR_SIZES, device="CPU", progress=False, **THRESHOLDS[name]
    )
    for i, found in enumerate(detect.run(picture())):
        expected = {
            key: measured()[f"{name}/detection{i}/{key}"] for key in ("boxes", "scores", "labels")
        }
        assert (found.labels == expected["labels"]).all()
        assert abs(found.boxes - expected["boxes"]).max() < 1e-4 * 128
        assert abs(found.scores - expected["scores"]).max() < 1e-5
        if found.masks is not None:
            masks = np.packbits(found.masks)
            assert (masks == measured()[f"{name}/detection{i}/masks"]).all()
