"""Products of bfloat16 by the processor's own instructions: those of the rounded numbers."""

import os
import re
import subprocess
from functools import partial

import numpy as np
import pytest
from strategies import normal
from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import UOp

from tinygmf.engine import program_cache
from tinygmf.engine.clang import compiler
from tinygmf.engine.compile_ahead import source_of
from tinygmf.engine.folded import place
from tinygmf.loops import inference, pairs, pieces
from tinygmf.loops.calls import run_loops
from tinygmf.loops.source import Function
from tinygmf.loops.tiles import processor_flags
from tinygmf.loops.values import hardswish, identity
from tinygmf.tensors import tensor_from_numpy

UNITS = [
    pytest.param("amx", marks=pytest.mark.skipif(pairs.unit() != "amx", reason="no AMX here")),
    pytest.param(
        "dot",
        marks=pytest.mark.skipif("avx512_bf16" not in processor_flags(), reason="no VDPBF16PS"),
    ),
]


@pytest.fixture(params=UNITS)
def unit(request, monkeypatch):
    monkeypatch.setattr(pairs, "unit", lambda: request.param)
    return request.param


def rounded(array: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, as float32."""
    return (pairs.rounded(array).astype(np.uint32) << 16).view(np.float32)


def narrow(array: np.ndarray) -> Tensor:
    return tensor_from_numpy(array).cast(dtypes.bfloat16).contiguous()


SIZES = {  # tokens, depth, channels
    "whole tiles": (64, 64, 32),
    "tokens and channels that no tile divides": (49, 40, 20),
    "one token": (1, 54, 33),
    "more tokens than a tile's and fewer than two's": (19, 2, 16),
    "half a step": (33, 16, 48),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_product_is_that_of_the_rounded_numbers(unit, size):
    tokens, depth, channels = SIZES[size]
    x, weight = normal(0, 1, 1, tokens, depth), normal(1, 1, 1, depth, channels)
    shift = normal(2, channels)
    packed = place(weight, dtypes.bfloat16, "CPU")
    assert packed.dtype == dtypes.uint32
    found = inference.dense(
        narrow(x), packed, tensor_from_numpy(shift), epilogue=hardswish, dtype=dtypes.float32
    )
    total = rounded(x).astype(np.float64) @ rounded(weight)[0] + shift
    expected = total * np.clip(total + 3, 0, 6) / 6
    assert np.abs(found.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def both(x: np.ndarray, weight: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """A product by the unit, and in the plain form."""
    forms = [place(weight, dtypes.bfloat16, "CPU"), narrow(weight)]
    assert [form.dtype for form in forms] == [dtypes.uint32, dtypes.bfloat16]
    options |= {"dtype": dtypes.float32, "columns": weight.shape[-1]}
    found, expected = (inference.dense(narrow(x), form, **options).numpy() for form in forms)
    return found, expected


CASES = {
    "a convolution with a stride": ([(2, 9, 11, 6), (3, 3, 6, 20)], {"stride": (2, 2)}),
    "three tokens at a time, from a channel on": (
        [(1, 1, 27, 20), (1, 3, 6, 18)],
        {"stride": (1, 3), "channel": 8},
    ),
    "blocks": ([(1, 1, 9, 44), (1, 1, 40, 32)], {"blocks": 2, "channel": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_any_form_of_a_product_is_the_plain_one(unit, case):
    (shape, size), options = CASES[case]
    found, expected = both(normal(0, *shape), normal(1, *size), **options)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_product_in_pieces_is_the_whole_bit_by_bit(unit, monkeypatch):
    x, weight = narrow(normal(0, 1, 1, 700, 40)), normal(1, 1, 1, 40, 48)
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(pieces, "available_cores", lambda cores=cores: cores)
        results.append(inference.dense(x, place(weight, dtypes.bfloat16, "CPU")).float().numpy())
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize("unit", UNITS[1:])
def test_sums_stay_in_registers(unit, monkeypatch):
    """Clang may keep them in memory, where they take twice as long: see `pairs.CLEAR`."""
    monkeypatch.setattr(pairs, "unit", lambda: unit)
    weight = place(normal(1, 1, 1, 64, 64), dtypes.bfloat16, "CPU")
    x = narrow(normal(0, 1, 1, 56, 64)).realize()
    program = program_cache.compile_program(inference.dense, x, weight, progress=False)
    (call,) = program.captured.linear.src
    source = source_of(call.src[0])
    options = ["-O2", "-ffreestanding", "-march=native", "-mprefer-vector-width=512"]
    command = [str(compiler()), *options, "-S", "-xc", "-", "-o", "-"]
    text = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    assert "vdpbf16ps" in text
    assert not re.search(r"%zmm\d+, -?\d*\(%r[sb]p", text)


def test_the_source_for_amx_is_c(monkeypatch):
    """On any processor: only one that has AMX can run it."""
    monkeypatch.setattr(pairs, "unit", lambda: "amx")
    shapes = {(1, 1, 64, 64): dtypes.bfloat16, (1, 1, 32, 64): dtypes.uint32}
    x, weight = (UOp.placeholder(s, d, i) for i, (s, d) in enumerate(shapes.items(), 1))
    out = UOp.placeholder((1, 1, 64, 64), dtypes.float32, 0)
    options = {"others": 0, "stride": (1, 1), "channel": 0, "blocks": 1}
    nest = inference.dense_loops(out, x, weight, epilogue=identity, **options)
    source = Function(nest).text()
    assert source.count("tilezero") == source.count("tilestored64") == 4
    options = ["--target=x86_64-linux", "-march=sapphirerapids", "-ffreestanding"]
    command = [str(compiler()), *options, "-c", "-xc", "-", "-o", os.devnull]
    subprocess.run(command, input=source, text=True, check=True)


def test_weights_that_a_unit_cannot_take_are_not_narrowed(unit):
    assert place(normal(0, 3, 3, 3, 20), dtypes.bfloat16, "CPU").dtype == dtypes.float32


def test_without_such_a_unit_weights_are_not_packed(monkeypatch):
    monkeypatch.setattr(pairs, "unit", lambda: None)
    assert place(normal(0, 1, 1, 4, 16), dtypes.bfloat16, "CPU").dtype == dtypes.bfloat16


def test_a_map_is_rounded_to_even_and_keeps_what_is_not_finite():
    halves = np.arange(0x10000, dtype=np.uint32) << 16
    values = (halves[:, None] + np.uint32([0, 0x7FFF, 0x8000, 0x8001])).view(np.float32)
    values = np.append(values[np.isfinite(values)], np.float32([np.inf, -np.inf, np.nan]))
    x = tensor_from_numpy(values.reshape(1, -1))
    loops = partial(inference.apply_loops, function=identity)
    stored = run_loops(loops, x.shape, dtypes.bfloat16, x).float().numpy()
    assert np.array_equal(stored.reshape(-1), rounded(values), equal_nan=True)
