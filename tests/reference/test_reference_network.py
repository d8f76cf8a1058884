"""What holds for the reference network at every size, and what it refuses."""

from functools import cache
from math import ceil, prod

import numpy as np
import pytest
from parity import (
    NANO_CONFIG,
    deterministic_state_dict,
    entries_for,
    manifest,
    nano_entries,
    parity_input,
)

from reference import VARIANTS, Config, Network
from reference.config import tensor_shapes


@cache
def nano_weights() -> dict:
    weights = deterministic_state_dict(nano_entries())
    return {name: tensor.tolist() for name, tensor in weights.items()}


@cache
def nano() -> Network:
    return Network(nano_weights())


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (32, 47), (37, 61), (70, 34)])
def test_each_map_has_the_picture_s_size_over_its_stride_rounded_up(size):
    height, width = size
    maps = nano().features(parity_input(0, (3, height, width)).tolist())
    for i, stride in enumerate([4, 8, 16, 32]):
        shape = (NANO_CONFIG["embedding_dims"][i], ceil(height / stride), ceil(width / stride))
        assert np.array(maps[i]).shape == shape


def test_the_same_picture_gives_the_same_logits_twice():
    image = parity_input(1, (3, 32, 40)).tolist()
    assert nano()(image) == nano()(image)


def test_the_picture_is_left_as_it_was():
    image = parity_input(1, (3, 32, 32)).tolist()
    copy = np.array(image)
    nano().trace(image)
    assert np.array_equal(image, copy)


def test_the_configuration_is_read_off_the_weights():
    assert nano().config == Config((20, 20, 30, 40), (1, 2, 1, 1), (4, 3, 2, 4), 10)


@pytest.mark.parametrize("name", ["miny", "tiny", "small", "base", "large"])
def test_a_variant_has_the_published_tensors_in_the_published_order(name):
    published = [(key, tuple(shape)) for key, shape, _ in manifest()[name]["state_dict"]]
    assert list(tensor_shapes(VARIANTS[name]).items()) == published
    entries = entries_for(manifest()[name]["config"])
    assert [(key, shape) for key, shape, _ in entries] == published


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("miny", 5_733_120),
        ("tiny", 10_949_152),
        ("small", 22_421_320),
        ("base", 45_827_272),
        ("large", 71_833_648),
    ],
)
def test_a_variant_has_the_published_number_of_parameters(name, count):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    shapes = tensor_shapes(VARIANTS[name])
    parameters = [shape for key, shape in shapes.items() if not key.endswith(statistics)]
    assert sum(map(prod, parameters)) == count == manifest()[name]["num_parameters"]


def test_there_are_the_five_published_variants_and_no_others():
    assert VARIANTS.keys() == manifest().keys()


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ([[[0.0] * 32] * 32] * 4, "found 4"),
        ([[[0.0] * 31] * 32] * 3, "found 31 x 32"),
        ([[[0.0] * 40] * 31] * 3, "found 40 x 31"),
        ([[[0.0] * 32] * 32, [[0.0] * 32] * 32, [[0.0] * 32] * 33], "one height"),
        ([[*[[0.0] * 32] * 31, [0.0] * 33]] * 3, "one length"),
        ([[], [], []], "found 0 x 0"),
    ],
)
def test_a_picture_of_another_shape_is_refused_in_one_line(image, found):
    with pytest.raises(ValueError, match=found) as error:
        nano()(image)
    assert "\n" not in str(error.value)


BLOCK = "groupmixformer_backbone.1.gma_stage.1"


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("head.bias", None, "expected a tensor 'head.bias'"),
        ("head.weight", None, "expected a tensor 'head.weight'"),
        (f"{BLOCK}.att.proj.bias", None, f"expected a tensor '{BLOCK}.att.proj.bias'"),
        ("patch_embed_layers.2.norm.weight", [1.0] * 31, "found 31"),
        ("backbone.extra", [0.0], "expected no tensor 'backbone.extra'"),
        ("head.bias", [0.0] * 11, "of shape \\[10\\], found \\[11\\]"),
        ("head.bias", [[0.0]] * 10, "of shape \\[10\\], found \\[10, 1\\]"),
        ("head.bias", 0.0, "of shape \\[10\\], found \\[\\]"),
        ("head.bias", [float("nan")] * 10, "finite numbers in 'head.bias'"),
        ("head.bias", ["0"] * 10, "finite numbers in 'head.bias'"),
        ("head.weight", [[0.0] * 40] * 9 + [[0.0] * 39], "one length in 'head.weight'"),
        ("head.weight", [[0.0] * 40] * 9 + [0.0], "finite numbers in 'head.weight'"),
        ("head.weight", [], "one length in 'head.weight'"),
        ("norm4.running_var", [-1.0] * 40, "variance"),
    ],
)
def test_a_missing_unknown_or_misshapen_tensor_is_named_in_one_line(name, value, found):
    weights = nano_weights() | {name: value}
    if value is None:
        del weights[name]
    with pytest.raises(ValueError, match=found) as error:
        Network(weights)
    assert "\n" not in str(error.value)
