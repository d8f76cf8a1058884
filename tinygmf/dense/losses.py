"""The losses of the dense networks, as mmsegmentation 1.2 and torchvision 0.28 define them.

Each maps a network's outputs and targets of fixed sizes to scalars; B pictures, A anchors. A mean
over nothing is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinygrad import Tensor

from tinygmf.dense.pyramid import resize

SMOOTH = 1 / 9  # where torchvision's smooth L1 loss of boxes turns from quadratic to linear


def cross_entropy(logits: Tensor, labels: Tensor, axis: int = 1) -> tuple[Tensor, Tensor]:
    """The sum of -log softmax over all labels that are classes, and their number, at least 1.

    Any other label (255, -1) is ignored. `labels` has the shape of `logits` without `axis`.
    """
    classes = int(logits.shape[axis])
    shape = [1] * logits.ndim
    shape[axis] = classes
    own = labels.unsqueeze(axis) == Tensor.arange(classes).reshape(shape)
    total = -(own * logits.log_softmax(axis)).sum()
    return total, own.sum().cast(logits.dtype).maximum(1)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (B, classes, h, w), resized to the labels (B, H, W): the mean over
    the labeled pixels; 255 and anything else that is not a class is ignored."""
    total, count = cross_entropy(resize(logits, labels.shape[1:]).contiguous(), labels)
    return total / count


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Elementwise, from logits, in PyTorch's stable form: the same shape."""
    return logits.relu() - logits * targets + (1 + (-logits.abs()).exp()).log()


def focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, elementwise: binary cross entropy times (1 - p)^gamma, where p is the probability
    of the right answer (arXiv 1708.02002): the same shape."""
    p = logits.sigmoid()
    wrong = p + targets - 2 * p * targets  # 1 - p, p the probability of the right answer
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * binary_cross_entropy(logits, targets)


def retinanet_losses(outputs: dict[str, Tensor], classes: Tensor, deltas: Tensor) -> dict:
    """`classification` and `bbox_regression` for `targets.AnchorTargets`: per anchor with an object
    in a picture, averaged over the pictures."""
    logits = outputs["cls_logits"]  # (B, A, classes)
    held = classes >= 0  # (B, A)
    number = held.sum(1).cast(logits.dtype).maximum(1)  # (B,)
    own = classes.unsqueeze(2) == Tensor.arange(int(logits.shape[2]))
    counts = (classes >= -1).unsqueeze(2)
    scores = (focal(logits, own.cast(logits.dtype)) * counts).sum((1, 2)) / number
    distance = (outputs["bbox_regression"] - deltas).abs().sum(2)
    boxes = (distance * held).sum(1) / number
    return {"classification": scores.mean(), "bbox_regression": boxes.mean()}


def smooth_l1(difference: Tensor) -> Tensor:
    size = difference.abs()
    return (size < SMOOTH).where(size.square() * (0.5 / SMOOTH), size - 0.5 * SMOOTH)


def rpn_losses(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    objects: Tensor,
    counted: Tensor,
    goals: Tensor,
) -> dict:
    """`loss_objectness` and `loss_rpn_box_reg`, per sampled anchor; levels as from
    `maskrcnn.flat_proposals`, targets as in `targets.RPNTargets`."""
    logits, found = Tensor.cat(*objectness, dim=1), Tensor.cat(*deltas, dim=1)
    number = counted.sum().maximum(1)
    scores = (binary_cross_entropy(logits, objects) * counted).sum() / number
    distance = smooth_l1(found - goals).sum(2)
    boxes = (distance * objects * counted).sum() / number
    return {"loss_objectness": scores, "loss_rpn_box_reg": boxes}


def box_losses(class_logits: Tensor, regression: Tensor, labels: Tensor, goals: Tensor) -> dict:
    """`loss_classifier` and `loss_box_reg`: class logits (n, classes), regression (n, 4 classes),
    labels (n,), -1 for unused places, goals (n, 4)."""
    total, count = cross_entropy(class_logits, labels)
    own = choose(regression.reshape(regression.shape[0], -1, 4), labels)  # (n, 4)
    boxes = (smooth_l1(own - goals).sum(1) * (labels > 0)).sum() / count
    return {"loss_classifier": total / count, "loss_box_reg": boxes}


def mask_loss(logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Compares the logits (n, classes, side, side) of each box's own class with masks (n, side,
    side); the mean over the boxes with a label above 0."""
    held = labels > 0
    each = binary_cross_entropy(choose(logits, labels), masks).mean((1, 2))  # (n,)
    return (each * held).sum() / held.sum().cast(each.dtype).maximum(1)


def choose(x: Tensor, labels: Tensor) -> Tensor:
    """Each row's own class of x (n, classes, …): (n, …); zero if the label is no class."""
    own = labels.unsqueeze(1) == Tensor.arange(int(x.shape[1]))
    return (x * own.reshape(*own.shape, *[1] * (x.ndim - 2))).sum(1)
