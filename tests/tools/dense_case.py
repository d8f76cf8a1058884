"""The dense networks of the measurements: the nano backbone under heads of width 16, 5 classes."""

from functools import cache
from typing import Any

import numpy as np
from parity import (
    DATA,
    dense_manifest,
    dense_values,
    deterministic_state_dict,
    parity_input,
    sampled,
)

from tinygmf.dense.networks import KINDS, configuration
from tinygmf.dense.targets import Objects
from tinygmf.weights.checkpoint import load_state_dict

SHAPE, SEED = (2, 3, 96, 128), 11
ANCHOR_SIZES = (16, 32, 64, 128, 256)
THRESHOLDS = {
    "retinanet": {
        "score_thresh": 0.3,
        "nms_thresh": 0.5,
        "detections_per_img": 50,
        "topk_candidates": 200,
    },
    "maskrcnn": {
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 50,
        "rpn_nms_thresh": 0.7,
        "box_score_thresh": 0.2,
        "box_nms_thresh": 0.5,
        "box_detections_per_img": 20,
    },
}


def state_dict(name: str) -> dict[str, np.ndarray]:
    return deterministic_state_dict(dense_manifest()[name]["state_dict"])


def network(name: str, **settings: Any) -> Any:
    """The measured network, from its library's keys and shapes."""
    tensors, kind = state_dict(name), KINDS[name]
    shapes = {key: array.shape for key, array in tensors.items()}
    own = kind.settings().changed(**settings)
    model = kind.network(configuration(name, shapes, own), seed=None)
    load_state_dict(model, tensors)
    model.settings = own
    return model


def picture() -> np.ndarray:
    return parity_input(SEED, SHAPE)


@cache
def measured() -> dict[str, np.ndarray]:
    """Detections, targets and labels, under the names of the measurement."""
    with np.load(DATA / "dense.npz") as arrays:
        return {k: v for k, v in arrays.items() if not k.endswith("/values")}


def objects() -> list[Objects]:
    """The targets of the measured losses."""
    names = ("boxes", "labels", "masks")
    return [Objects(*(measured()[f"target{i}/{name}"] for name in names)) for i in range(2)]


def furthest(name: str, found: dict[str, np.ndarray], most: int = 200) -> dict[str, float]:
    """How far each found array is from what was measured, in parts of the largest value."""
    values = dense_values(name)
    return {
        key: float(abs(sampled(array, most) - values[key][0]).max() / values[key][1])
        for key, array in found.items()
    }
