"""A kernel cut into pieces: together they do what the whole kernel does."""

import numpy as np
import pytest
from strategies import normal
from tinygrad import Tensor
from tinygrad.uop.ops import Ops, UOp

from tinygmf.loops import norms, pieces, products
from tinygmf.loops.calls import run
from tinygmf.loops.tiles import for_machine
from tinygmf.tensors import tensor_from_numpy


def pieces_of(kernel, *shapes: tuple[int, ...], **options) -> int:
    """How many pieces a kernel of buffers of these shapes has."""
    buffers = [UOp.placeholder_like(Tensor.empty(*s).uop, slot=i) for i, s in enumerate(shapes)]
    nodes = kernel(*buffers, **options).toposort()
    cores = [node for node in nodes if node.op is Ops.PARAM and node.arg.name == "core_id"]
    return 1 + sum(int(core.vmax) for core in cores)


@pytest.mark.parametrize("cores", [1, 2, 3, 5])
def test_a_kernel_that_adds_to_its_output_adds_once_for_any_number_of_pieces(cores, monkeypatch):
    monkeypatch.setattr(pieces, "available_cores", lambda: cores)
    x, g, there = normal(0, 1, 9, 16, 40), normal(1, 1, 9, 16, 60), normal(2, 1, 1, 40, 60)
    out, share = tensor_from_numpy(there), tensor_from_numpy(np.float32([0.5]))
    inputs = [tensor_from_numpy(x), tensor_from_numpy(g), share]
    found = run(products.dense_weight, out, *inputs).numpy()
    expected = there[0] + 0.5 * x.reshape(-1, 40).T @ g.reshape(-1, 60)
    assert np.abs(found - expected).max() < 1e-4


def test_a_loop_is_cut_into_no_more_pieces_than_divide_it_where_pieces_may_not_overlap(monkeypatch):
    monkeypatch.setattr(pieces, "available_cores", lambda: 4)
    shapes = (1, 1, 160, 80), (1, 14, 14, 160), (1, 14, 14, 80), (1,)
    assert pieces_of(products.dense_weight, *shapes) in (2, 4)


def test_a_program_for_elsewhere_is_cut_for_the_cores_there(monkeypatch):
    monkeypatch.setattr(pieces, "available_cores", lambda: 2)
    shapes = (1, 1, 160, 80), (1, 14, 14, 160), (1, 14, 14, 80), (1,)
    for cores in (1, 4):
        with for_machine(cores):
            assert pieces_of(products.dense_weight, *shapes) == cores
    assert pieces_of(products.dense_weight, *shapes) == 2


def test_a_kernel_that_leaves_a_buffer_unused_is_cut_too(monkeypatch):
    """Its `core_id` must not take the place of its last buffer."""
    monkeypatch.setattr(pieces, "available_cores", lambda: 2)
    shapes = (2, 80), (256, 80), (256, 80), (2, 80), (256, 2), (1,)
    assert pieces_of(norms.layernorm_weight, *shapes, act=True) == 2
    assert pieces_of(norms.layernorm_weight, *shapes, act=False) == 2
    out, *inputs = [tensor_from_numpy(normal(i, *shape)) for i, shape in enumerate(shapes)]
    before, (x, g, _, found, share) = out.numpy(), [tensor.numpy() for tensor in inputs]
    learned = run(norms.layernorm_weight, out, *inputs, act=False).numpy()
    rows = (x - found[:, :1]) * found[:, 1:]
    expected = before + share * np.stack([(g * rows).sum(0), g.sum(0)])
    assert np.abs(learned - expected).max() < 1e-3 * np.abs(expected).max()
