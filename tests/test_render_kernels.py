"""Every kernel fits every GPU that tinygrad can write for, whether or not the GPU is here."""

import re
from dataclasses import replace

import pytest
import render_kernels
from render_kernels import (
    BACKENDS,
    EVERYTHING,
    Backend,
    Kernel,
    Network,
    check,
    lower,
    renderer_of,
    violations,
)
from tinygrad import Tensor, dtypes

from tinygmf.study.lowering import kernels

TIGHTEST = ("WebGPU",)  # 8 buffers, 256 threads, 16 KB


@pytest.mark.parametrize("backend", TIGHTEST)
def test_the_kernels_of_the_nano_network_fit(backend):
    row = check(Network("nano", 32), backend)
    assert row.kernels > 100 and row.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", EVERYTHING, ids=str)
def test_the_kernels_fit_every_backend_and_compile_where_a_compiler_is(network, backend):
    row = check(network, backend)
    print(row)
    assert row.problems == []


def test_a_kernel_over_a_limit_is_named_with_the_line_of_the_model(monkeypatch):
    """With one buffer less than the tightest backend has, something must give."""
    tight = replace(BACKENDS["WebGPU"], buffers=5)
    monkeypatch.setitem(BACKENDS, "WebGPU", tight)
    problems = check(Network("nano", 32), "WebGPU", compiling=False).problems
    assert problems
    for line in problems:
        assert re.fullmatch(r"\w+: buffers 6, at most 5 \(.* at .*< folded\.py:\d+.*\)", line)


def test_a_kernel_with_too_many_buffers_is_told():
    backend = BACKENDS["WebGPU"]
    many = [Tensor.empty(64, device="METAL") for _ in range(10)]
    [call] = kernels(sum(many[1:], many[0]))
    kernel = lower(call, renderer_of(backend))
    [line] = violations(kernel, backend, dtypes.float32)
    assert line == f"{kernel.name}: buffers 11, at most 8"


def test_every_limit_is_held_against_a_kernel():
    small = Backend(*(BACKENDS["CUDA sm_80"].renderer, BACKENDS["CUDA sm_80"].target), 2, 32, 64)
    used = frozenset({dtypes.float32, dtypes.float64, dtypes.float16})
    kernel = Kernel("r_9", 3, 64, 128, (1, 70_000, 1), used, "")
    lines = list(violations(kernel, small, dtypes.float16))
    assert [line.split()[1] for line in lines] == [
        "buffers",
        "threads",
        "shared",
        "groups",
        str(dtypes.float64),
    ]


def test_source_that_is_wrong_does_not_compile():
    found = 0
    for backend in BACKENDS.values():
        if compiler := render_kernels.compiler_of(backend):
            found += 1
            with pytest.raises(render_kernels.CompileError):
                compiler("this is no kernel")
    if not found:
        pytest.skip("no compiler for a GPU here: pip install ziglang brings one")
