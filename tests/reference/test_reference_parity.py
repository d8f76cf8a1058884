"""The reference gives the published network's numbers, module by module."""

from functools import cache

import numpy as np
import pytest
from parity import (
    MEASURED,
    activations_of,
    deterministic_state_dict,
    nano_entries,
    relative_difference,
)

from reference import Network

TOLERANCE = 2e-5  # of each output's largest value: the measurements were made in float32


@cache
def nano() -> Network:
    weights = deterministic_state_dict(nano_entries())
    return Network({name: tensor.tolist() for name, tensor in weights.items()})


@cache
def traces(name: str) -> tuple[dict, list[dict]]:
    """The measured outputs of a file, and ours for each of its pictures: computed once, as that
    takes seconds."""
    images, expected = activations_of(name)
    return expected, [nano().trace(image.tolist()) for image in images]


def one_picture(expected: np.ndarray, ours: np.ndarray, b: int, batch: int) -> np.ndarray:
    """Picture b of a measured batch; q, k and v are stacked before the batch, or with it."""
    if ours.ndim == 4 and len(ours) == 3:
        return expected.reshape(3, batch, *ours.shape[1:])[:, b]
    return expected[b]


@pytest.mark.parametrize("name", MEASURED)
def test_every_module_of_the_published_network_is_traced_under_its_own_name(name):
    expected, ours = traces(name)
    for trace in ours:
        assert trace.keys() == expected.keys() - {"logits"}


@pytest.mark.parametrize("name", MEASURED)
def test_every_module_gives_the_published_numbers(name):
    expected, ours = traces(name)
    for b, trace in enumerate(ours):
        for module, output in trace.items():
            output = np.array(output)
            wanted = one_picture(expected[module], output, b, len(ours))
            assert output.shape == wanted.shape, module
            difference = relative_difference(output, wanted)
            assert difference < TOLERANCE, module


@pytest.mark.parametrize("name", MEASURED)
def test_logits_and_features_are_what_the_trace_shows(name):
    expected, ours = traces(name)
    for b, image in enumerate(activations_of(name)[0]):
        assert nano()(image.tolist()) == ours[b]["head"]
        np.testing.assert_allclose(ours[b]["head"], expected["logits"][b], rtol=0, atol=1e-5)
        for i, feature in enumerate(nano().features(image.tolist())):
            tokens = np.array(ours[b][f"groupmixformer_backbone.{i}"])  # [N][D]
            assert np.array_equal(np.array(feature).reshape(len(feature), -1), tokens.T)


@pytest.mark.parametrize("stage", range(4))
def test_the_published_scale_counts_an_eighth_of_the_channels_rounded_down(stage):
    _, expected = activations_of()
    att = f"groupmixformer_backbone.{stage}.gma_stage.0.att"
    weights = deterministic_state_dict(nano_entries())
    weight, bias = weights[f"{att}.proj.weight"], weights[f"{att}.proj.bias"]
    q, k, v = expected[f"{att}.aggregator#0"][:, 0].astype(np.float64)  # [heads][N][head_dim]
    where = np.exp(k) / np.exp(k).sum(axis=1, keepdims=True)
    attended = q @ (where.transpose(0, 2, 1) @ v)
    mixed = (len(weight) // 8) ** -0.5 * attended + expected[f"{att}.crpe"][0]
    together = np.concatenate([*mixed, expected[f"{att}.aggregator#1"][0]], axis=1)  # [N][D]
    np.testing.assert_allclose(together @ weight.T + bias, expected[att][0], atol=1e-5)
