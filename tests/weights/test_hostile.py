"""Files made to do harm are refused in one line, in bounded memory."""

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickles import archive, assert_identical, refusal, state, tensor, text

from tinygmf.files import MAX_MESSAGE
from tinygmf.weights import pth, unpickle
from tinygmf.weights.checkpoint import (
    CheckpointError,
    load_model,
    load_state_dict,
    read_tensors,
    write_tensors,
)

DATA = Path(__file__).parent.parent / "data"
SUFFIXES = [".pth", ".safetensors"]
WEIGHTS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "bias": np.array([-0.0, np.inf, np.nan], np.float32),
    "num_batches_tracked": np.array(2**40 + 1),
}


class Call:
    """An object whose pickle calls `function`."""


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
    path, most = tmp_path / "a", unpickle.MAX_PICKLE_BYTES - 3
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
    with pytest.raises(CheckpointError, match="incomplete"):
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
    """What must hold for arbitrary bytes."""
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
