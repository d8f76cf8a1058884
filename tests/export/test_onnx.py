"""An ONNX file gives the published network's numbers in another runtime, whatever its form."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from parity import (
    DATA,
    deterministic_state_dict,
    load_npz,
    manifest,
    nano_entries,
    parity_input,
)

from reference import Network
from tinygmf.config import VARIANTS, AttentionConfig, Settings
from tinygmf.export.onnx import build, run_onnx, write_onnx
from tinygmf.weights.checkpoint import NetworkWeights, load_weights

VISION_OPERATORS = {
    *("Add", "BatchNormalization", "Concat", "Conv", "Erf", "Flatten", "Gemm", "GlobalAveragePool"),
    *("HardSwish", "LayerNormalization", "MatMul", "Mul", "Reshape", "Shape", "Softmax", "Split"),
    "Transpose",
}


@pytest.fixture(scope="module")
def nano() -> NetworkWeights:
    return load_weights(DATA / "nano.pth")


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": x})[0]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("measured", ["1x3x64x64", "2x3x32x64"])
def test_logits_are_those_that_pytorch_measured(nano, measured, free, folded):
    batch, _, height, width = shape = tuple(map(int, measured.split("x")))
    numbers = load_npz(f"nano_activations_{measured}")
    proto = build(nano, None if free else (height, width), folded=folded)
    logits = run(proto, parity_input(int(numbers["seed"]), shape))
    assert logits.shape == (batch, 10)
    assert np.abs(logits - numbers["logits"]).max() < 1e-5


def test_odd_sizes_give_the_references_logits(nano):
    weights = deterministic_state_dict(nano_entries())
    reference = Network({name: tensor.tolist() for name, tensor in weights.items()})
    x = parity_input(1, (2, 3, 37, 50))
    expected = [reference(picture.tolist()) for picture in x]
    for size in (None, (37, 50)):
        assert np.abs(run(build(nano, size), x) - expected).max() < 1e-5


def test_values_named_like_modules_hold_what_pytorch_measured_there(nano):
    numbers = load_npz("nano_activations_1x3x64x64")
    proto = build(nano, (64, 64))
    names = [node.output[0] for node in proto.graph.node if node.output[0] in numbers]
    assert len(names) > 150
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names[:-1]
    )
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(names, {"input": parity_input(int(numbers["seed"]), (1, 3, 64, 64))})
    for name, value in zip(names, found, strict=True):
        expected = numbers[name].reshape(value.shape)  # tokens have one dimension less
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_initializers_are_the_checkpoints_tensors(nano):
    tensors = nano.arrays
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in build(nano).graph.initializer}
    expected = {key for key in tensors if not key.endswith("num_batches_tracked")}
    assert expected <= set(stored)
    assert all(np.array_equal(stored[key], tensors[key]) for key in expected)


def test_only_operators_of_vision_runtimes_and_fewer_of_them_folded(nano):
    plain, folded = (build(nano, None, folded=folded).graph.node for folded in (False, True))
    assert {node.op_type for node in plain} <= VISION_OPERATORS
    norms = [n.name for n in folded if n.op_type == "BatchNormalization"]
    assert norms and all(name.endswith("aggregator.norm0") for name in norms)
    assert len(folded) < len(plain)


@pytest.mark.parametrize("folded", [False, True])
def test_without_a_head_the_output_is_what_the_head_reads(nano, folded):
    numbers = load_npz("nano_activations_1x3x64x64")
    arrays = {key: array for key, array in nano.arrays.items() if not key.startswith("head.")}
    headless = NetworkWeights(replace(nano.config, num_classes=0), arrays)
    proto = build(headless, (64, 64), folded=folded)
    assert [output.name for output in proto.graph.output] == ["features"]
    features = run(proto, parity_input(int(numbers["seed"]), (1, 3, 64, 64)))
    assert (
        np.abs(
            features @ nano.arrays["head.weight"].T + nano.arrays["head.bias"] - numbers["logits"]
        ).max()
        < 1e-5
    )


def test_the_file_says_what_its_classes_are_and_how_pictures_are_prepared(nano, tmp_path):
    names = [f"Klasse Ä {i}" for i in range(10)]
    named = nano._replace(settings=Settings(classes=tuple(names), mean=(0.5, 0.25, 0.125)))
    write_onnx(named, tmp_path / "nano.onnx", (32, 48))
    proto = onnx.load(tmp_path / "nano.onnx")
    said = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert said["classes"] == names
    assert said["size"] == [32, 48]
    assert said["preprocessing"]["mean"] == [0.5, 0.25, 0.125]
    dims = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, 32, 48]


def test_onnxs_own_evaluator_agrees(nano, tmp_path):
    numbers = load_npz("nano_activations_1x3x64x64")
    write_onnx(nano, tmp_path / "nano.onnx", (64, 64))
    found = run_onnx(tmp_path / "nano.onnx", parity_input(int(numbers["seed"]), (1, 3, 64, 64)))
    assert np.abs(found - numbers["logits"]).max() < 1e-5


def test_what_cannot_be_is_refused_and_nothing_is_written(nano, tmp_path):
    config = replace(nano.config, attention=AttentionConfig(crpe=False))
    ablation = nano._replace(config=config)
    named = nano._replace(settings=Settings(classes=("one",)))
    refused = [
        (ablation, {}, "expected the published attention"),
        (nano, {"size": (32, 31)}, "size: expected at least 32 pixels"),
        (named, {}, "classes: expected 10 names, found 1"),
    ]
    for weights, options, message in refused:
        with pytest.raises(ValueError, match=message):
            write_onnx(weights, tmp_path / "no.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("variant", ["miny", "tiny", "small", "base", "large"])
def test_published_variants_give_the_logits_that_pytorch_measured(variant, folded):
    arrays = deterministic_state_dict(manifest()[variant]["state_dict"])
    weights = NetworkWeights(VARIANTS[f"groupmixformer_{variant}"], arrays)
    numbers = load_npz(f"{variant}_224")
    x = parity_input(int(numbers["seed"]), (1, 3, 224, 224))
    found = run(build(weights, folded=folded), x)
    assert np.abs(found - numbers["logits"]).max() < 1e-4
