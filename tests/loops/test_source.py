"""The C function of a loop nest computes what tinygrad's own lowering of the nest does."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal
from tinygrad import dtypes
from tinygrad.uop.ops import UOp

from tinygmf.loops import inference, norms, padding, products, values
from tinygmf.loops.nest import Nest, kernel, load, put, store
from tinygmf.loops.source import Function, program
from tinygmf.tensors import tensor_from_numpy

NESTS = {  # the shapes of the buffers, with the result first, and the options
    "a stride and an odd size": (
        partial(inference.dense_loops, others=0, stride=(2, 2), channel=0, blocks=1),
        [(2, 5, 7, 20), (2, 11, 15, 3), (3, 3, 3, 20), (20,)],
        {"epilogue": values.hardswish},
    ),
    "blocks and panels": (
        partial(inference.dense_loops, others=1, stride=(1, 1), channel=4, blocks=2),
        [(1, 1, 9, 16), (1, 1, 9, 24), (1, 1, 16, 16), (1, 1, 9, 16)],
        {"epilogue": values.add},
    ),
    "zeros around": (padding.pad_loops, [(1, 9, 8, 3), (1, 3, 3, 3)], {"rim": 2, "apart": 2}),
    "gelu": (inference.apply_loops, [(3, 40), (3, 40)], {"function": values.gelu}),
    "softmax": (inference.softmax_loops, [(2, 7, 40), (2, 7, 120)], {"channel": 40}),
    "LayerNorm": (
        inference.layernorm_loops,
        [(1, 1, 6, 8), (1, 1, 6, 8), (8,), (8,)],
        {"eps": 1e-5, "epilogue": values.hardswish},
    ),
    "several results": (
        norms.layernorm,
        [(6, 20), (6, 2), (6, 20), (2, 20)],
        {"eps": 1e-6, "act": True},
    ),
    "sums over a batch": (
        norms.batchnorm_back,
        [(2, 3, 4, 10), (2, 10), (2, 3, 4, 10), (2, 3, 4, 10), (2, 10), (2, 10), (1,)],
        {"act": True},
    ),
    "phases of a stride": (
        products.dense,
        [(1, 6, 8, 16), (1, 5, 6, 24), (3, 3, 24, 16)],
        {"stride": 2, "back": True},
    ),
    "a weight's gradient": (
        products.dense_weight,
        [(3, 3, 8, 12), (2, 9, 9, 8), (2, 4, 4, 12), (1,)],
        {"stride": 2},
    ),
}


def by_tinygrad_and_by_source(nest, shapes) -> list[np.ndarray]:
    """The first buffer, after tinygrad's own program and after ours."""
    arrays = [normal(i, *shape) for i, shape in enumerate(shapes)]
    found = []
    for build in (nest, lambda *buffers: program(nest(*buffers))):
        out, *others = (tensor_from_numpy(array, "CPU") for array in arrays)
        found.append(out.custom_kernel(*others, fxn=build)[0].numpy())
    return found


@pytest.mark.parametrize("name", NESTS)
def test_the_source_computes_what_tinygrad_does(name):
    nest, shapes, options = NESTS[name]
    expected, found = by_tinygrad_and_by_source(partial(nest, **options), shapes)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


SIZES = (3, 5, 4)  # of the loops that an index is made of


def indices() -> st.SearchStrategy:
    """An index as a function of the loops' variables, for UOps and NumPy arrays alike."""
    variable = st.integers(0, 2).map(lambda n: lambda *loops: loops[n])
    by, number = st.integers(1, 7), st.integers(-9, 9)

    def grow(inner: st.SearchStrategy) -> st.SearchStrategy:
        def unary(function):
            return lambda pair: lambda *loops: function(pair[0](*loops), pair[1])

        def binary(function):
            return lambda pair: lambda *loops: function(pair[0](*loops), pair[1](*loops))

        return st.one_of(
            st.tuples(inner, inner).map(binary(lambda x, y: x + y)),
            st.tuples(inner, number).map(unary(lambda x, n: x * n + n)),
            st.tuples(inner, by).map(unary(lambda x, n: x // n)),
            st.tuples(inner, by).map(unary(lambda x, n: x % n)),
            st.tuples(inner, inner).map(binary(smaller)),
            st.tuples(inner, number).map(unary(larger)),
        )

    return st.recursive(variable, grow, max_leaves=6)


def smaller(x, y):
    return x.minimum(y) if isinstance(x, UOp) else np.minimum(x, y)


def larger(x, y):
    return x.maximum(y) if isinstance(x, UOp) else np.maximum(x, y)


@settings(max_examples=25)
@given(st.lists(indices(), min_size=8, max_size=8))
def test_an_index_has_the_value_that_python_computes(functions):
    def nest(out: UOp) -> UOp:
        loops = Nest().loops(*SIZES)
        stores = [
            put(out, (n, *loops), f(*loops).cast(dtypes.float32)) for n, f in enumerate(functions)
        ]
        return kernel("indices", UOp.group(*stores).end(*loops))

    out = tensor_from_numpy(np.zeros((len(functions), *SIZES), np.float32), "CPU")
    found = out.custom_kernel(fxn=lambda out: program(nest(out)))[0].numpy()
    grid = np.indices(SIZES)
    np.testing.assert_array_equal(found, [f(*grid) for f in functions])


def source(nest, *shapes: tuple[int, ...]) -> str:
    buffers = [UOp.placeholder(shape, dtypes.float32, i) for i, shape in enumerate(shapes)]
    return Function(nest(*buffers)).text()


def test_what_an_inner_loop_does_not_change_is_computed_outside_it():
    def nest(out: UOp, x: UOp) -> UOp:
        i, j = loops = Nest().loops(3, 8)
        return store("twice", out, (i, j), load(x, i) * 2 + load(x, i), *loops)

    assert (
        source(nest, (3, 8), (3,)).partition("\n")[2]
        == """\
  for (int i0 = 0; i0 < 3; i0++) {
    float v2 = in1[i0];
    float v3 = (v2 * 2.0f) + v2;
    int a0 = i0*8;
    for (int i1 = 0; i1 < 8; i1++) {
      out[a0 + i1] = v3;
    }
  }
}"""
    )


def test_a_difference_is_one_of_its_own_terms_alone():
    """A term that starts with a minus is not one that is subtracted."""

    def nest(out: UOp, x: UOp) -> UOp:
        (i,) = loops = Nest().loops(8)
        y = load(x, i)
        least = UOp.const(-0.5, dtypes.float32)
        return store("terms", out, (i,), (y - 2 * y) + (y + least.maximum(y)), *loops)

    expected, found = by_tinygrad_and_by_source(nest, [(8,), (8,)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_loop_of_one_turn_is_not_written():
    def nest(out: UOp, x: UOp) -> UOp:
        i, j = loops = Nest().loops(1, 8)
        return store("copy", out, (i, j), load(x, i, j), *loops)

    assert source(nest, (1, 8), (1, 8)).count("for (") == 1


def test_an_index_beyond_an_axis_of_one_element_is_refused():
    def nest(out: UOp, x: UOp) -> UOp:
        i, j = loops = Nest().loops(2, 8)
        return store("copy", out, (i, j), load(x, i, j), *loops)

    with pytest.raises(ValueError, match="an axis of one element: expected index 0"):
        source(nest, (2, 8), (1, 8))


def test_an_operation_without_c_is_refused():
    def nest(out: UOp, x: UOp) -> UOp:
        (i,) = loops = Nest().loops(8)
        return store("sine", out, (i,), load(x, i).sin(), *loops)

    with pytest.raises(ValueError, match=r"sine: no C for Ops\.SIN"):
        source(nest, (8,), (8,))


def test_a_program_says_what_it_reads_and_writes_and_how_much_it_computes():
    def nest(out: UOp, x: UOp) -> UOp:
        i, j = loops = Nest().loops(4, 8)
        return kernel("add", put(out, (i, j), load(x, j) * 2, adding=True).end(*loops))

    buffers = [UOp.placeholder(shape, dtypes.float32, i) for i, shape in enumerate([(4, 8), (8,)])]
    found = program(nest(*buffers))
    assert (found.arg.outs, found.arg.ins, found.arg.globals) == ((0,), (0, 1), (0, 1))
    assert found.src[0].arg.estimates.ops == 8 + 32  # one product serves a column
    assert found.src[0].arg.estimates.mem == 4 * (32 + 8)
