"""The losses by hand; and losses and gradients of whole networks against the measured ones."""

import numpy as np
import pytest
from dense_case import ANCHOR_SIZES, furthest, measured, network, objects, picture
from parity import dense_values
from tinygrad import Context, Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf.dense import roi
from tinygmf.dense.boxes import grid_anchors
from tinygmf.dense.detections import Candidates, proposals
from tinygmf.dense.detector import grids_of
from tinygmf.dense.losses import (
    box_losses,
    focal,
    mask_loss,
    retinanet_losses,
    rpn_losses,
    segmentation_loss,
)
from tinygmf.dense.maskrcnn import flat_proposals
from tinygmf.dense.settings import sizes_of_levels
from tinygmf.dense.targets import (
    Objects,
    Sampling,
    anchor_targets,
    roi_targets,
    rpn_targets,
)
from tinygmf.layers import Module, record, record_statistics

NOTHING = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 96, 128)))
SIZE = (96, 128)


def test_the_segmentation_loss_is_a_mean_over_labeled_pixels_alone():
    logits = np.zeros((1, 3, 2, 2), np.float32)
    logits[0, 1, 0, 0] = 2.0
    labels = np.array([[[1, 255], [0, 255]]], np.int32)
    expected = (-2 + np.log(np.exp(2) + 2) + np.log(3)) / 2
    found = segmentation_loss(Tensor(logits), Tensor(labels)).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_segmentation_loss_of_ignored_pixels_alone_is_zero():
    labels = Tensor(np.full((1, 4, 4), 255, np.int32))
    assert segmentation_loss(Tensor.ones(1, 3, 2, 2), labels).item() == 0


def test_the_focal_loss_is_the_article_s():
    logits, targets = np.array([-3.0, 0.0, 2.0], np.float32), np.array([1.0, 0.0, 1.0], np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    right = np.where(targets == 1, p, 1 - p)
    expected = np.where(targets == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
    assert np.allclose(focal(Tensor(logits), Tensor(targets)).numpy(), expected, rtol=1e-5)


def test_no_object_at_all_gives_finite_losses_and_none_for_boxes():
    anchors = np.array([[0, 0, 8, 8], [4, 4, 20, 20]], np.float32)
    goals = anchor_targets(anchors, [NOTHING], 0.5, 0.4)
    assert (goals.classes == -1).all()
    outputs = {"cls_logits": Tensor.zeros(1, 2, 3), "bbox_regression": Tensor.ones(1, 2, 4)}
    found = retinanet_losses(outputs, *map(Tensor, goals))
    assert found["bbox_regression"].item() == 0
    assert found["classification"].item() == pytest.approx(6 * 0.75 * 0.25 * np.log(2), rel=1e-5)
    rois = roi_targets([anchors], [NOTHING], 4, 2)
    assert rois.labels.tolist() == [[0, 0, -1, -1]]
    assert (rois.mask_labels == -1).all()
    masks = map(Tensor, (rois.mask_labels[0], rois.masks[0]))
    assert mask_loss(Tensor.ones(2, 3, 28, 28), *masks).item() == 0


def test_all_anchors_between_the_thresholds_give_no_loss():
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    own = Objects(np.array([[0, 0, 10, 22], [0, 0, 10, 10]], np.float32), np.array([1, 2]))
    goals = anchor_targets(anchors, [own], 0.5, 0.4)
    assert goals.classes.tolist() == [[2]]  # each object keeps its best anchor
    ignored = Tensor(np.array([[-2]], np.int32))
    outputs = {"cls_logits": Tensor.ones(1, 1, 3), "bbox_regression": Tensor.ones(1, 1, 4)}
    found = retinanet_losses(outputs, ignored, Tensor.zeros(1, 1, 4))
    assert [loss.item() for loss in found.values()] == [0, 0]


def test_sampling_takes_at_most_its_part_of_positives_and_fills_up_with_negatives():
    labels = np.array([1] * 10 + [0] * 20 + [-1] * 5)
    chosen = Sampling(8, 0.25, np.random.default_rng(0)).choose(labels)
    assert [chosen[:10].sum(), chosen[10:30].sum(), chosen[30:].sum()] == [2, 6, 0]
    few = Sampling(100, 0.5, np.random.default_rng(0)).choose(labels)
    assert few.sum() == 30


def gradients(name, model, losses, weights=None):
    """The losses, and the gradient of their sum for every measured parameter."""
    total = sum(loss * (weights or {}).get(key, 1) for key, loss in losses.items())
    measured_ones = {key for key in dense_values(name) if key.startswith("grad/")}
    state = {f"grad/{key}": tensor for key, tensor in get_state_dict(model).items()}
    state = {key: tensor for key, tensor in state.items() if key in measured_ones}
    assert state.keys() == measured_ones
    total.backward()
    Tensor.realize(*losses.values(), *(tensor.grad for tensor in state.values()))
    found = {key: loss.item() for key, loss in losses.items()}
    return found, {key: tensor.grad.numpy() for key, tensor in state.items()}


def check(name, found, expected, tolerance=1e-4):
    """Losses, and gradients within parts of the largest gradient of the network."""
    losses, slopes = found
    values = dense_values(name)
    for key, loss in losses.items():
        assert loss == pytest.approx(values[expected[key]][0].item(), rel=1e-5), key
    largest = max(value[1] for key, value in values.items() if key.startswith("grad/"))
    distances = furthest(name, slopes, 6)
    worst = {key: d * values[key][1] / largest for key, d in distances.items()}
    assert max(worst.values()) < tolerance, sorted(worst.items(), key=lambda item: -item[1])[:5]


class OtherSide(Module):
    """UPerNet's last ConvModule, with one activation brought to the other side of zero.

    Where the gradient was measured, rounding had put the activation of channel 12 that is nearest
    to zero there, so that this one ReLU's slope is 0 and not 1; float64 agrees with float32 here.
    """

    CHANNEL = 12

    def __init__(self, model):
        layer = model.decode_head.fpn_bottleneck
        self.conv, self.bn, seen = layer.conv, layer.bn, []

        def note(module, output):
            if module is self.bn:
                seen.append(output)

        with record(note):
            model(Tensor(picture()))
        values = seen[0].numpy()
        shift = np.zeros_like(values)
        channel = values[:, self.CHANNEL]
        place = np.unravel_index(abs(channel).argmin(), channel.shape)
        assert abs(channel[place]) < 1e-5
        shift[:, self.CHANNEL][place] = -2 * channel[place]
        self.shift = Tensor(shift)

    def forward(self, x):
        return (self.bn(self.conv(x)) + self.shift).relu()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["upernet", "semantic_fpn"])
def test_segmentation_has_the_measured_losses_and_gradients(name):
    model = network(name, dropout_ratio=0.0)
    labels = Tensor(measured()["labels"].astype(np.int32))
    with Context(TRAINING=1), record_statistics():
        if name == "upernet":
            model.decode_head.fpn_bottleneck = OtherSide(model)
        maps = model.backbone(Tensor(picture()))
        losses = {
            "decode": segmentation_loss(model.decode(maps), labels),
            "auxiliary": segmentation_loss(model.auxiliary(maps), labels),
        }
        found = gradients(name, model, losses, {"auxiliary": 0.4})
    expected = {"decode": "train_loss_decode", "auxiliary": "train_loss_auxiliary"}
    check(name, found, expected)


@pytest.mark.slow
def test_retinanet_has_the_measured_losses_and_gradients():
    model = network("retinanet", anchor_sizes=ANCHOR_SIZES)
    sizes = sizes_of_levels(model.settings, 9)
    anchors = np.concatenate(grid_anchors(SIZE, grids_of(SIZE, 1), sizes, (0.5, 1, 2)))
    goals = anchor_targets(anchors, objects(), 0.5, 0.4)
    with Context(TRAINING=1), record_statistics():
        losses = retinanet_losses(model(Tensor(picture())), *map(Tensor, goals))
        found = gradients("retinanet", model, losses)
    check("retinanet", found, {name: f"loss/{name}" for name in losses})


def pooled(levels, boxes, grids, bins):
    weights = [roi.matrices(own, SIZE, grids[:4], bins) for own in boxes]
    stacked = [
        [Tensor(np.stack([own[i][k] for own in weights])) for k in range(2)] for i in range(4)
    ]
    return roi.pool_by_matrices(levels[:4], stacked).contiguous()


def training_proposals(model, anchors):
    """The first stage's, from its own pass: what it realizes has no gradient afterwards."""
    parts = flat_proposals(model(Tensor(picture())))
    objectness, deltas = ([x.detach().contiguous() for x in part] for part in parts)
    Tensor.realize(*objectness, *deltas)
    found = []
    for b in range(2):
        levels = [
            Candidates(np.arange(o.shape[1]), o.numpy()[b][:, None], d.numpy()[b])
            for o, d in zip(objectness, deltas, strict=True)
        ]
        found.append(proposals(levels, anchors, SIZE, model.settings, training=True))
    return found


@pytest.mark.slow
def test_maskrcnn_has_the_measured_losses_and_gradients():
    sizes = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 50}
    model = network("maskrcnn", anchor_sizes=ANCHOR_SIZES, **sizes)
    grids = grids_of(SIZE, 0)
    anchors = grid_anchors(SIZE, grids, sizes_of_levels(model.settings, 3), (0.5, 1, 2))
    with Context(TRAINING=1), record_statistics():
        own = training_proposals(model, anchors)
        goals = roi_targets(own, objects(), 56, 8)
        outputs = model(Tensor(picture()))
        targets = rpn_targets(np.concatenate(anchors), objects())
        losses = rpn_losses(*flat_proposals(outputs), *map(Tensor, targets))
        box = model.roi_heads.box(pooled(outputs["pyramid"], goals.boxes, grids, 7))
        labels, deltas = goals.labels.ravel(), goals.deltas.reshape(-1, 4)
        losses |= box_losses(*box, Tensor(labels), Tensor(deltas))
        mask = model.roi_heads.mask(pooled(outputs["pyramid"], goals.mask_boxes, grids, 14))
        masks = goals.masks.reshape(-1, 28, 28)
        losses["loss_mask"] = mask_loss(mask, Tensor(goals.mask_labels.ravel()), Tensor(masks))
        found = gradients("maskrcnn", model, losses)
    check("maskrcnn", found, {name: f"loss/{name}" for name in losses})
