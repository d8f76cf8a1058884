"""Kernels that are compiled together compute what each does alone."""

import platform
from functools import partial

import numpy as np
import pytest
from strategies import normal
from tinygrad import Device, dtypes
from tinygrad.uop.ops import Ops, UOp

from tinygmf.engine.compile_ahead import source_of
from tinygmf.engine.object_file import compile_all, in_section
from tinygmf.loops import inference, padding
from tinygmf.loops.source import program
from tinygmf.loops.values import gelu, hardswish
from tinygmf.tensors import tensor_from_numpy

NESTS = {  # the nest, and the shapes of its buffers
    "constants": (partial(inference.apply_loops, function=gelu), [(6, 40)] * 2),
    "the same ones": (partial(inference.softmax_loops, channel=8), [(1, 9, 8), (1, 9, 24)]),
    "others": (
        partial(inference.layernorm_loops, eps=1e-5, epilogue=hardswish),
        [(1, 1, 6, 8), (1, 1, 6, 8), (8,), (8,)],
    ),
    "none": (partial(padding.pad_loops, rim=1), [(1, 5, 6, 3), (1, 3, 4, 3)]),
}
ELF = b"\x7fELF"


def built(name: str) -> UOp:
    nest, shapes = NESTS[name]
    return program(nest(*(UOp.placeholder(s, dtypes.float32, i) for i, s in enumerate(shapes))))


def result(name: str, library: bytes) -> np.ndarray:
    found = built(name)
    found = found.replace(src=(*found.src, UOp(Ops.BINARY, arg=library)))
    arrays = (normal(i, *shape) for i, shape in enumerate(NESTS[name][1]))
    out, *others = (tensor_from_numpy(array, "CPU") for array in arrays)
    return out.custom_kernel(*others, fxn=lambda *buffers: found)[0].numpy()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one by one elsewhere")
def test_kernels_compiled_together_compute_what_each_does_alone():
    compiler, sources = Device["CPU"].compiler, [source_of(built(name)) for name in NESTS]
    together = compile_all(compiler, sources)
    assert not any(library.startswith(ELF) for library in together)
    for name, source, library in zip(NESTS, sources, together, strict=True):
        [alone] = compile_all(compiler, [source])
        assert alone.startswith(ELF)
        np.testing.assert_array_equal(result(name, library), result(name, alone))


def test_a_function_of_another_calling_convention_gets_its_section_too():
    """As all are on Windows."""
    head = in_section(3, "__attribute__((ms_abi)) void twice(float* out) {}")
    section = '__attribute__((section(".text.kernel3")))'
    assert head == f"__attribute__((ms_abi)) {section} void kernel3(float* out) {{}}"


def test_a_kernel_that_calls_a_function_is_compiled_by_itself():
    clear = "void clear(char* out, long n) { for (long i = 0; i < n; i++) out[i] = 0; }"
    call = "void more(char* out, long n) { extern void other(char*, long); other(out, n); }"
    libraries = compile_all(Device["CPU"].compiler, [clear, call])
    assert all(library.startswith(ELF) for library in libraries)
