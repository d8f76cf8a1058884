"""The folded network is the network: same logits, same maps, in every precision and size."""

import math
import pickle

import numpy as np
import pytest
from parity import (
    NANO_CONFIG,
    activations_of,
    assert_measured,
    deterministic_state_dict,
    load_npz,
    manifest,
    nano_entries,
    parity_input,
    relative_difference,
)
from strategies import normal
from tinygrad import Tensor, TinyJit, dtypes
from tinygrad.dtype import DType
from tinygrad.nn.state import get_state_dict

from reference import Network
from tinygmf import GroupMixFormer, GroupMixFormerConfig
from tinygmf.config import VARIANTS
from tinygmf.engine.folded import FoldedGroupMixFormer, segment_runs
from tinygmf.engine.launcher import Launcher
from tinygmf.engine.predictor import Predictor
from tinygmf.layers import Module
from tinygmf.loops import inference, padding, values
from tinygmf.tensors import tensor_from_numpy
from tinygmf.weights.checkpoint import NetworkWeights, state_arrays

PRECISION = {dtypes.float32: 1e-5, dtypes.float16: 2e-3, dtypes.bfloat16: 2e-2}


def network(entries, config: GroupMixFormerConfig) -> GroupMixFormer:
    """A network with the deterministic weights."""
    model = GroupMixFormer(config, seed=None)
    state = get_state_dict(model)
    for key, array in deterministic_state_dict(entries).items():
        state[key].replace(tensor_from_numpy(array))
    return model


@pytest.fixture(scope="module")
def nano() -> GroupMixFormer:
    return network(nano_entries(), GroupMixFormerConfig(**NANO_CONFIG))


@pytest.fixture(scope="module")
def folded(nano) -> FoldedGroupMixFormer:
    return fold(nano)


def fold(model: GroupMixFormer, dtype: DType = dtypes.float32) -> FoldedGroupMixFormer:
    return FoldedGroupMixFormer(model.config, state_arrays(model), dtype)


def test_logits_and_maps_are_the_published_ones(folded, activations):
    pictures, measured = activations
    x = tensor_from_numpy(pictures)
    logits, maps = folded(x), folded.forward_features(x)
    Tensor.realize(logits, *maps)
    assert relative_difference(logits.numpy(), measured["logits"]) < 1e-5
    for i, found in enumerate(maps):
        batch, dim, height, width = found.shape
        tokens = found.numpy().reshape(batch, dim, height * width).transpose(0, 2, 1)
        expected = measured[f"groupmixformer_backbone.{i}"].reshape(tokens.shape)
        assert relative_difference(tokens, expected) < 1e-5


def test_an_odd_size_that_is_not_square_gives_the_references_logits(folded):
    weights = deterministic_state_dict(nano_entries())
    reference = Network({name: tensor.tolist() for name, tensor in weights.items()})
    picture = parity_input(0, (1, 3, 37, 50))
    expected = np.array([reference(picture[0].tolist())])
    assert relative_difference(folded(tensor_from_numpy(picture)).numpy(), expected) < 1e-5


def test_half_precision_is_close_and_keeps_sums_and_norms_in_float32(nano):
    check_precision(nano, dtypes.float16)


@pytest.mark.slow
def test_bfloat16_is_close(nano):
    check_precision(nano, dtypes.bfloat16)


def check_precision(nano: GroupMixFormer, dtype: DType) -> None:
    pictures, measured = activations_of()
    x = tensor_from_numpy(pictures)
    half = fold(nano, dtype)
    packed = {dtypes.uint32}  # pairs of bfloat16, where the processor multiplies those
    assert {w.dtype for w in half.weights} - packed == {dtype, dtypes.float32}
    logits = half(x)
    assert logits.dtype == dtypes.float32
    assert relative_difference(logits.numpy(), measured["logits"]) < PRECISION[dtype]


def test_without_a_head_it_gives_the_pooled_features():
    model = network(nano_entries(), GroupMixFormerConfig(**NANO_CONFIG))
    pictures, measured = activations_of()
    weight, bias = model.head.weight.numpy(), model.head.bias.numpy()
    model.reset_classifier(0)
    pooled = fold(model)(tensor_from_numpy(pictures)).numpy()
    assert relative_difference(pooled @ weight.T + bias, measured["logits"]) < 1e-5


def test_no_batch_norm_is_left_and_changing_the_model_changes_nothing(nano, folded):
    assert len(folded.weights) < len(get_state_dict(nano))
    assert not any(isinstance(value, Module) for value in vars(folded).values())
    blocks = sum(nano.config.serial_depths)
    assert len(folded.weights) == 4 + 4 * 4 + 19 * blocks + 2


def test_a_picture_that_is_too_small_is_refused_with_its_shape(folded):
    with pytest.raises(ValueError, match=r"at least 32, found \(1, 3, 31, 64\)"):
        folded(Tensor.zeros(1, 3, 31, 64))


def test_a_captured_program_is_kept_without_weights_and_runs_with_others(nano, folded):
    pictures, measured = activations_of()
    x = tensor_from_numpy(pictures)
    program = TinyJit(folded.forward)
    program.cnt = 1  # capture at the first call
    first = program(x, folded.weights)[-1].numpy()
    assert relative_difference(first, measured["logits"]) < 1e-5

    program.captured.free_intermediates()
    content = pickle.dumps(program)
    assert len(content) < 1_000_000  # kernels, not weights
    again = pickle.loads(content)
    copies = [tensor_from_numpy(w.numpy()) for w in folded.weights]
    copies[-1] = tensor_from_numpy(copies[-1].numpy() + 1)  # the head's bias
    assert np.allclose(again(x, copies)[-1].numpy(), first + 1, atol=1e-5)

    launcher = Launcher(again, x, copies)
    assert np.allclose(launcher()[-1].numpy(), first + 1, atol=1e-5)


@pytest.mark.parametrize("name", ["miny", "tiny"])
def test_published_variants_give_the_measured_logits_and_maps(name):
    arrays = deterministic_state_dict(manifest()[name]["state_dict"])
    weights = NetworkWeights(VARIANTS[f"groupmixformer_{name}"], arrays)
    measured = load_npz(f"{name}_224")
    pictures = parity_input(int(measured["seed"]), (1, 3, 224, 224))
    predict = Predictor(weights, 224, device="CPU", progress=False)
    *maps, logits = predict.outputs(pictures)
    assert len(maps) == 4
    assert_measured(measured, logits, maps)


# The two forms of every operation


def both(monkeypatch, operation, *arguments, **options) -> tuple[np.ndarray, np.ndarray]:
    """An operation as a loop nest and as a tensor expression."""
    forms = []
    for loops in (True, False):
        monkeypatch.setattr(inference, "on_cpu", lambda device, loops=loops: loops)
        forms.append(operation(*arguments, **options).numpy())
    return forms[0], forms[1]


CASES = {
    "a product with ragged tiles": (inference.dense, [(1, 1, 9, 7), (1, 1, 7, 45), (45,)], {}),
    "one token": (inference.dense, [(1, 1, 1, 7), (1, 1, 7, 5), (5,)], {}),
    "a convolution with a stride": (
        inference.dense,
        [(2, 9, 11, 3), (3, 3, 3, 20), (20,)],
        {"stride": (2, 2), "epilogue": values.hardswish},
    ),
    "three tokens at a time, from a channel on": (
        inference.dense,
        [(1, 1, 15, 10), (1, 3, 2, 6)],
        {"stride": (1, 3), "channel": 8},
    ),
    "a matrix for each picture": (inference.dense, [(2, 1, 5, 12), (2, 1, 1, 4, 4)], {}),
    "windows": (inference.depthwise, [(2, 11, 9, 12), (7, 7, 12), (12,)], {}),
    "windows with a stride": (inference.depthwise, [(1, 9, 8, 10), (3, 3, 10)], {"stride": 2}),
    "windows, from a channel on": (
        inference.depthwise,
        [(1, 9, 8, 14), (3, 3, 10)],
        {"channel": 4},
    ),
    "a rim": (padding.pad, [(2, 3, 5, 6), 3], {"channel": 2}),
    "a norm": (inference.layernorm, [(2, 1, 5, 6), (6,), (6,)], {"eps": 1e-5}),
    "softmax over tokens": (inference.softmax, [(2, 7, 12), 4, 4], {}),
    "an outer product": (inference.outer, [(2, 9, 8), (2, 9, 24), (8, 8)], {"channel": 16}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loop_nest_of_an_operation_is_its_tensor_expression(monkeypatch, case):
    operation, shapes, options = CASES[case]
    arguments = [
        tensor_from_numpy(normal(0, *shape)) if isinstance(shape, tuple) else shape
        for shape in shapes
    ]
    found, expected = both(monkeypatch, operation, *arguments, **options)
    assert relative_difference(found, expected) < 1e-5


def drawn(*shape: int) -> Tensor:
    return tensor_from_numpy(normal(0, *shape))


def test_a_product_passes_over_the_zeros_beside_its_blocks(monkeypatch):
    blocks = np.kron(np.eye(4), np.ones((6, 5))).astype(np.float32)
    weight = tensor_from_numpy(blocks * normal(0, 1, 1, 24, 20))
    arguments = drawn(1, 1, 9, 30), weight, drawn(20)
    found, expected = both(monkeypatch, inference.dense, *arguments, blocks=4, channel=3)
    assert relative_difference(found, expected) < 1e-5


def test_an_outer_product_computes_its_blocks_alone(monkeypatch):
    mask = np.kron(np.eye(4), np.full((3, 3), 0.5)).astype(np.float32)
    arguments = drawn(2, 9, 12), drawn(2, 9, 20), tensor_from_numpy(mask)
    found, expected = both(monkeypatch, inference.outer, *arguments, channel=8, blocks=4)
    assert relative_difference(np.where(mask > 0, found, 0), expected) < 1e-5


@pytest.mark.parametrize(("segment", "parts"), [(16, 3), (20, 2)])
def test_windows_pass_over_the_zeros_around_their_kernels(monkeypatch, segment, parts):
    runs = segment_runs(segment)
    weight = np.zeros((7, 7, parts, 5 * segment), np.float32)
    for size, first, channels in runs:
        inner = slice((7 - size) // 2, (7 + size) // 2)
        here = inner, inner, slice(None), slice(first, first + channels)
        weight[here] = normal(0, *weight[here].shape)
    arguments = drawn(1, 11, 12, parts * 5 * segment), tensor_from_numpy(weight.reshape(7, 7, -1))
    found, expected = both(monkeypatch, inference.depthwise, *arguments, runs=runs, parts=parts)
    assert relative_difference(found, expected) < 1e-5


def test_gelu_is_the_exact_one(monkeypatch):
    x = np.linspace(-12, 12, 4001, dtype=np.float32).reshape(1, 1, 4001)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.reshape(-1).tolist()]
    for found in both(monkeypatch, inference.apply, values.gelu, tensor_from_numpy(x)):
        assert np.abs(found.reshape(-1) - exact).max() < 5e-7


def test_softmax_holds_for_large_values(monkeypatch):
    x = tensor_from_numpy(200 * normal(0, 1, 9, 4))
    found, expected = both(monkeypatch, inference.softmax, x, 0, 4)
    assert np.abs(found - expected).max() < 1e-6
