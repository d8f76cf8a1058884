"""A file that holds no weights is named for what it is, with what to do about it."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pickles import archive, refusal, state, tensor, torch_save

from tinygmf.dense.networks import load_model
from tinygmf.training.state import TrainingState
from tinygmf.weights.checkpoint import load_weights, read_tensors, write_tensors
from tinygmf.weights.unpickle import MAX_PICKLE_BYTES

DATA = Path(__file__).parent.parent / "data"
SUFFIXES = [".pth", ".safetensors"]
WEIGHTS = {"weight": np.arange(6, dtype=np.float32), "count": np.array(7)}


def zipped(**records: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in records.items():
            file.writestr(name, data)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pth"))
    return content.getvalue()


def saved_npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.zeros(3))
    return content.getvalue()


KINDS = {
    "empty": (b"", "empty"),
    "web page": (b"\n <!DOCTYPE html><html>", "a web page"),
    "web page in capitals": (b"<HTML><HEAD>", "a web page"),
    "web page with a mark": (b"\xef\xbb\xbf<!doctype html>", "a web page"),
    "server's error": (b"<?xml version='1.0'?><Error>", "an XML document"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "LFS pointer, CRLF": (b"version https://git-lfs.github.com/spec/v1\r\n", "git lfs pull"),
    "JSON": (b'{"model_type": "x"}', "a JSON document"),
    "index": (json.dumps({"weight_map": {}}, indent=1).encode(), "an index"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(40), "a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x032.0:\xff", "an ONNX model"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite model"),
    "npy": (b"\x93NUMPY\1\0v\0", "a NumPy array"),
    "npz": (saved_npz(), "NumPy's .npz"),
    "picture": (b"\x89PNG\r\n\x1a\n", "a picture"),
    "PDF": (b"%PDF-1.7", "a PDF document"),
    "gzip": (gzip.compress(b"x"), "a gzip archive"),
    "tar": (tarred(), "a tar archive"),
    "zeros": (bytes(4096), "only zeros"),
    "text": (b"import torch\n", "begins with b'import torch"),
    "pickle": (pickle.dumps({"a": 1}), "a plain Python pickle"),
    "Drive's zip": (zipped(**{"drive/best.pth": b"x", "__MACOSX/._b": b""}), "drive/best.pth"),
    "zip of safetensors": (zipped(**{"model.safetensors": b"x"}), "holds model.safetensors"),
    "zip of pictures": (zipped(**{"a.jpg": b"x"}), "a zip archive of a.jpg"),
    "empty zip": (zipped(), "an empty zip archive"),
    "Keras": (zipped(**{"config.json": b"{}", "model.weights.h5": b"x"}), "a Keras model"),
    "TorchScript": (
        zipped(**{"m/data.pkl": b"x", "m/code/__torch__.py": b"", "m/constants.pkl": b""}),
        "torch.jit.load",
    ),
    "torch.export": (zipped(**{"m/archive_format": b"pt2"}), "torch.export"),
    "packed again": (zipped(**{"m/data.pkl": b"x", "m/data/0": b"y"}), "without compression"),
    "cut zip": (b"PK\x03\x04 but no archive", "cut short"),
    "cut header": (struct.pack("<Q", 999) + b"{}", "copy it again"),
    "broken header": (struct.pack("<Q", 2) + b"{]", "damaged"),
    "deep header": (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "damaged"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named(tmp_path, kind):
    content, told = KINDS[kind]
    (tmp_path / "a.pth").write_bytes(content)
    assert told in refusal(tmp_path / "a.pth")
    assert told in refusal(tmp_path / "a.pth", load_weights)


def test_nothing_and_folders_are_told_in_one_line(tmp_path):
    assert "No such file" in refusal(tmp_path / "a.pth")
    assert "found a folder" in refusal(tmp_path)


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


def test_a_file_of_old_is_refused_wherever_it_was_cut(tmp_path):
    path = torch_save(WEIGHTS, tmp_path / "a.pth", legacy=True)
    whole = path.read_bytes()
    assert list(read_tensors(path)) == list(WEIGHTS)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_published_file_cut_short_is_refused(tmp_path):
    whole = (DATA / "nano.pth").read_bytes()
    for length in range(1, len(whole), len(whole) // 30):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        refusal(tmp_path / "cut.pth")


def test_an_archive_that_torch_cannot_have_written_is_refused(tmp_path):
    path, good = tmp_path / "a.pth", state(tensor())
    assert "big-endian" in refusal(archive(path, good, byteorder=b"big"))
    assert "compressed" in refusal(archive(path, good, zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, good)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", b"")
    assert "duplicate names" in refusal(path)
    huge = b"\x80\x02" + b"}" * MAX_PICKLE_BYTES
    assert "larger than" in refusal(archive(path, huge))


@pytest.mark.parametrize("load", [load_weights, load_model])
def test_the_state_of_a_run_stands_for_the_network_beside_it(load, tmp_path):
    """Copied elsewhere, it no longer does."""
    path = tmp_path / "run.safetensors"
    write_tensors(dict.fromkeys(TrainingState.CHANGING, np.zeros(3, np.float32)), path)
    expected = "run.safetensors: expected a network, found the state of a training run: name its"
    assert expected in refusal(path, load)
