"""Compiled and folded, at any size of picture, gives what the network itself gives."""

import numpy as np
import pytest
from dense_case import network
from PIL import Image
from strategies import normal
from tinygrad import Tensor

from tinygmf import Detector, Segmenter
from tinygmf.dense.boxes import clip, decode, grid_anchors, suppress_by_class
from tinygmf.dense.detector import grids_of
from tinygmf.dense.pictures import resized
from tinygmf.dense.pyramid import adaptive_average, double, resize

F = np.float32
ODD = normal(3, 2, 3, 45, 70)  # pictures

pytestmark = pytest.mark.usefixtures("backbones_in_loop_nests")


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn"])
def test_a_segmenter_takes_the_best_of_the_network_s_resized_logits(name):
    model = network(name)
    logits = model(Tensor(ODD))
    assert logits.shape == (2, 5, 12, 18)
    found = Segmenter(model, device="CPU", progress=False).run(Tensor(ODD))
    assert found.shape == (2, 45, 70)
    for own, classes in zip(logits.numpy(), found, strict=True):
        full = resized(own.transpose(1, 2, 0), (45, 70))
        first, second = np.sort(full, axis=2)[..., -1], np.sort(full, axis=2)[..., -2]
        clear = first - second > 1e-4
        assert (classes == full.argmax(axis=2))[clear].all()
        assert clear.mean() > 0.99


def test_a_detector_finds_what_a_sort_of_all_anchors_finds():
    model = network("retinanet")
    outputs = {key: value.numpy() for key, value in model(Tensor(ODD)).items()}
    sizes = [[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (8, 16, 32, 64, 128)]
    anchors = grid_anchors((45, 70), grids_of((45, 70), 1), sizes, (0.5, 1.0, 2.0))
    detect = Detector(
        model,
        device="CPU",
        progress=False,
        anchor_sizes=(8, 16, 32, 64, 128),
        score_thresh=0.35,
        topk_candidates=60,
        detections_per_img=30,
        nms_thresh=0.4,
    )
    for b, found in enumerate(detect.run(ODD)):
        parts, start = [], 0
        for own in anchors:
            here = slice(start, start + len(own))
            scores = 1 / (1 + np.exp(-outputs["cls_logits"][b, here].ravel()))
            best = np.flatnonzero(scores > F(0.35))
            best = best[np.argsort(-scores[best], kind="stable")[:60]]
            deltas = outputs["bbox_regression"][b, here][best // 5]
            parts.append((clip(decode(deltas, own[best // 5]), (45, 70)), scores[best], best % 5))
            start += len(own)
        boxes, scores, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        keep = suppress_by_class(boxes, scores, labels, 0.4, 30)
        assert (found.labels == labels[keep]).all()
        assert np.allclose(found.boxes, boxes[keep], atol=1e-3)
        assert np.allclose(found.scores, scores[keep], atol=1e-5)


def test_a_picture_of_32_pixels_goes_through_mask_r_cnn():
    model = network("maskrcnn", anchor_sizes=(8, 16, 32, 64, 128), score_thresh=0.1)
    detect = Detector(model, device="CPU", progress=False, box_detections_per_img=3)
    (found,) = detect.run(normal(5, 1, 3, 32, 32))
    assert found.boxes.shape == (len(found), 4)
    assert found.masks.shape == (len(found), 32, 32)
    assert 0 < len(found) <= 3
    assert (found.boxes >= 0).all() and (found.boxes <= 32).all()
    assert (found.labels >= 1).all()

    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    strict = Detector(model, device="CPU", progress=False, score_thresh=0.999, min_size=32)
    assert strict.size((40, 56)) == (32, 44)
    (nothing,) = strict(Image.fromarray(pixels))
    assert nothing.boxes.shape == (0, 4)
    assert nothing.scores.shape == nothing.labels.shape == (0,)
    assert nothing.masks.shape == (0, 40, 56)


def test_pictures_come_back_in_their_own_size():
    model = network("semantic_fpn", min_size=32, max_size=64)
    segment = Segmenter(model, device="CPU", progress=False)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    found = segment([pixels, Image.fromarray(pixels)])
    assert [one.classes.shape for one in found] == [(50, 75), (50, 75)]
    assert (found[0].classes == found[1].classes).all()
    assert segment.size((50, 75)) == (32, 48)
    assert segment.size((10, 100)) == (6, 64)
    assert segment([]) == []


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 31, 64), (1, 1, 64, 64)])
def test_other_shapes_are_refused_in_one_line(shape):
    with pytest.raises(ValueError, match="at least 32"):
        Segmenter(network("semantic_fpn"), device="CPU").run(np.zeros(shape, F))


def test_unknown_thresholds_are_refused_in_one_line():
    with pytest.raises(ValueError, match="no_such_thresh"):
        Detector(network("retinanet"), device="CPU", no_such_thresh=1)


def test_resizing_repeats_the_border_and_keeps_centres():
    x = np.arange(6, dtype=F).reshape(1, 1, 2, 3)
    found = resize(Tensor(x), (4, 6)).numpy()[0, 0]
    assert np.allclose(found[0], [0, 0.25, 0.75, 1.25, 1.75, 2])
    assert np.allclose(found[:, 0], [0, 0.75, 2.25, 3])
    assert np.allclose(resized(x[0, 0][..., None], (4, 6))[..., 0], found)
    assert (
        double(Tensor(x), (3, 5)).numpy()[0, 0] == x[0, 0].repeat(2, 0).repeat(2, 1)[:3, :5]
    ).all()


@pytest.mark.parametrize(("side", "bins"), [(1, 6), (4, 3), (5, 6), (7, 2)])
def test_adaptive_average_has_overlapping_bins(side, bins):
    x = normal(6, 1, 2, side, side)
    found = adaptive_average(Tensor(x), bins).numpy()
    for i in range(bins):
        for j in range(bins):
            rows, columns = (slice(k * side // bins, -(-(k + 1) * side // bins)) for k in (i, j))
            assert np.allclose(found[..., i, j], x[..., rows, columns].mean((2, 3)), atol=1e-6)
