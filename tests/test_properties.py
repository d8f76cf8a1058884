"""What must hold for any weights and any input: each property is its test's name."""

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from parity import NANO_CONFIG, deterministic_state_dict, entries_for
from strategies import normal, permutations, seeds
from tinygrad import Tensor, TinyJit
from tinygrad.nn.state import get_state_dict

import reference
from reference.gma import group_mix_attention
from reference.parameters import Parameters
from tinygmf import GroupMixAttention, GroupMixFormer, GroupMixFormerConfig
from tinygmf.gma import Aggregator, linear_attention
from tinygmf.tensors import tensor_from_numpy

some = settings(max_examples=20, deadline=None)
few = settings(max_examples=2, deadline=None)  # each traces the whole network anew
DIM, SIZE = 20, (4, 4)
TOKENS = SIZE[0] * SIZE[1]


def nested_weights(module) -> dict:
    """A module's weights as the reference takes them."""
    return {key: tensor.numpy().tolist() for key, tensor in get_state_dict(module).items()}


def largest_difference(a, b) -> float:
    return float(abs(np.asarray(a) - np.asarray(b)).max())


@some
@given(strategies.configs(), strategies.image_shapes)
def test_shapes_follow_from_configuration_and_picture_alone(config, shape):
    batch, height, width = shape
    model = GroupMixFormer(config, seed=None)
    maps = model.forward_features(Tensor.empty(batch, 3, height, width))
    assert [m.shape for m in maps] == [
        (batch, dim, -(-height // stride), -(-width // stride))
        for dim, stride in zip(config.embedding_dims, (4, 8, 16, 32), strict=True)
    ]
    assert model.forward_head(maps[-1]).shape == (
        batch,
        config.num_classes or config.embedding_dims[-1],
    )


@some
@given(strategies.configs())
def test_every_configuration_is_recovered_from_its_keys_and_shapes(config):
    shapes = {k: t.shape for k, t in get_state_dict(GroupMixFormer(config, seed=None)).items()}
    assert GroupMixFormerConfig.from_state_dict(shapes) == config


def small_network(seed: int) -> GroupMixFormer:
    """All tests of it take two pictures of one size, so that its kernels are compiled once."""
    config = GroupMixFormerConfig((10, 20, 10, 20), (1, 1, 1, 1), (2, 2.5, 4, 1), num_classes=3)
    return GroupMixFormer(config, seed)


@few
@given(seeds)
def test_reference_and_port_agree_on_random_weights(seed):
    model, images = small_network(seed), normal(seed, 2, 3, 32, 41)
    network = reference.Network(nested_weights(model))
    expected = np.array([network(image.tolist()) for image in images])
    logits = model(Tensor(images)).numpy()
    assert largest_difference(expected, logits) < 1e-4 * max(1, abs(logits).max())


@some
@given(seeds)
def test_reference_and_port_agree_on_the_attention_alone(seed):
    x = normal(seed, TOKENS, DIM)
    theirs = group_mix_attention(Parameters(nested_weights(attention())), x.tolist(), SIZE[1])
    assert largest_difference(theirs, attend(x)) < 1e-5 * abs(np.array(theirs)).max()


# Permutation: does the network know where a token stands?


def attention() -> GroupMixAttention:
    """One attention with random weights; biases and running statistics random too."""
    if "plain" not in _built:
        _built["plain"] = module = GroupMixAttention(DIM, 0)
        for i, (key, tensor) in enumerate(get_state_dict(module).items()):
            if not key.endswith("num_batches_tracked"):
                values = 0.5 * normal(i, *tensor.shape)
                values = abs(values) + 0.5 if key.endswith("running_var") else values
                tensor.replace(tensor_from_numpy(values))
    return _built["plain"]


def attention_without_neighbors() -> GroupMixAttention:
    """The same with every kernel cut to 1x1 and without the published position convolution."""
    if "alone" not in _built:
        _built["alone"] = module = GroupMixAttention(DIM, 0)
        for key, tensor in get_state_dict(module).items():
            values = get_state_dict(attention())[key].numpy().copy()
            if "crpe" in key:
                values[:] = 0
            elif key.endswith("conv1.weight"):
                centre = values.shape[-1] // 2
                middle = values[..., centre, centre].copy()
                values[:] = 0
                values[..., centre, centre] = middle
            tensor.replace(tensor_from_numpy(values))
    return _built["alone"]


_built: dict = {}
_attend = TinyJit(lambda x: attention()(x, SIZE).realize())
_attend_alone = TinyJit(lambda x: attention_without_neighbors()(x, SIZE).realize())


def attend(x: np.ndarray) -> np.ndarray:
    return _attend(tensor_from_numpy(x[None])).numpy()[0]


def attend_alone(x: np.ndarray) -> np.ndarray:
    return _attend_alone(tensor_from_numpy(x[None])).numpy()[0]


@some
@given(seeds, permutations)
def test_attention_without_neighbors_commutes_with_every_permutation_of_the_tokens(seed, order):
    x = normal(seed, TOKENS, DIM)
    assert largest_difference(attend_alone(x[order]), attend_alone(x)[order]) < 1e-4


@some
@given(seeds, permutations.filter(lambda order: (order != np.arange(TOKENS)).sum() > 4))
def test_group_proxies_notice_a_permutation_of_the_tokens(seed, order):
    x = normal(seed, TOKENS, DIM)
    assert largest_difference(attend(x[order]), attend(x)[order]) > 1e-2


def test_the_whole_network_notices_where_things_are():
    weights = deterministic_state_dict(entries_for(NANO_CONFIG))
    network = reference.Network({key: array.tolist() for key, array in weights.items()})
    image = normal(0, 3, 32, 32)
    shuffled = image.reshape(3, -1)[:, np.random.default_rng(0).permutation(32 * 32)]
    answers = [network(x.tolist()) for x in (image, shuffled.reshape(3, 32, 32))]
    assert largest_difference(*answers) > 0.05


# The attention itself: three of (B, heads, N, head_dim)

SHAPE = (1, 2, 6, 3)
_linear_attention = TinyJit(lambda q, k, v: linear_attention(q, k, v).realize())


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _linear_attention(*map(tensor_from_numpy, (q, k, v))).numpy()


@some
@given(seeds)
def test_attention_is_the_map_of_queries_to_keys_applied_to_the_values(seed):
    q, k, v = normal(seed, 3, *SHAPE)
    softmax = np.exp(k) / np.exp(k).sum(axis=2, keepdims=True)
    attention_map = q @ softmax.swapaxes(2, 3)  # (B, heads, N, N): who attends to whom
    assert largest_difference(attention_map @ v, attended(q, k, v)) < 1e-5


@some
@given(seeds)
def test_adding_one_vector_to_every_key_changes_nothing(seed):
    q, k, v = normal(seed, 3, *SHAPE)
    vector = normal(seed + 1, 1, 2, 1, 3)
    assert largest_difference(attended(q, k + vector, v), attended(q, k, v)) < 1e-5


@some
@given(seeds)
def test_attention_is_linear_in_the_values(seed):
    q, k, v, w = normal(seed, 4, *SHAPE)
    both = 2 * attended(q, k, v) - 3 * attended(q, k, w)
    assert largest_difference(attended(q, k, 2 * v - 3 * w), both) < 1e-4


@pytest.mark.parametrize("segment", range(5))
def test_segments_never_mix_except_in_the_non_attention_branch(segment):
    aggregator, qkv = attention().aggregator, normal(0, 3, 1, TOKENS, DIM)
    changed = qkv.copy()
    width = DIM // 5
    changed[..., segment * width : (segment + 1) * width] += 1
    (before, branch), (after, new_branch) = (aggregated(aggregator, x) for x in (qkv, changed))
    differs = (abs(before - after) > 1e-6).any(axis=(0, 1, 3, 4))  # (heads,)
    heads = {2 * segment, 2 * segment + 1} if segment < 4 else set()
    assert set(np.flatnonzero(differs)) == heads
    assert bool((abs(branch - new_branch) > 1e-6).any()) == (segment == 4)


def aggregated(aggregator: Aggregator, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mixed, branch = aggregator(Tensor(qkv), SIZE)
    mixed.realize(branch)
    return mixed.numpy(), branch.numpy()


def test_the_non_attention_branch_mixes_query_key_and_value():
    aggregator, qkv = attention().aggregator, normal(0, 3, 1, TOKENS, DIM)
    _, branch = aggregated(aggregator, qkv)
    for part in range(3):
        changed = qkv.copy()
        changed[part, ..., -DIM // 5 :] += 1
        assert (abs(aggregated(aggregator, changed)[1] - branch) > 1e-6).any()


def test_the_rest_of_its_batch_changes_nothing_for_a_picture():
    model, (a, b, c) = small_network(0), normal(0, 3, 3, 32, 41)
    of_a_b, of_b_a, of_a_c = (
        model(Tensor(np.stack(two))).numpy() for two in ((a, b), (b, a), (a, c))
    )
    np.testing.assert_array_equal(of_b_a, of_a_b[::-1])
    np.testing.assert_array_equal(of_a_c[0], of_a_b[0])
    assert (of_a_c[1] != of_a_b[1]).any()
