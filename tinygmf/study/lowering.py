"""From a line of the model to what the device runs: kernels, their source, their times.

tinygrad is lazy: an expression remains a graph until its value is needed. Then the graph is cut
into kernels, and each kernel is written in the language of the device. Only `measure` needs the
hardware: the source for any GPU can be read on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor
from tinygrad.codegen import do_linearize, full_rewrite_to_sink
from tinygrad.engine.realize import compile_linear, estimate_uop, time_call
from tinygrad.helpers import Target, ansistrip
from tinygrad.renderer import Renderer
from tinygrad.renderer.cstyle import ClangRenderer, CUDARenderer, MetalRenderer, OpenCLRenderer
from tinygrad.uop.ops import Ops, ProgramInfo, UOp

from tinygmf.engine.compile_ahead import source_of

LANGUAGES = {  # device: who writes its kernels
    "CPU": ClangRenderer,
    "METAL": MetalRenderer,
    "CUDA": CUDARenderer,
    "CL": OpenCLRenderer,
}


@dataclass(frozen=True)
class Measurement:
    """One kernel on this machine."""

    name: str  # r for a reduction, E for elementwise, then the loops' sizes
    flops: int  # additions and multiplications, one each
    bytes: int  # read and written, each buffer once
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte: if few, memory limits the speed; if many, arithmetic does."""
        return self.flops / self.bytes


def count_operations(*tensors: Tensor) -> int:
    """The nodes of the graph behind tensors that are not computed yet."""
    return len(UOp.sink(*(tensor.uop for tensor in tensors)).toposort())


def kernels(*tensors: Tensor) -> list[UOp]:
    """The kernels that would compute these tensors, in order; nothing is computed.

    The tensors count as computed afterwards: call this once, on tensors that are not needed.
    """
    schedule = Tensor.schedule_linear(*tensors)
    return [call for call in schedule.src if call.src[0].op in (Ops.SINK, Ops.PROGRAM)]


def source(kernel: UOp, device: str) -> str:
    """A kernel's source in one of `LANGUAGES`, whether or not this machine has the device. A loop
    nest (`tinygmf.loops`) is for the CPU alone."""
    renderer = _renderer(device)
    if kernel.src[0].op is Ops.PROGRAM:
        if device != "CPU":
            raise ValueError(f"device: expected CPU, as this is a loop nest, found {device!r}")
        return source_of(kernel.src[0])
    loops = full_rewrite_to_sink(kernel.src[0], renderer)
    info = ProgramInfo.from_sink(loops, renderer.target)
    program = do_linearize(renderer, UOp(Ops.PROGRAM, src=(loops,), arg=info), loops)
    return renderer.render(list(program.src[1].src))


def _renderer(device: str) -> Renderer:
    """The renderer alone, without the compiler that only machines with the device have."""
    if device not in LANGUAGES:
        raise ValueError(f"device: expected one of {', '.join(LANGUAGES)}, found {device!r}")
    renderer = object.__new__(LANGUAGES[device])
    Renderer.__init__(renderer, Target("CPU" if device == "CPU" else "NULL", arch="x86_64,x86-64"))
    return renderer


def measure(*tensors: Tensor, repeats: int = 5) -> list[Measurement]:
    """Compile and run these tensors' kernels, all of them `repeats` times in turn, and time the
    fastest run of each: when the machine is busy for a moment, one run of some is slow, not all
    runs of one."""
    calls = compile_linear(UOp(Ops.LINEAR, src=tuple(kernels(*tensors)))).src
    timers = [time_call(call) for call in calls]
    rounds = [[next(timer) for timer in timers] for _ in range(repeats)]
    rows = []
    for call, seconds in zip(calls, zip(*rounds, strict=True), strict=True):
        estimates, name = estimate_uop(call), ansistrip(call.src[0].arg.name)
        rows.append(Measurement(name, int(estimates.ops), int(estimates.mem), min(seconds)))
    return rows
