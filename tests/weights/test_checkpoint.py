"""What checkpoint.py promises: exact both ways, and strict."""

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pickles import archive, assert_identical, refusal, state, tensor, torch_save
from tinygrad import Device, GlobalCounters, Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from tinygmf.config import Settings
from tinygmf.tensors import tensor_from_numpy
from tinygmf.weights import safetensors, unpickle
from tinygmf.weights.checkpoint import (
    CheckpointError,
    load_model,
    load_state_dict,
    load_weights,
    read_tensors,
    save_model,
    write_tensors,
)

DATA = Path(__file__).parent.parent / "data"
SUFFIXES = [".pth", ".safetensors"]
WEIGHTS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "bias": np.array([-0.0, np.inf, np.nan], np.float32),
    "num_batches_tracked": np.array(2**40 + 1),
}


# The published files


def test_a_published_file_and_a_training_checkpoint_hold_the_same_tensors():
    published = read_tensors(DATA / "nano.pth")
    assert len(published) == 299
    assert published["norm4.num_batches_tracked"] == 100
    assert list(read_tensors(DATA / "nano_training_checkpoint.pth")) == list(published)


def test_load_model_infers_the_architecture_and_gives_every_tensor_its_value():
    model = load_model(DATA / "nano.pth")
    assert model.config.embedding_dims == (20, 20, 30, 40)
    assert model.config.serial_depths == (1, 2, 1, 1)
    assert model.config.mlp_ratios == (4, 3, 2, 4)
    assert model.config.num_classes == 10
    found = {key: tensor.numpy() for key, tensor in get_state_dict(model).items()}
    assert_identical(found, read_tensors(DATA / "nano.pth"))


def test_load_model_puts_the_weights_on_the_device_asked_for():
    model = load_model(DATA / "nano.pth", device="PYTHON")
    assert {tensor.device for tensor in get_state_dict(model).values()} == {"PYTHON"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_saved_model_is_the_published_file_again(tmp_path, suffix):
    save_model(load_model(DATA / "nano.pth"), tmp_path / f"mine{suffix}")
    assert_identical(read_tensors(tmp_path / f"mine{suffix}"), read_tensors(DATA / "nano.pth"))
    assert list(tmp_path.iterdir()) == [tmp_path / f"mine{suffix}"]


def test_a_half_precision_model_is_saved_in_float32(tmp_path):
    weight = Tensor([1.0, 2.0], dtype=dtypes.bfloat16)
    half = SimpleNamespace(weight=weight, settings=Settings())
    save_model(half, tmp_path / "half.pth")
    assert_identical(read_tensors(tmp_path / "half.pth"), {"weight": np.float32([1, 2])})


# Both formats, both ways


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_whatever_is_written_is_read_back_bit_for_bit(tmp_path_factory, suffix, data):
    types = st.sampled_from(["?", "u1", "i1", "<i2", "<i4", "<i8", "<f4"])
    arrays = hnp.arrays(types, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    names = st.text(min_size=1, max_size=9).filter(
        lambda name: "module." not in name and name != "__meta"
    ) | st.sampled_from(["module", "a.module", "_orig_mod"])  # wrap nothing
    tensors = data.draw(st.dictionaries(names, arrays, min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("written") / f"tensors{suffix}"
    write_tensors(tensors, path)
    assert_identical(read_tensors(path), tensors)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_recognized_by_its_content(tmp_path, suffix):
    write_tensors(WEIGHTS, tmp_path / f"weights{suffix}")
    os.rename(tmp_path / f"weights{suffix}", tmp_path / "weights.bin")
    assert_identical(read_tensors(tmp_path / "weights.bin"), WEIGHTS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_arrays_belong_to_the_caller(tmp_path, suffix):
    write_tensors(WEIGHTS, tmp_path / f"weights{suffix}")
    for array in read_tensors(tmp_path / f"weights{suffix}").values():
        array += 1


@pytest.mark.parametrize(("kind", "dtype"), [("HalfStorage", "<f2"), ("DoubleStorage", "<f8")])
def test_other_precisions_become_float32(tmp_path, kind, dtype):
    numbers = np.array([1.5, -2.0, 0.1, 0, 3, 4], dtype)
    path = archive(tmp_path / "a.pth", state(tensor(kind=kind)), **{"data/0": numbers.tobytes()})
    assert_identical(read_tensors(path), {"t0": numbers.astype(np.float32).reshape(2, 3)})


def test_bfloat16_becomes_float32_exactly(tmp_path):
    values = np.array([1, -2.5, 0, np.inf, 2.0**-126, 3.140625], np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    program = state(tensor(kind="BFloat16Storage"))
    assert_identical(
        read_tensors(archive(tmp_path / "a.pth", program, **{"data/0": upper})),
        {"t0": values.reshape(2, 3)},
    )
    header = b'{"t0":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + upper)
    assert_identical(read_tensors(tmp_path / "a.safetensors"), {"t0": values.reshape(2, 3)})


def test_tensors_may_share_a_storage_and_lie_in_it_transposed(tmp_path):
    program = state(tensor(), tensor((3, 2), (1, 3)), tensor((2,), (2,), offset=1))
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {"t0": whole, "t1": whole.T.copy(), "t2": np.float32([1, 3])}
    assert_identical(read_tensors(archive(tmp_path / "a.pth", program)), expected)


def test_the_prefix_of_a_data_parallel_model_is_taken_off(tmp_path):
    write_tensors({f"module.{key}": array for key, array in WEIGHTS.items()}, tmp_path / "a.pth")
    assert_identical(read_tensors(tmp_path / "a.pth"), WEIGHTS)
    write_tensors({"module.a": WEIGHTS["bias"], "a": WEIGHTS["bias"]}, tmp_path / "b.pth")
    assert "twice" in refusal(tmp_path / "b.pth")


def test_the_safetensors_library_agrees(tmp_path):
    library = pytest.importorskip("safetensors")
    numpy_side = pytest.importorskip("safetensors.numpy")
    write_tensors(WEIGHTS, tmp_path / "ours.safetensors")
    loaded = numpy_side.load_file(tmp_path / "ours.safetensors")
    assert_identical({key: loaded[key] for key in WEIGHTS}, WEIGHTS)
    with library.safe_open(tmp_path / "ours.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    numpy_side.save_file(WEIGHTS, tmp_path / "theirs.safetensors")
    theirs = read_tensors(tmp_path / "theirs.safetensors")
    assert_identical({key: theirs[key] for key in WEIGHTS}, WEIGHTS)


def test_pytorch_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    torch = pytest.importorskip("torch")
    write_tensors(WEIGHTS, tmp_path / "ours.pth")
    for mmap in (False, True):
        content = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
        assert list(content) == ["model"]
        assert_identical({key: t.numpy() for key, t in content["model"].items()}, WEIGHTS)
    layer = torch.nn.BatchNorm2d(3)
    parts = {"model": layer.state_dict(), "epoch": 3, "config": {"rate": 0.1, "big": 2**40}}
    torch.save({**parts, "size": layer.weight.shape, "w": layer.weight}, tmp_path / "theirs.pth")
    expected = {key: t.numpy() for key, t in layer.state_dict().items()}
    assert_identical(read_tensors(tmp_path / "theirs.pth"), expected)


# Writing


def test_another_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"ends in \.pth or \.safetensors"):
        save_model(load_model(DATA / "nano.pth"), tmp_path / "weights.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="uint16"):
        write_tensors({"a": np.zeros(3, np.uint16)}, tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        write_tensors(WEIGHTS, tmp_path / "nowhere" / "a.pth")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_an_interrupted_save_leaves_the_old_file_whole(tmp_path, monkeypatch, error, moment):
    write_tensors(WEIGHTS, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()

    def interrupt(*_):
        raise error

    monkeypatch.setattr(os, moment, interrupt)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        write_tensors({"other": np.zeros(9, np.float32)}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]


# Strictness


def test_missing_unexpected_and_misshapen_tensors_are_counted_and_named():
    model = load_model(DATA / "nano.pth")
    tensors = read_tensors(DATA / "nano.pth")
    for i in range(4):
        tensors[f"extra.{i}"] = np.zeros(1, np.float32)
    del tensors["head.bias"]
    tensors["head.weight"] = np.ones((5, 40), np.float32)
    before = model.head.weight.numpy()
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(model, tensors, "somewhere.pth")
    message = str(caught.value)
    assert message.startswith("somewhere.pth: ") and "\n" not in message
    assert "1 missing: head.bias" in message
    assert "4 unexpected: extra.0, extra.1, extra.2, …" in message
    assert "1 misshapen: head.weight (expected (10, 40), found (5, 40))" in message
    assert (model.head.weight.numpy() == before).all()


@pytest.mark.parametrize("lost", ["norm4.weight", "patch_embed_layers.2.norm.weight"])
def test_load_model_refuses_an_incomplete_file(tmp_path, lost):
    tensors = read_tensors(DATA / "nano.pth")
    del tensors[lost]
    write_tensors(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=lost) as caught:
        load_model(tmp_path / "a.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'}: ")


def test_counters_that_are_lacking_are_zero(tmp_path):
    nano = read_tensors(DATA / "nano.pth")
    write_tensors({k: a for k, a in nano.items() if "num_batches" not in k}, tmp_path / "a.pth")
    arrays = load_weights(tmp_path / "a.pth").arrays
    assert arrays["norm4.num_batches_tracked"] == 0
    assert set(arrays) == set(nano)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("read", [load_weights, load_model])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, read):
    nano = read_tensors(DATA / "nano.pth")
    broken = {**nano, "norm4.bias": np.full(40, value, np.float32)}
    write_tensors(broken, tmp_path / "a.pth")
    assert "1 with NaN or infinity: norm4.bias" in refusal(tmp_path / "a.pth", read)


def test_a_number_too_large_for_float32_is_not_finite(tmp_path):
    nano = read_tensors(DATA / "nano.pth")
    path = torch_save({**nano, "norm4.bias": np.full(40, 1e300)}, tmp_path / "a.pth")
    assert "norm4.bias" in refusal(path, load_weights)


def test_loading_runs_no_kernel():
    """One for each of 299 tensors would take half a minute."""
    model, tensors = load_model(DATA / "nano.pth"), read_tensors(DATA / "nano.pth")
    before = GlobalCounters.kernel_count
    load_state_dict(model, tensors)
    Tensor.realize(*get_state_dict(model).values())
    assert GlobalCounters.kernel_count == before


# Tensors without kernels


@pytest.mark.parametrize("direct", [True, False])
def test_a_tensor_holds_a_copy_of_its_array(monkeypatch, direct):
    allocator = type(Device[Device.DEFAULT].allocator)
    if not direct and hasattr(allocator, "_as_buffer"):
        monkeypatch.delattr(allocator, "_as_buffer")  # as a device with a memory of its own
    for array in (
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(5, dtype=">f4")[::-2],
        np.array([1, 2], np.float16),
        np.array([True, False]),
        np.array(7),
        np.zeros((0, 3), np.float32),
    ):
        expected = array.astype(array.dtype.newbyteorder("="))
        array.flags.writeable = False
        found = tensor_from_numpy(array)
        assert_identical({"a": found.numpy()}, {"a": expected})
    own = np.ones(3, np.float32)
    found = tensor_from_numpy(own)
    own[:] = 2
    assert found.tolist() == [1, 1, 1]


def test_a_tensor_from_an_array_can_be_assigned_to():
    found = tensor_from_numpy(np.ones(3, np.float32))
    assert found.assign(found * 2 + 1).realize().tolist() == [3, 3, 3]


def test_both_formats_know_the_same_bfloat16():
    assert unpickle.DTYPES["bfloat16"] == safetensors.DTYPES["BF16"]
