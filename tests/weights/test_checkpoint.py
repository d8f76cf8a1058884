"""What checkpoint.py promises: exact both ways, strict, and nothing in a file ever runs."""

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tinygrad import Device, GlobalCounters, Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from tinygmf.config import Settings
from tinygmf.files import MAX_MESSAGE
from tinygmf.tensors import tensor_from_numpy
from tinygmf.weights import pth, safetensors
from tinygmf.weights.checkpoint import (
    CheckpointError,
    load_model,
    load_state_dict,
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


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Same keys in the same order, same types and shapes, same bits."""
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert found[key].tobytes() == array.tobytes(), key


def refusal(path: Path) -> str:
    """Read a file that must be refused; return the message, which is one line that names it."""
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1
    return message


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(shape=(2, 3), strides=(3, 1), offset=0, count=6, kind="FloatStorage", key="0") -> bytes:
    """The instructions with which torch.save describes a tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    place = number(offset) + numbers(*shape) + numbers(*strides)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage + number(count) + b"tQ" + place)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state(*tensors: bytes) -> bytes:
    """The program that builds {"t0": ..., "t1": ...}."""
    items = b"".join(text(f"t{index}") + code for index, code in enumerate(tensors))
    return b"\x80\x02}(" + items + b"u."


def archive(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes):
    """A zip archive as torch.save lays it out, with this pickle. Storage 0 holds six floats."""
    content = {"data/0": np.arange(6, dtype=np.float32).tobytes(), **records}
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for name, data in content.items():
            file.writestr(f"archive/{name}", data)
    return path


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
    tensors = data.draw(st.dictionaries(st.text(min_size=1, max_size=9), arrays, max_size=4))
    tensors = {key: a for key, a in tensors.items() if not key.startswith(("module.", "__"))}
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
    torch.save(layer, tmp_path / "module.pth")
    assert "torch.nn.modules.batchnorm.BatchNorm2d" in refusal(tmp_path / "module.pth")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in refusal(tmp_path / "old.pth")


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


def test_loading_runs_no_kernel():
    """One for each of 299 tensors would take half a minute."""
    model, tensors = load_model(DATA / "nano.pth"), read_tensors(DATA / "nano.pth")
    before = GlobalCounters.kernel_count
    load_state_dict(model, tensors)
    Tensor.realize(*get_state_dict(model).values())
    assert GlobalCounters.kernel_count == before


# What is no weight file


def test_what_is_no_weight_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "a.pth"
    assert "No such file" in refusal(path)
    assert "directory" in refusal(tmp_path)
    for content, expected in {
        b"": "empty",
        b"<!DOCTYPE html><html>": "begins with b'<!DOCTYPE html>",
        pth.OLD_FORMAT + b"...": "before PyTorch 1.6",
        b"PK\x03\x04 but no archive": "damaged",
        struct.pack("<Q", 999) + b"{}": "copy it again",
        struct.pack("<Q", 2) + b"{]": "damaged",
        struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995: "damaged",
    }.items():
        path.write_bytes(content)
        assert expected in refusal(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert "data.pkl" in refusal(tmp_path / "a.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    assert "a device" in refusal(tmp_path / "pipe.pth")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path, suffix):
    write_tensors(WEIGHTS, tmp_path / f"a{suffix}")
    whole = (tmp_path / f"a{suffix}").read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / f"a{suffix}").write_bytes(whole[:length])
        refusal(tmp_path / f"a{suffix}")


def test_a_published_file_cut_short_is_refused(tmp_path):
    whole = (DATA / "nano.pth").read_bytes()
    for length in range(1, len(whole), len(whole) // 30):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        refusal(tmp_path / "cut.pth")


# Hostile files


class Call:
    """An object whose pickle calls `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "make",
    [
        lambda marker: Call(os.system, f"touch {marker}"),
        lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
        lambda marker: Call(open, str(marker), "w"),
        lambda marker: Call(subprocess.check_call, ["touch", str(marker)]),
        lambda marker: Call(getattr, os, "system"),
        lambda marker: np.zeros(3),
        lambda marker: np.float64(81.2),
        lambda marker: Path(marker),
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_anything_else_is_refused_and_runs_nothing(tmp_path, make, protocol):
    marker = tmp_path / "marker"
    try:
        program = pickle.dumps({"model": {"weight": make(marker)}}, protocol)
    except TypeError:
        pytest.skip("a module has no pickle")
    message = refusal(archive(tmp_path / "a.pth", program))
    assert not marker.exists()
    if protocol == 2:
        assert "asks for" in message


@pytest.mark.parametrize(
    "name",
    [
        "trap.anything",
        "trap.FloatStorage",
        "torch._utils.os.system",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "torch.serialization.os.system",
        "torch.load",
        "torch.nn.Module",
        "collections.namedtuple",
        "collections.OrderedDict.fromkeys",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "yacs.config.CfgNode",
        "argparse.Namespace",
    ],
)
def test_a_name_that_is_not_allowed_is_refused_before_its_module_is_imported(
    tmp_path, monkeypatch, name
):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for cut in range(1, name.count(".") + 1):
        parts = name.split(".")
        module, attribute = ".".join(parts[:cut]), ".".join(parts[cut:])
        program = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"(tR."
        known = set(sys.modules)
        assert repr(name) in refusal(archive(tmp_path / "a.pth", program))
        assert set(sys.modules) == known and not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"(iposix\nsystem\n",
        b"(cposix\nsystem\no",
        b"\x82\x01",
        b"Pname\n",
        b"\x8f(\x90",
        b"0",
        b"I1\n",
    ],
)
def test_other_instructions_are_refused(tmp_path, code):
    refusal(archive(tmp_path / "a.pth", b"\x80\x02" + code + b"."))


@pytest.mark.parametrize(
    "program",
    [
        state(tensor(shape=(2, 4), strides=(4, 1))),
        state(tensor(shape=(2**60, 2**60), strides=(0, 0))),
        state(tensor(shape=(6, 6), strides=(0, 1))),
        state(tensor(shape=(-2, -3))),
        state(tensor(strides=(-3, 1))),
        state(tensor(strides=(3,))),
        state(tensor(strides=(4, 1))),
        state(tensor(offset=1)),
        state(tensor(offset=-1)),
        state(tensor(count=-6)),
        state(tensor(count=7)),
        state(tensor(count=2**70, shape=(2**69, 1))),
        state(tensor(key="1")),
        state(tensor(key="../version")),
        state(tensor(kind="DoubleStorage")),
        state(tensor(shape=(1,) * 40 + (6,), strides=(1,) * 41)),
        state(b"K\x01"),
        state(b"ctorch\nFloatStorage\n"),
        state(b"ctorch\nFloatStorage\n)R"),
        state(b"ctorch._utils\n_rebuild_tensor_v2\n(]]]]tR"),
        state(b"ctorch._utils\n_rebuild_parameter\n)R"),
        b"\x80\x02}()" + tensor() + b"u.",
        b"\x80\x02}(" + text("odd") + b"u.",
        b"\x80\x02]" + tensor() + b"a.",
        b"\x80\x02].",
        b"\x80\x02h\x07.",
        b"\x80\x02u.",
        b"\x80\x02\x87.",
        b"\x80\x02.",
        b"\x80\x02X\xff\xff\xff\xff",
        b"\x80\x02}K\x01s.",
        b"\x80\x02)}b.",
    ],
)
def test_tensors_that_cannot_be_are_refused(tmp_path, program):
    refusal(archive(tmp_path / "a.pth", program))


def test_one_storage_cannot_become_a_thousand_tensors(tmp_path):
    numbers = {"data/0": bytes(400_000)}
    program = state(*[tensor((100_000,), (1,), count=100_000)] * 9)
    assert "more numbers" in refusal(archive(tmp_path / "a.pth", program, **numbers))


def test_a_pickle_of_any_depth_is_refused_without_crashing(tmp_path):
    deep = b"\x80\x02)" + b"\x85" * 100_000
    as_key = b"\x80\x02})" + b"q\x00h\x00h\x00\x87" * 200 + b"Ns."
    for program in (
        deep + b".",
        b"\x80\x02}" + deep[2:] + b"Ns.",
        b"\x80\x02" + b"]" * 100_000,
        as_key,
    ):
        refusal(archive(tmp_path / "a.pth", program))


def test_an_archive_that_torch_cannot_have_written_is_refused(tmp_path):
    path, good = tmp_path / "a.pth", state(tensor())
    assert "big-endian" in refusal(archive(path, good, byteorder=b"big"))
    assert "compressed" in refusal(archive(path, good, zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, good)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", b"")
    assert "twice" in refusal(path)
    huge = b"\x80\x02" + b"}" * pth.MAX_PICKLE_BYTES
    assert "larger than" in refusal(archive(path, huge))


def test_records_that_claim_more_than_the_file_are_refused(tmp_path):
    path = archive(tmp_path / "a.pth", state(tensor()))
    whole = bytearray(path.read_bytes())
    directory = whole.rindex(b"PK\x01\x02")
    struct.pack_into("<II", whole, directory + 20, 2**31, 2**31)
    path.write_bytes(whole)
    assert "larger than the file" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,16]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"a":{"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
        '{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"U8","shape":[0,1e400],"data_offsets":[0,8]}}',
        '{"a":[]}',
        '{"a":{"shape":[2],"data_offsets":[0,8]}}',
        "{}",
    ],
)
def test_a_safetensors_header_that_contradicts_the_file_is_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    refusal(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-le", "latin-1"])
def test_a_safetensors_header_in_another_encoding_is_refused(tmp_path, encoding):
    header = '{"ä":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.encode(encoding)
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refusal(path)


def peak_memory(function: Callable[[], object]) -> int:
    """The most that Python's objects and NumPy's arrays take while it runs, in bytes."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_nonsense_of_any_kind_is_refused_in_little_memory(tmp_path):
    path, most = tmp_path / "a", pth.MAX_PICKLE_BYTES - 3
    programs = [b"}" * most, b"]" * most, b"(" * most, b"N" + b"q\x00" * (most // 2)]
    header = b'{"a":[' + b"[]," * 600_000 + b"[]]}"
    for content in (*programs, header):
        if content in programs:
            archive(path, b"\x80\x02" + content)
        else:
            path.write_bytes(struct.pack("<Q", len(content)) + content)
        refusal(path)
    assert peak_memory(lambda: refusal(path)) < 60_000_000


def test_a_zip_directory_is_not_read_before_its_size_is_known(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        for index in range(1 + pth.MAX_DIRECTORY_BYTES // 60):
            file.writestr(f"archive/{index:08}", b"")
    assert "directory is larger" in refusal(path)
    assert peak_memory(lambda: refusal(path)) < 2 * pth.MAX_DIRECTORY_BYTES


def test_records_that_overlap_or_claim_to_be_small_are_refused(tmp_path):
    """The directory points twice at the same bytes; or says less than a record unpacks to."""
    path = archive(tmp_path / "a.pth", state(tensor()), **{"data/1": bytes(24)})
    whole = bytearray(path.read_bytes())
    first, second = (whole.rindex(name) - 46 for name in (b"archive/data/0", b"archive/data/1"))
    whole[second + 42 : second + 46] = whole[first + 42 : first + 46]
    path.write_bytes(whole)
    assert_identical(read_tensors(path), {"t0": np.arange(6, dtype=np.float32).reshape(2, 3)})
    archive(path, state(tensor(key="1")), **{"data/1": bytes(24)})
    whole[:] = path.read_bytes()
    whole[second + 42 : second + 46] = whole[first + 42 : first + 46]
    path.write_bytes(whole)
    assert "damaged" in refusal(path)


def test_names_cannot_write_to_the_terminal(tmp_path):
    write_tensors({"\x1b[31m\u202ered\n": np.zeros(1, np.float32)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(SimpleNamespace(), read_tensors(tmp_path / "a.pth"))
    assert str(caught.value).isprintable() and "red" in str(caught.value)


def test_an_absurd_architecture_of_empty_tensors_costs_no_memory(tmp_path):
    tensors = read_tensors(DATA / "nano.pth")
    for key in list(tensors):
        shape = tuple(10**9 if n == 20 else n for n in tensors[key].shape)
        tensors[key] = np.zeros((*shape, 0) if 10**9 in shape else shape, np.float32)
    write_tensors(tensors, tmp_path / "a.safetensors")

    def load() -> None:
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "a.safetensors")

    load()  # imports what is imported on first use
    assert peak_memory(load) < 10_000_000


def test_no_block_is_built_for_names_without_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr("tinygmf.model.GMABlock", None)  # calling it would be a TypeError
    tensors = read_tensors(DATA / "nano.pth")
    empty = np.zeros(0, np.float32)
    names = [f"groupmixformer_backbone.0.gma_stage.{i}.x" for i in range(9000)]
    write_tensors(tensors | dict.fromkeys(names, empty), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not whole"):
        load_model(tmp_path / "a.safetensors")


def test_a_link_is_followed_and_a_loop_of_links_is_told(tmp_path):
    (tmp_path / "link.pth").symlink_to(DATA / "nano.pth")
    assert len(read_tensors(tmp_path / "link.pth")) == 299
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    assert "symbolic links" in refusal(tmp_path / "loop.pth")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root can read everything")
def test_a_file_that_may_not_be_read_is_told_in_one_line(tmp_path):
    write_tensors(WEIGHTS, tmp_path / "a.pth")
    (tmp_path / "a.pth").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "a.pth")


def test_a_disk_that_gives_an_error_is_told_in_one_line(tmp_path, monkeypatch):
    write_tensors(WEIGHTS, tmp_path / "a.pth")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    assert "cannot be read: Input/output error" in refusal(tmp_path / "a.pth")


def test_the_message_stays_short_whatever_the_file_says(tmp_path):
    path = archive(tmp_path / "a.pth", b"\x80\x02c" + b"x" * 10**6 + b"\n\x1b[31m\n.")
    message = refusal(path)
    assert len(message) <= MAX_MESSAGE and "\x1b" not in message


def reads_or_refuses(path: Path, content: bytes) -> None:
    """The one promise for arbitrary bytes."""
    path.write_bytes(content)
    try:
        read_tensors(path)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1


@settings(deadline=None, max_examples=150)
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x10" + bytes(7) + b"{"]), rest=st.binary())
def test_random_bytes_are_refused(tmp_path_factory, start, rest):
    reads_or_refuses(tmp_path_factory.getbasetemp() / "random", start + rest)


@settings(deadline=None, max_examples=150)
@given(
    program=st.lists(st.sampled_from([bytes([i]) for i in b"}](t)uesabqh.NKMXGJcRQ\x85\x87\x00"]))
)
def test_random_programs_are_refused(tmp_path_factory, program):
    path = tmp_path_factory.getbasetemp() / "program.pth"
    archive(path, b"\x80\x02" + b"".join(program) + b".")
    reads_or_refuses(path, path.read_bytes())


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=300)
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_file_with_one_byte_changed_loads_or_is_refused(tmp_path_factory, suffix, where, byte):
    path = tmp_path_factory.getbasetemp() / f"mutated{suffix}"
    write_tensors(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] = byte
    reads_or_refuses(path, content)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_stays_within_about_twice_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_tensors({f"{i}": np.zeros(50_000, np.float32) for i in range(40)}, path)
    read_tensors(path)  # imports what is imported on first use
    assert peak_memory(lambda: read_tensors(path)) < 2.2 * path.stat().st_size


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
    assert pth.STORAGES["torch.BFloat16Storage"] == safetensors.DTYPES["BF16"]
