"""The pickle machine: every kind of tensor has the right values, everything else is inert."""

import argparse
import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pytest
from pickles import (
    DTYPES,
    PARAMETER_WITH_STATE,
    QUANTIZED,
    REGISTRY,
    SPARSE,
    AsNumPy,
    Call,
    Typed,
    archive,
    assert_identical,
    number,
    numbers,
    parameter,
    refusal,
    state,
    text,
    torch_save,
)

from tinygmf.weights.checkpoint import load_weights, read_tensors
from tinygmf.weights.unpickle import MAX_INSTRUCTIONS, MAX_PICKLE_BYTES

DATA = Path(__file__).parent.parent / "data"
NANO = dict(load_weights(DATA / "nano.pth").arrays)  # what is imported on first use is so now
FLOATS = np.arange(24, dtype=np.float32).reshape(4, 6) / 7

CONFIG = REGISTRY.kind("yacs.config.CfgNode", dict)
NESTED = CONFIG(MODEL=CONFIG(NAME="x"), LR=1e-3)
COLOUR = Call(REGISTRY.function("trainer.Colour"), (3,))
BESIDE = {
    "Counter": Counter("abca"),
    "defaultdict": defaultdict(list, {"a": [1]}),
    "deque": deque([1, 2], 5),
    "Namespace": argparse.Namespace(lr=1e-3, data="x"),
    "SimpleNamespace": SimpleNamespace(a=1),
    "a configuration": NESTED,
    "an enumeration": COLOUR,
    "Path": Path("runs/x"),
    "PurePosixPath": PurePosixPath("runs/x"),
    "PureWindowsPath": PureWindowsPath("c:/runs"),
    "dtype": DTYPES["float32"],
    "device": Call(REGISTRY.function("torch.device"), ("cuda", 0)),
    "a generator's state": np.zeros(16, np.uint8),
    "set": {"head", "cpe"},
    "frozenset": frozenset({1}),
    "bytes": b"\x00\x01abc",
    "long bytes": bytes(1000),
    "bytearray": bytearray(b"abc"),
    "complex": 1j,
    "NumPy's number": AsNumPy(np.float64(81.2)),
    "NumPy's array": AsNumPy(np.arange(3.0)),
    "NumPy's array of texts": AsNumPy(np.array(["a"])),
    "NumPy's array of objects": AsNumPy(np.array([1, "a"], object)),
    "datetime": datetime(2024, 1, 1, 12),
    "date and duration": [date(2024, 1, 1), timedelta(1)],
    "Decimal, Fraction": (Decimal("1.5"), Fraction(1, 3)),
    "UUID": UUID(int=7),
    "range, slice, ellipsis": [range(3), slice(1, 2), ...],
    "a class": dict,
    "a function": os.path.join,
    "an exception": ValueError("x"),
    "a large number": 2**5000,
    "negative": -(2**70),
    "infinity": [float("inf"), float("nan")],
    "keys of every kind": {0.5: 1, (0, 1): 2, None: 3, True: 4, b"a": 5, "Küche \U0001f600": 6},
    "half a character": "\ud800",
    "a long text": "x" * 100_000,
    "a long list": [float(i) for i in range(20_000)],
    "float8": Typed(np.ones(2, np.uint8), "float8_e4m3fn", (2,)),
    "complex64": np.ones(2, np.complex64),
    "sparse": Call(SPARSE, ("torch.sparse_coo", (FLOATS, FLOATS))),
    "quantized": Call(QUANTIZED, (FLOATS, 0, (2,), (1,), "affine")),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_beside_the_network_anything_may_stand(tmp_path, name, protocol):
    content = {"before": BESIDE[name], "model": NANO, "epoch": 9, "after": BESIDE[name]}
    path = torch_save(content, tmp_path / "a.pth", protocol)
    known = set(sys.modules)
    assert_identical(dict(load_weights(path).arrays), NANO)
    new = set(sys.modules) - known
    assert all(name.startswith("encodings.") for name in new)  # of zipfile's names


HARMFUL = [
    lambda marker: Call(os.system, (f"touch {marker}",)),
    lambda marker: Call(eval, (f"open({str(marker)!r}, 'w')",)),
    lambda marker: Call(exec, (f"open({str(marker)!r}, 'w')",)),
    lambda marker: Call(open, (str(marker), "w")),
    lambda marker: Call(subprocess.check_call, (["touch", str(marker)],)),
    lambda marker: Call(getattr, (Call(getattr, ("os", "system")), "__call__")),
    lambda marker: Call(Call(os.system, (f"touch {marker}",)), ()),
]


@pytest.mark.parametrize("make", HARMFUL)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_ever_called(tmp_path, make, protocol):
    marker = tmp_path / "marker"
    path = torch_save({"model": NANO, "x": make(marker)}, tmp_path / "a.pth", protocol)
    assert_identical(dict(load_weights(path).arrays), NANO)
    path = torch_save({**NANO, "head.weight": make(marker)}, tmp_path / "a.pth", protocol)
    assert "expected a tensor in 'head.weight'" in refusal(path, load_weights)
    assert not marker.exists()


def test_pickles_as_text_are_refused(tmp_path):
    program = pickle.dumps({"model": {"weight": [1, 2.5]}}, 0)
    assert "instruction" in refusal(archive(tmp_path / "a.pth", program))


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
        "collections.OrderedDict.fromkeys",
        "numpy.core.multiarray._reconstruct",
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_no_module_is_imported_for_a_name(tmp_path, monkeypatch, name, stacked):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for cut in range(1, name.count(".") + 1):
        parts = name.split(".")
        module, attribute = ".".join(parts[:cut]), ".".join(parts[cut:])
        named = text(module) + text(attribute) + b"\x93"
        program = named if stacked else b"c" + f"{module}\n{attribute}\n".encode()
        known = set(sys.modules)
        refusal(archive(tmp_path / "a.pth", b"\x80\x02}" + text("x") + program + b"(tRs."))
        assert set(sys.modules) == known and not (tmp_path / "marker").exists()


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


UPPER = (FLOATS.view(np.uint32) >> 16).astype(np.uint16)
TENSORS = {
    "float16": (FLOATS.astype(np.float16), wide(FLOATS.astype(np.float16))),
    "float64": (FLOATS.astype(np.float64), FLOATS),
    "bfloat16": (
        Typed(UPPER, "bfloat16", (4, 6)),
        (UPPER.astype(np.uint32) << 16).view(np.float32),
    ),
    "uint16": (Typed(UPPER, "uint16", (4, 6)), UPPER),
    "bool": (FLOATS > 1, FLOATS > 1),
    "int64": (np.array(2**40), np.array(2**40)),
    "a parameter": (parameter(FLOATS), FLOATS),
    "a parameter with attributes": (
        Call(PARAMETER_WITH_STATE, (FLOATS, True, OrderedDict(), {"tag": 1})),
        FLOATS,
    ),
    "transposed": (FLOATS.T, FLOATS.T.copy()),
    "a part": (FLOATS[1:3, ::2], FLOATS[1:3, ::2].copy()),
    "channels last": (
        np.ascontiguousarray(FLOATS.reshape(2, 2, 3, 2).transpose(0, 2, 3, 1)).transpose(
            0, 3, 1, 2
        ),
        FLOATS.reshape(2, 2, 3, 2),
    ),
    "expanded": (np.broadcast_to(FLOATS[0], (3, 6)), np.tile(FLOATS[0], (3, 1))),
    "empty": (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
    "a scalar": (np.array(2.5, np.float32), np.array(2.5, np.float32)),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_kind_of_tensor_has_its_values(tmp_path, name, legacy, protocol):
    written, expected = TENSORS[name]
    content = {"other": FLOATS, "it": written, "again": written}
    found = read_tensors(torch_save(content, tmp_path / "a.pth", protocol, legacy))
    assert_identical(found, {"other": FLOATS, "it": expected, "again": expected})


def test_tensors_of_a_subclass_and_of_the_oldest_files_have_their_values(tmp_path):
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    row = storage + number(6) + b"tQ" + number(0) + numbers(2, 3) + numbers(3, 1)
    oldest = b"ctorch._utils\n_rebuild_tensor\n" + row + b"tR"
    plain = row + b"\x89ccollections\nOrderedDict\n)Rt"
    kind = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
    subclass = kind + b"cmine\nSub\n" + plain + b"}tR"
    six = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = read_tensors(archive(tmp_path / "a.pth", state(oldest, subclass)))
    assert_identical(found, {"t0": six, "t1": six})


def test_a_tensor_whose_sign_is_put_off_is_refused_rather_than_read_without_it(tmp_path):
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    row = storage + number(6) + b"tQ" + number(0) + numbers(2, 3) + numbers(3, 1)
    negated = row + b"\x89ccollections\nOrderedDict\n)R}" + text("neg") + b"\x88stR"
    program = state(b"ctorch._utils\n_rebuild_tensor_v2\n" + negated)
    assert "negated" in refusal(archive(tmp_path / "a.pth", program))


def test_text_of_python_2_and_numbers_of_any_length_are_read(tmp_path):
    long = (2**100).to_bytes(14, "little")
    program = b"\x80\x02}(U\x03oldT\x02\0\0\0ab" + text("n") + b"\x8b\x0e\0\0\0" + long + b"u."
    assert "no named tensors" in refusal(archive(tmp_path / "a.pth", program))


@pytest.mark.parametrize(
    "code",
    [
        b"}" + b"\x8b\x00\x00\x20\x00" + b"\x01" * 0x200000 + b"q\x00" + b"h\x00Ns" * 300_000,
        b"N" + b"\x8f" * (MAX_INSTRUCTIONS - 2),
        b"]" + b"q\x00" + b"h\x00a" * (MAX_INSTRUCTIONS // 2 - 3),
        b"}q\x00" + b"".join(text(f"{i:07}") + b"h\x00s" for i in range(100_000)),
        b"cx\nY\n)R" + b"Nb" * (MAX_INSTRUCTIONS // 2 - 10),
    ],
)
def test_programs_that_would_take_hours_are_refused(tmp_path, code):
    assert len(code) < MAX_PICKLE_BYTES
    refusal(archive(tmp_path / "a.pth", b"\x80\x02" + code + b"."))


# With PyTorch at hand: its files, and that ours are as its own


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_reads_the_files_of_these_tests(tmp_path, protocol, legacy):
    torch = pytest.importorskip("torch")
    written = {name: pair[0] for name, pair in TENSORS.items()}
    path = torch_save(written, tmp_path / "a.pth", protocol, legacy)
    loaded = torch.load(path, weights_only=False)
    for name, (_, expected) in TENSORS.items():
        tensor = loaded[name].detach()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        assert_identical({name: tensor.numpy()}, {name: expected})


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_pytorch_itself_have_their_values(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    expected = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    content = {"model": net.state_dict(), "args": argparse.Namespace(x=1), "net": Path("x")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_identical(read_tensors(tmp_path / "a.pth"), expected)
    torch.save(net, tmp_path / "b.pth", _use_new_zipfile_serialization=not legacy)
    assert_identical(
        dict(sorted(read_tensors(tmp_path / "b.pth").items())), dict(sorted(expected.items()))
    )
