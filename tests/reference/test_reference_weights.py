"""The reference reads .safetensors files, and refuses broken ones in one line."""

import json

import numpy as np
import pytest
from parity import deterministic_state_dict, nano_entries, safetensors_bytes

from reference import load_network
from reference.weights import read_safetensors


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_network_loads_from_its_file(tmp_path):
    weights = deterministic_state_dict(nano_entries())
    path = tmp_path / "nano.safetensors"
    path.write_bytes(safetensors_bytes(weights))
    network = load_network(path)
    assert network.weights == {name: tensor.tolist() for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("I64", "<i8"), ("I32", "<i4"),
        ("I16", "<i2"), ("I8", "i1"), ("U64", "<u8"), ("U32", "<u4"), ("U16", "<u2"), ("U8", "u1"),
        ("BOOL", "?"),
    ],
)  # fmt: skip
def test_every_kind_of_number_is_read(tmp_path, dtype, kind):
    array = np.arange(6).reshape(1, 2, 3).astype(kind)
    path = tmp_path / "one.safetensors"
    header = {"x": entry(dtype, [1, 2, 3], [0, array.nbytes]), "__metadata__": {"format": "pt"}}
    path.write_bytes(file_of(header, array.tobytes()))
    assert read_safetensors(path) == {"x": array.tolist()}


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], dtype="<f4")  # exact in eight bits of fraction
    path = tmp_path / "one.safetensors"
    path.write_bytes(file_of({"x": entry("BF16", [3], [0, 6])}, values.view("<u2")[1::2].tobytes()))
    assert read_safetensors(path) == {"x": values.tolist()}


def test_scalars_and_empty_tensors_are_read(tmp_path):
    path = tmp_path / "two.safetensors"
    header = {"none": entry(shape=[10**18, 0], offsets=[0, 0]), "one": entry(shape=[])}
    path.write_bytes(file_of(header, np.float32(7).tobytes()))
    assert read_safetensors(path) == {"none": [], "one": 7.0}


MALFORMED = {
    "empty": b"",
    "cut in the length": b"\x05\x00\x00",
    "header longer than the file": b"\xff" * 8 + b"{}",
    "header no JSON": file_of(b"PK\x03\x04"),
    "header no UTF-8": file_of(b'{"\xff": 1}'),
    "header nested too deep": file_of(b"[" * 100_000),
    "header no object": file_of([]),
    "a name twice": file_of(b'{"a": {}, "a": {}}'),
    "entry no object": file_of({"a": 1}),
    "entry without shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"0000"),
    "unknown dtype": file_of({"a": entry(dtype="F8")}, b"0000"),
    "dtype no text": file_of({"a": entry(dtype=[])}, b"0000"),
    "negative size": file_of({"a": entry(shape=[-1])}, b"0000"),
    "size no number": file_of({"a": entry(shape=[True])}, b"0000"),
    "too many axes": file_of({"a": entry(shape=[1] * 9)}, b"0000"),
    "three offsets": file_of({"a": entry(offsets=[0, 4, 8])}, b"0000"),
    "offsets reversed": file_of({"a": entry(offsets=[4, 0])}, b"0000"),
    "shape and offsets disagree": file_of({"a": entry(shape=[2])}, b"0000"),
    "a gap": file_of({"a": entry(offsets=[4, 8])}, b"00000000"),
    "an overlap": file_of({"a": entry(), "b": entry()}, b"0000"),
    "cut in the data": file_of({"a": entry()}, b"000"),
    "data too long": file_of({"a": entry()}, b"00000"),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_refused_in_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected .*found") as error:
        read_safetensors(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    weights = deterministic_state_dict(nano_entries()[:20])
    path = tmp_path / "some.safetensors"
    library.save_file(weights, path, metadata={"format": "np"})
    assert read_safetensors(path) == {name: tensor.tolist() for name, tensor in weights.items()}


def test_a_file_of_another_network_is_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors_bytes({"fc.weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(ValueError, match="expected a tensor 'patch_embed") as error:
        load_network(path)
    assert str(error.value).startswith(f"{path}: ")
