"""Matrices in panels: the products are those of the plain matrices, bit by bit."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal
from tinygrad import Tensor, TinyJit, dtypes
from tinygrad.uop.ops import Ops, UOp

from tinygmf.engine.folded import place
from tinygmf.loops import inference, panels, pieces, tiles
from tinygmf.loops.nest import Nest
from tinygmf.loops.values import add
from tinygmf.tensors import tensor_from_numpy


@pytest.mark.parametrize("name", sorted(tiles.PRODUCT))
@given(columns=st.integers(1, 300))
def test_panels_hold_every_column_in_its_place(name, columns):
    matrix = np.arange(3 * columns, dtype=np.float32).reshape(1, 1, 3, columns)
    with tiles.for_machine(registers=name):
        found = panels.cut(matrix)
        if found is matrix:
            return
        width, lanes = found.shape[-1], tiles.VECTORS[name].lanes
        assert width == tiles.panel_width(tiles.PRODUCT, columns)
        if width > columns:
            assert columns % lanes > 0 == width % lanes
            assert (found[0, 0, ..., :columns] == matrix).all() and not found[..., columns:].any()
            return
        assert tiles.best_tile(tiles.PRODUCT, 9, columns, width=width)[1] == width
    for i, panel in enumerate(found[0]):
        first = min(i * width, columns - width)
        assert (panel == matrix[..., first : first + width]).all()
    assert len(found[0]) == -(-columns // width)


CASES = {  # maps, matrix, options
    "a few tokens": ([(1, 1, 3, 20), (1, 1, 20, 130)], {}),
    "a tile and one token": ([(1, 1, 9, 20), (1, 1, 20, 130)], {}),
    "more tokens than are together": ([(2, 3, 31, 20), (1, 1, 20, 130)], {}),
    "a matrix that fills no vectors": ([(1, 1, 9, 20), (1, 1, 20, 44)], {}),
    "a matrix that stays in no cache": ([(2, 1, 9, 520), (1, 1, 520, 530)], {}),
    "a convolution with a stride": ([(2, 9, 41, 6), (3, 3, 6, 100)], {"stride": (2, 2)}),
    "three tokens at a time, from a channel on": (
        [(1, 1, 27, 30), (1, 3, 6, 101)],
        {"stride": (1, 3), "channel": 8},
    ),
}


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_product_by_panels_is_that_by_the_matrix(case, dtype):
    (shape, size), options = CASES[case]
    x = tensor_from_numpy(normal(0, *shape)).cast(dtype).contiguous()
    forms = [place(normal(1, *size), dtype, "CPU", plain) for plain in (True, False)]
    assert [panels.are_in(form) for form in forms] == [False, True]
    plain, found = (
        inference.dense(x, form, columns=size[-1], dtype=dtypes.float32, **options).numpy()
        for form in forms
    )
    assert np.abs(plain).max() > 1
    assert (found == plain).all()


def test_a_product_by_panels_is_the_same_in_any_number_of_pieces(monkeypatch):
    x, y = (tensor_from_numpy(normal(i, 1, 1, 900, size)) for i, size in enumerate((40, 130)))
    weight, bias = (
        place(normal(2, 1, 1, 40, 130), dtypes.float32, "CPU"),
        normal(3, 130),
    )
    results: list[np.ndarray] = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(pieces, "available_cores", lambda cores=cores: cores)
        total: Tensor = inference.dense(
            x, weight, tensor_from_numpy(bias), others=(y,), epilogue=add
        )
        results.append(total.numpy())
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


@pytest.mark.parametrize(("tokens", "columns"), [(3, 48), (31, 48), (31, 80), (200, 80)])
def test_while_a_panel_is_used_all_of_the_next_is_asked_for(tokens, columns):
    nest, depth = Nest(), 5
    order = panels.loops(nest, (1, 1, tokens, 1, 3), 3 * depth * columns, cut=True)
    weight = UOp.placeholder((1, 3, 1, 1, depth, columns), dtypes.float32, 0)
    (row,) = nest.loops(depth)
    part = order.place[-1]
    used = UOp.const(0)
    text, address = (s := panels.fetch_next(weight, part, order, row, used)).arg, s.src[1]

    lines = set()
    for turn, k in product(range(order.turns), range(depth)):
        at = {order.turn: order.turn.const_like(turn), row: row.const_like(k)}
        first = int(address.substitute(at | {part: part.const_like(1)}).simplify().val)
        lines |= {first + 16 * i for i in range(text.count("prefetch"))}
    whole = depth * columns
    assert lines >= set(range(2 * whole, 3 * whole, 16))  # of the third panel
    assert all(whole <= line < 3 * whole for line in lines)  # else those of the second


@pytest.mark.parametrize("size", [1, 3])
def test_the_next_panel_is_asked_for_in_a_product_but_not_for_every_row_of_a_picture(size):
    x, weight = tensor_from_numpy(normal(0, 1, 9, 31, 6)), normal(1, size, size, 6, 130)
    matrix = place(weight, dtypes.float32, "CPU").realize()
    product = TinyJit(lambda x: inference.dense(x, matrix, columns=130).realize())
    for _ in range(2):  # the second is captured
        product(x)
    nodes = [node for call in product.captured.linear.src for node in call.src[0].src]
    (source,) = (node.arg for node in nodes if node.op is Ops.SOURCE)
    assert ("__builtin_prefetch" in source) == (size == 1)
