"""The same network for the browser's WebGPU: a shader for each kernel, and the calls in order.

tinygrad writes WGSL even where there is no GPU and no WebGPU. Weights and maps have the same names
as in the WebAssembly program, so the page can pass values between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinygrad import Context, Tensor, dtypes
from tinygrad.codegen import to_program
from tinygrad.helpers import Target
from tinygrad.renderer.wgsl import WGSLRenderer
from tinygrad.uop.ops import UOp

from tinygmf.engine.compile_ahead import source_of
from tinygmf.export.program import Call, find_maps, plain_weights
from tinygmf.study.lowering import kernels
from tinygmf.weights.checkpoint import NetworkWeights

DEVICE = "WEBGPU"
MOST_BUFFERS = 8  # of one shader, on every adapter


def capture_shaders(network: NetworkWeights, size: int, maps: Sequence[str]) -> dict[str, object]:
    """`shaders`, WGSL; `calls`, [shader, groups along x, y and z, arguments]; `sizes` of values, in
    floats; `maps`, the value of each checkpoint name. ValueError if a kernel cannot be a shader.
    """
    folded, weights = plain_weights(network)
    x = Tensor.empty(1, 3, size, size, device=DEVICE)
    tensors = [Tensor.empty(*w.array.shape, device=DEVICE) for w in weights]
    with Context(NO_MEMORY_PLANNER=1):
        logits = folded.forward(x, tensors)[-1].contiguous()
        calls = kernels(logits)
    names = {x.uop.base: "input", calls[-1].src[1].base: "output"}
    names |= {t.uop.base: w.name for t, w in zip(tensors, weights, strict=True)}
    shaders: dict[str, int] = {}
    rows, sizes, plain = [], {}, []
    for call in calls:
        source, groups, arguments = shader(call)
        for buffer in arguments:
            name = names.setdefault(buffer, f"value{len(names)}")
            sizes[name] = buffer.max_numel()
        used = [names[buffer] for buffer in arguments]
        rows.append([shaders.setdefault(source, len(shaders)), groups, used])
        plain.append(Call("", tuple(used)))
    found = find_maps(plain, weights)
    kept = {name: found[name][0] for name in maps}
    return {"shaders": list(shaders), "calls": rows, "sizes": sizes, "maps": kept}


def shader(call: UOp) -> tuple[str, list[int], list[UOp]]:
    """A kernel's WGSL, its groups of threads, and its buffers, the result first."""
    program = to_program(call.src[0], WGSLRenderer(Target(DEVICE)))
    info = program.arg
    arguments = [call.src[1 + i].base for i in info.globals]
    kinds = {buffer.dtype for buffer in arguments}
    if kinds != {dtypes.float32} or info.outs != (0,) or len(arguments) > MOST_BUFFERS:
        raise ValueError(f"kernel {info.name}: expected one result and few buffers, all float32")
    name = info.function_name
    source = source_of(program).replace(f"fn {name}(", "fn main(")
    return source, list(info.global_size), arguments
