"""The gradients of the dense networks in loop nests are the ones that their libraries measured."""

from dataclasses import replace

import numpy as np
import pytest
from dense_case import ANCHOR_SIZES, SHAPE, furthest, measured, network, objects, picture
from parity import dense_values
from tinygrad import Context, Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.dense.boxes import grid_anchors
from tinygmf.dense.detections import Candidates, proposals
from tinygmf.dense.detector import grids_of
from tinygmf.dense.maskrcnn import flat_proposals
from tinygmf.dense.roi import lookups
from tinygmf.dense.settings import sizes_of_levels
from tinygmf.dense.targets import anchor_targets, roi_targets, rpn_targets
from tinygmf.layers import record_statistics
from tinygmf.tensors import tensor_from_numpy
from tinygmf.training.dense_gradient import GRADIENTS, MaskRCNNGradient, SegmentationGradient
from tinygmf.training.dense_layers import DenseTape
from tinygmf.training.dense_state import DenseState
from tinygmf.training.tape import Map

BATCH, SIZE = SHAPE[0], SHAPE[2:]


class OtherSideTape(DenseTape):
    def conv_module(self, x: Map, name: str, size: int = 3) -> Map:
        self.name = name
        return super().conv_module(x, name, size)

    def relu(self, x: Map) -> Map:
        if self.name == "decode_head.fpn_bottleneck":
            size = x.value.abs()
            tie = size == size.min()
            x = self.linear(x, lambda value: tie.where(size, value), lambda g: g)
        return super().relu(x)


class OtherSide(SegmentationGradient):
    """UPerNet with the one value before a ReLU whose sign rounding decides, 2e-6, above zero, where
    it was when the gradient was measured."""

    def tape(self, *tensors) -> DenseTape:
        tape = super().tape(*tensors)
        known = tape.weights, tape.gradients, tape.statistics, tape.share, tape.factors
        return OtherSideTape(*known)


class Case:
    """A measured network with its state, and the inputs of its gradient."""

    def __init__(self, name, form=None, **settings):
        self.name, self.model = name, network(name, **settings)
        config = self.model.config
        if hasattr(config, "dropout_ratio"):
            config = replace(config, dropout_ratio=0.0)
        arrays = {key: t.numpy() for key, t in get_state_dict(self.model).items()}
        form = form or GRADIENTS[name]
        self.state = DenseState(self.model, arrays, "CPU", form.prefix)
        self.gradient = form(config, self.state.layout)
        blocks = sum(config.backbone.serial_depths)
        ones = np.ones(2, np.float32), np.ones((2 * blocks, BATCH), np.float32)
        self.share, self.pictures, self.factors = map(tensor, (ones[0], picture(), ones[1]))

    def groups(self, part, name):
        return getattr(self.state.layout, part).split_groups(self.state[name])

    def losses(self, *known):
        """The losses, the sum first; the gradient is in the state."""
        names = ("weights", "weights"), ("weights", "gradient"), ("statistics", "statistics")
        flat = [self.groups(*pair) for pair in names]
        inputs = self.share, self.pictures, self.factors
        with Context(SPEC=0):
            found = self.gradient(*flat, self.state["counters"], *inputs, *map(tensor, known))
        return found.numpy()

    def check(self, losses, expected):
        values = dense_values(self.name)
        np.testing.assert_allclose(losses, [values[key][0].item() for key in expected], rtol=2e-5)
        slopes = self.state.layout.weights.split(self.state["gradient"].numpy())
        slopes = {f"grad/{key}": array for key, array in slopes.items()}
        wanted = {key for key in values if key.startswith("grad/")}
        assert wanted and wanted <= slopes.keys()
        largest = max(values[key][1] for key in wanted)
        distances = furthest(self.name, {key: slopes[key] for key in wanted}, 6)
        worst = {key: d * values[key][1] / largest for key, d in distances.items()}
        assert max(worst.values()) < 1e-4, sorted(worst.items(), key=lambda item: -item[1])[:5]


def tensor(array):
    return tensor_from_numpy(np.ascontiguousarray(array), "CPU")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"), [("semantic_fpn", SegmentationGradient), ("upernet", OtherSide)]
)
def test_segmentation(name, form):
    case = Case(name, form)
    kept = np.ones((BATCH, 1, 1, 16), np.float32)
    losses = case.losses(measured()["labels"].astype(np.int32), kept, kept)
    case.check(losses[:2], ["train_loss", "train_loss_decode"])


@pytest.mark.slow
def test_retinanet():
    case = Case("retinanet", anchor_sizes=ANCHOR_SIZES)
    anchors = np.concatenate(anchors_of(case.model, 9, first=1))
    losses = case.losses(*anchor_targets(anchors, objects(), 0.5, 0.4))
    case.check(losses[1:], ["loss/classification", "loss/bbox_regression"])


def anchors_of(model, count, first):
    sizes = sizes_of_levels(model.settings, count)
    return grid_anchors(SIZE, grids_of(SIZE, first), sizes, (0.5, 1, 2))


@pytest.mark.slow
def test_maskrcnn_and_its_proposals():
    sizes = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 50}
    case = Case("maskrcnn", anchor_sizes=ANCHOR_SIZES, **sizes)
    outputs = [array.numpy() for array in first_pass(case.model)]
    proposed = case.gradient.propose(
        case.groups("weights", "weights"),
        [tensor(group.numpy()) for group in case.groups("statistics", "statistics")],
        case.pictures,
        case.factors,
    )
    for found, expected in zip(proposed, outputs, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert isinstance(case.gradient, MaskRCNNGradient)
    levels = anchors_of(case.model, 3, first=0)
    own = [proposed_boxes(case.model, levels, *one) for one in zip(*outputs, strict=True)]
    rpn = rpn_targets(np.concatenate(levels), objects())
    goals = roi_targets(own, objects(), 56, 8)
    boxes = goals.labels.ravel(), goals.deltas.reshape(-1, 4), *samples(goals.boxes, 7)
    masks = goals.mask_labels.ravel(), goals.masks.reshape(-1, 28, 28)
    losses = case.losses(*rpn, *boxes, *masks, *samples(goals.mask_boxes, 14))
    names = "objectness", "rpn_box_reg", "classifier", "box_reg", "mask"
    case.check(losses[1:], [f"loss/loss_{name}" for name in names])


def first_pass(model):
    """The module's own objectness (B, anchors, 1) and deltas (B, anchors, 4) in training."""
    with Context(TRAINING=1), record_statistics():
        parts = flat_proposals(model(Tensor(picture())))
        found = [Tensor.cat(*levels, dim=1).detach().contiguous() for levels in parts]
        Tensor.realize(*found)
    return found[0].unsqueeze(2), found[1]


def proposed_boxes(model, levels, logits, deltas):
    ends = np.cumsum([len(own) for own in levels])[:-1]
    parts = zip(np.split(logits, ends), np.split(deltas, ends), strict=True)
    candidates = [Candidates(np.arange(len(a)), a, b) for a, b in parts]
    return proposals(candidates, levels, SIZE, model.settings, training=True)


def samples(boxes, bins):
    pictures = np.repeat(np.arange(BATCH), boxes.shape[1])
    found = lookups(boxes.reshape(-1, 4), pictures, SIZE, grids_of(SIZE, 0)[:4], bins)
    return [*found.rows, *found.columns]
