"""From a line of the model to its kernels: counted and written without the device they are for."""

import numpy as np
import pytest
from tinygrad import Tensor

from tinygmf.gma import linear_attention
from tinygmf.loops.inference import layernorm
from tinygmf.study import lowering
from tinygmf.study.lowering import LANGUAGES, count_operations, kernels, measure, source


@pytest.fixture(scope="module")
def parts():
    """The core of the attention for 8 heads, 16 tokens, 4 channels."""
    attended = linear_attention(*(Tensor.empty(1, 8, 16, 4) for _ in range(3)))
    assert count_operations(attended) > 20
    return kernels(attended)


def test_attention_is_four_kernels(parts):
    assert len(parts) == 4


@pytest.mark.parametrize(
    ("device", "word"),
    [("CPU", "restrict"), ("METAL", "kernel void"), ("CUDA", "__global__"), ("CL", "__kernel")],
)
def test_every_language_can_be_written_here(parts, device, word):
    assert device in LANGUAGES
    text = source(parts[3], device)
    assert word in text and text.count("{") == text.count("}")


def test_a_loop_nest_is_c_and_nothing_else():
    x = Tensor(np.ones((1, 1, 6, 8), np.float32), device="CPU").realize()
    [nest] = kernels(layernorm(x, eps=1e-6))
    assert source(nest, "CPU").startswith("void layernorm_48_8(")
    with pytest.raises(ValueError, match="expected CPU, as this is a loop nest, found 'METAL'"):
        source(nest, "METAL")


def test_a_language_that_is_not_there_is_a_one_line_error(parts):
    with pytest.raises(ValueError, match="expected one of CPU, METAL, CUDA, CL, found 'ABACUS'"):
        source(parts[0], "ABACUS")


def test_a_chain_of_elementwise_steps_is_one_kernel_with_its_cost():
    a, b = Tensor.ones(1024).clone().realize(), Tensor.ones(1024).clone().realize()
    [row] = measure(a * b + a, repeats=2)
    assert (row.flops, row.bytes) == (2 * 1024, 3 * 1024 * 4)
    assert row.seconds > 0 and row.intensity == row.flops / row.bytes


def test_kernels_are_timed_in_turn(monkeypatch):
    """Other load then slows one run of several kernels, not all runs of one."""
    order = []

    def timer(call):
        while True:
            order.append(call)
            yield float(len(order))

    monkeypatch.setattr(lowering, "time_call", timer)
    rows = measure(linear_attention(*(Tensor.empty(1, 8, 16, 4) for _ in range(3))), repeats=3)
    first = order[: len(rows)]
    assert len(set(first)) == len(rows) == 4 and order == 3 * first
    assert [row.seconds for row in rows] == [1, 2, 3, 4]
