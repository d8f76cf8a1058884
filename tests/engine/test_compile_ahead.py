"""Loop nests are compiled while their program is traced, each once."""

import random
from functools import partial

import numpy as np
import pytest
from tinygrad import Device, Tensor
from tinygrad.engine import realize

from tinygmf.engine import program_cache
from tinygmf.loops import inference
from tinygmf.tensors import tensor_from_numpy


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The sources that clang gets."""
    sources: list[str] = []
    compiler = Device["CPU"].compiler
    compile_source = compiler.compile

    def noted(source: str) -> bytes:
        sources.append(source)
        return compile_source(source)

    monkeypatch.setattr(compiler, "compile", noted)
    return sources


def norms(x: Tensor, eps: float) -> Tensor:
    """Three calls of two kernels; an `eps` of its own makes them new to every cache."""
    x = inference.layernorm(x, eps=eps)
    return inference.layernorm(inference.layernorm(x, eps=eps), eps=2 * eps)


def test_each_nest_is_compiled_once_and_no_worker_is_started(compiled, monkeypatch):
    monkeypatch.setattr(realize, "get_worker_pool", None)
    x, eps = normal_rows(), random.uniform(1e-3, 1e-2)
    program = program_cache.compile_program(partial(norms, eps=eps), x, progress=False)
    assert len(compiled) == len(set(compiled)) == 2
    assert all(source.startswith("void layernorm_48_8(") for source in compiled)
    found, expected = program(x).numpy(), np.float64(x.numpy())
    for more in (eps, eps, 2 * eps):
        expected = expected - expected.mean(-1, keepdims=True)
        expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True) + more)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    program_cache.compile_program(partial(norms, eps=eps), x, progress=False)
    assert len(compiled) == 2


def normal_rows() -> Tensor:
    array = np.random.default_rng(0).standard_normal((1, 1, 6, 8), dtype=np.float32)
    return tensor_from_numpy(array, "CPU")


def test_a_nest_that_is_traced_but_not_wanted_does_no_harm(compiled):
    def function(x: Tensor) -> Tensor:
        inference.layernorm(x, eps=random.uniform(1e-3, 1e-2))
        return (x + 1).contiguous()

    x = normal_rows()
    program = program_cache.compile_program(function, x, progress=False)
    np.testing.assert_array_equal(program(x).numpy(), x.numpy() + 1)
