"""Running a captured program with as little Python as possible.

tinygrad looks up every kernel and every argument in every run; a network has hundreds of each.
"""

from __future__ import annotations

from typing import Any

from tinygrad import Tensor
from tinygrad.device import Buffer
from tinygrad.engine.realize import get_runtime, resolve_params
from tinygrad.uop.ops import Ops, UOp

from tinygmf.engine.runner import Kernel, runner_of
from tinygmf.tensors import on_cpu


class Launcher:
    """A captured program (`TinyJit`) bound to its arguments, to be run again and again.

    In every run tinygrad spends some 30 microseconds on each kernel and 40 on each argument: on the
    CPU as long as the kernels take. Here the arguments are looked up once, and on the CPU device a
    run is one native call that uses all cores: `runner`. The result is always the same tensor,
    overwritten by the next run; new input is written into the memory of the first argument.
    """

    def __init__(self, program: Any, *arguments: Tensor | list[Tensor]) -> None:
        self.captured = program.captured
        tensors = [one for one in arguments if isinstance(one, Tensor)]  # as tinygrad numbers them
        tensors += [one for many in arguments if isinstance(many, list) for one in many]
        self.inputs = [tensor.uop.base for tensor in tensors]
        self.buffers: dict[UOp, Buffer] = {}  # keeps them alive, as the calls hold only addresses
        calls = self.captured.linear.src
        self.native = all(call.src[0].op is Ops.PROGRAM and _on_cpu(call) for call in calls)
        self.kernels = [self._prepare(call) for call in calls] if self.native else []
        self.run = runner_of(self.kernels)

    def __call__(self) -> Any:
        if not self.native:
            return self.captured(self.inputs, {})
        self.run()
        return self.captured.ret

    def _prepare(self, call: UOp) -> Kernel:
        """What tinygrad's `exec_kernel` and the CPU device's `Program` do in every call."""
        program, resolved = call.src[0], resolve_params(call, tuple(self.inputs))
        buffers = [self._buffer(resolved[i]) for i in program.arg.globals]
        runtime = get_runtime(buffers[0].device, program)
        words = [buffer._buf.va_addr for buffer in buffers] + list(program.arg.vals({}))
        if (place := runtime.runtimevars.get("core_id")) is None:
            return Kernel(runtime, [words])
        cores = range(program.arg.global_size[0])
        return Kernel(runtime, [[*words[:place], core, *words[place + 1 :]] for core in cores])

    def _buffer(self, argument: UOp) -> Buffer:
        if argument not in self.buffers:
            self.buffers[argument] = argument.buffer.ensure_allocated()
        return self.buffers[argument]


def _on_cpu(call: UOp) -> bool:
    return on_cpu(call.src[1].device)
