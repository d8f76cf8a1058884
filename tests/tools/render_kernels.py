"""Every kernel of a network, written for GPUs that need not be here, compiled where possible.

    python tests/tools/render_kernels.py nano miny        # a table: each network on each backend
    python tests/tools/render_kernels.py nano --training --size 32  # of a training step
    python tests/tools/render_kernels.py --everything > tests/data/kernels_by_backend.txt

tinygrad cuts a network into kernels and writes their source without the device. Each kernel is
held against its backend's limits, and one that breaks a limit is named with the line of the model
that it comes from. A compiler that pip can install compiles it:

* CUDA: NVIDIA's own, from `pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12`;
* AMD and OpenCL: the clang of `pip install ziglang`, to machine code and to LLVM's language;
* WebGPU: Dawn, from `pip install dawn-python`, opened without a GPU;
* Metal's compiler exists on a Mac alone, so its kernels are written and no more.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from tinygrad import Context, Tensor, dtypes
from tinygrad.codegen import to_program
from tinygrad.device import CompileError, Compiler
from tinygrad.dtype import AddrSpace, DType
from tinygrad.helpers import Metadata, Target, ansistrip
from tinygrad.renderer import Renderer
from tinygrad.renderer.cstyle import CUDARenderer, HIPRenderer, MetalRenderer, OpenCLRenderer
from tinygrad.renderer.wgsl import WGSLRenderer
from tinygrad.uop.ops import GroupOp, Ops, RewriteContext, UOp, all_metadata

import tinygmf
from tinygmf import GroupMixFormer
from tinygmf.config import VARIANTS
from tinygmf.engine.folded import FoldedGroupMixFormer, fold
from tinygmf.study.lowering import kernels
from tinygmf.training.gradient import GradientProgram
from tinygmf.training.update import update
from tinygmf.weights.checkpoint import state_arrays

PACKAGE = str(Path(tinygmf.__file__).parent)
LINES = 3  # of the model, that are named for a kernel
Compile = Callable[[str], None]  # raises CompileError


@dataclass(frozen=True)
class Backend:
    """A language, a GPU to write it for, and what one kernel may use there."""

    renderer: type[Renderer]
    target: Target
    buffers: int  # arguments of one kernel
    threads: int  # in a group
    shared: int  # bytes of a group's own memory
    groups: tuple[int, int, int] = (2**31 - 1, 65535, 65535)  # along x, y and z


def _apple(family: int) -> Backend:
    """Apple7 is the M1, Apple9 the M3. Source: Apple's Metal Feature Set Tables."""
    return Backend(MetalRenderer, Target("METAL", arch=f"Apple{family}"), 31, 1024, 32768)


def _amd(arch: str) -> Backend:
    """Arguments lie in memory, without a limit that matters here. Source: LLVM's AMDGPU guide."""
    return Backend(HIPRenderer, Target("AMD", arch=arch), 512, 1024, 65536)


def _cuda(arch: str) -> Backend:
    """4 KB of arguments, 48 KB of static memory. Source: the CUDA C++ Programming Guide."""
    return Backend(CUDARenderer, Target("CUDA", arch=arch), 512, 1024, 49152)


BACKENDS = {
    "Metal, M1": _apple(7),
    "Metal, M3": _apple(9),
    "AMD gfx942": _amd("gfx942"),
    "AMD gfx1100": _amd("gfx1100"),
    "AMD gfx1201": _amd("gfx1201"),
    "CUDA sm_80": _cuda("sm_80"),
    "CUDA sm_90": _cuda("sm_90"),
    # The least that OpenCL 1.2 guarantees: 1 KB of arguments; 256 threads is what AMD's driver has.
    "OpenCL": Backend(OpenCLRenderer, Target("CL", arch="cl_khr_fp16"), 128, 256, 32768),
    # What every WebGPU adapter has. Source: the specification's table of limits.
    "WebGPU": Backend(
        WGSLRenderer, Target("WEBGPU", arch="shader-f16"), 8, 256, 16384, (65535, 65535, 65535)
    ),
}


@dataclass(frozen=True)
class Kernel:
    """What one kernel uses."""

    name: str  # tinygrad's: r for a reduction, E for elementwise, then the loops' sizes
    buffers: int
    threads: int
    shared: int
    groups: tuple[Any, ...]
    dtypes: frozenset[DType]
    source: str = field(repr=False)
    key: bytes = b""  # tinygrad's, of what the kernel computes


# The kernels of a network


@dataclass(frozen=True)
class Network:
    """What is computed: one picture's logits, or a training step with a batch of four."""

    variant: str
    size: int
    dtype: DType = dtypes.float32
    training: bool = False

    def __str__(self) -> str:
        half = "" if self.dtype == dtypes.float32 else " half"
        training = " training" if self.training else ""
        return f"{self.variant}{half}{training} {self.size}x{self.size}"

    def kernels(self, device: str) -> list[UOp]:
        """The distinct kernels, as tinygrad's calls of them."""
        calls = (training_kernels if self.training else inference_kernels)(self, device)
        return list({call.src[0].key: call for call in calls}.values())


def inference_kernels(network: Network, device: str) -> list[UOp]:
    """The kernels with which the folded network classifies a picture on a device."""
    model = GroupMixFormer(VARIANTS[f"groupmixformer_{network.variant}"], seed=0)
    folded = FoldedGroupMixFormer.__new__(FoldedGroupMixFormer)  # its weights would need a device
    folded.config, folded.dtype = model.config, network.dtype
    weights = [
        Tensor.empty(
            *a.shape, dtype=network.dtype if a.ndim == 4 else dtypes.float32, device=device
        )
        for a in fold(model.config, state_arrays(model))
    ]
    x = Tensor.empty(1, 3, network.size, network.size, device=device)
    return kernels(*folded.forward(x, weights))


def training_kernels(network: Network, device: str, batch: int = 4) -> list[UOp]:
    """The kernels of a training step: of the gradient, and of the update."""
    config = VARIANTS[f"groupmixformer_{network.variant}"]
    program, found = GradientProgram(config, network.dtype), list[UOp]()

    def empty(*shape: int, dtype: DType = dtypes.float32) -> Tensor:
        return Tensor.empty(*shape, dtype=dtype, device=device)

    def schedule(*tensors: Tensor) -> Tensor:
        found.extend(kernels(*tensors))
        return tensors[0]

    layout = program.layout
    flat = [empty(layout.weights.size) for _ in range(7)]
    with mock.patch.object(Tensor, "realize", schedule), Context(SPEC=0):
        program(
            *(*flat[:2], empty(layout.statistics.size)),
            *(empty(layout.counters.size, dtype=dtypes.int64), empty(2)),
            *(empty(batch, 3, network.size, network.size), empty(batch, config.num_classes)),
            empty(2 * sum(config.serial_depths), batch),
        )
        update(*flat, empty(5))
    return found


def origins(network: Network, device: str) -> dict[bytes, str]:
    """The lines of the model that each kernel comes from, by the kernel's key.

    tinygrad notes which of Tensor's methods made a node, and hands it on to the node's gradient.
    Here the caller's line is noted too, and handed on to whatever replaces the node on its way
    into a kernel. That takes time, so it is done only where a kernel has to be named.
    """

    def located(name: str) -> Metadata:
        return Metadata(f"{name} at {_model_lines()}")

    patch = mock.patch.multiple
    with (
        patch("tinygrad.tensor", Metadata=located),
        patch("tinygrad.uop.ops", RewriteContext=_Remembering),
        mock.patch("tinygrad.tensor._METADATA.state", None),  # a method that raised leaves its name
        Context(SCACHE=0),
    ):
        return {call.src[0].key: _origin(call.src[0]) for call in network.kernels(device)}


class _Remembering(RewriteContext):
    """tinygrad's rewriting; what is known of a node is known of what it becomes."""

    def unified_rewrite(self, root: UOp) -> UOp:
        return self._remember(super().unified_rewrite(root))

    def walk_rewrite(self, root: UOp) -> UOp:
        return self._remember(super().walk_rewrite(root))

    def _remember(self, result: UOp) -> UOp:
        for old, new in self.replace.items():
            if old is not new and old in all_metadata:
                all_metadata.setdefault(new, all_metadata[old])
        return result


def _model_lines() -> str:
    """Where in tinygmf/ the present call comes from, the innermost line first."""
    frame, lines = sys._getframe(1), list[str]()
    while frame is not None and len(lines) < LINES:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE) and code.co_name != "__call__":
            lines.append(f"{Path(code.co_filename).name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "an unknown line"


def _origin(kernel: UOp) -> str:
    """What is known of the kernel's operations, those next to its result first."""
    nodes = [n for n in reversed(kernel.toposort()) if n.op in (*GroupOp.ALU, Ops.REDUCE)]
    known = [str(m) for node in nodes or kernel.toposort() for m in node.metadata or ()]
    return "; ".join(list(dict.fromkeys(known))[:LINES]) or "an unknown line"


def renderer_of(backend: Backend) -> Renderer:
    """tinygrad's writer for the backend, its compiler left out."""
    nvrtc = "cuda_nvrtc/lib/libnvrtc.so.12"
    with _packages({"NVRTC_PATH": ("nvidia", nvrtc), "CUDA_PATH": ("nvidia", "cuda_runtime")}):
        from tinygrad.runtime.support import compiler_amd, compiler_cuda
    metal = ModuleType("tinygrad.runtime.ops_metal")  # the real one can be imported on a Mac alone
    metal.MetalCompiler = Compiler
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {metal.__name__: metal}))
        for module, name in ((compiler_amd, "HIPCompiler"), (compiler_cuda, "NVRTCCompiler")):
            stack.enter_context(mock.patch.object(module, name, lambda *_, **__: Compiler()))
        return backend.renderer(backend.target)


def lower(call: UOp, renderer: Renderer) -> Kernel:
    """Optimize and write one kernel."""
    program = to_program(call.src[0], renderer)
    _, linear, source = program.src[:3]
    info, nodes = program.arg, list(linear.src)
    shared = [n for n in nodes if n.op is Ops.BUFFER and n.addrspace is AddrSpace.LOCAL]
    return Kernel(
        name=ansistrip(info.name),
        buffers=len(info.globals),
        threads=prod(info.local_size or (1,)),
        shared=sum(n.max_numel() * n.dtype.itemsize for n in shared),
        groups=tuple(info.global_size),
        dtypes=frozenset(n.dtype for n in nodes),
        source=source.arg,
        key=call.src[0].key,
    )


def violations(kernel: Kernel, backend: Backend, dtype: DType) -> Iterator[str]:
    """What the kernel asks for and the backend does not have, one line each."""
    for what in ("buffers", "threads", "shared"):
        if (used := getattr(kernel, what)) > (limit := getattr(backend, what)):
            yield f"{kernel.name}: {what} {used}, at most {limit}"
    if any(n > limit for n, limit in zip(kernel.groups, backend.groups, strict=False)):
        yield f"{kernel.name}: groups {kernel.groups}, at most {backend.groups}"
    for wrong in kernel.dtypes & ({dtypes.float64, dtypes.float16, dtypes.bfloat16} - {dtype}):
        yield f"{kernel.name}: {wrong} in a network of {dtype}"


# Compilers


def compiler_of(backend: Backend) -> Compile | None:
    """What compiles the backend's source on this machine; None if it cannot be installed."""
    device, arch = backend.target.device, backend.target.arch
    if device == "CUDA":
        return _nvrtc(arch)
    if device == "WEBGPU":
        return _dawn()
    if device == "AMD" and importlib.util.find_spec("ziglang"):
        hip = ["-x", "hip", f"--offload-arch={arch}", "--offload-device-only", "-nogpuinc"]
        return _clang([*hip, "-nogpulib", "-D__HIPCC_RTC__", "-O1", "-S"])
    if device == "CL" and importlib.util.find_spec("ziglang"):
        opencl = ["-x", "cl", "-cl-std=CL1.2", "--target=spirv64", "-cl-no-stdinc"]
        functions = ["-Xclang", "-fdeclare-opencl-builtins"]  # OpenCL's functions, not its types
        return _clang([*opencl, *functions, "-O1", "-S", "-emit-llvm"])
    return None


OPENCL_TYPES = """
typedef __SIZE_TYPE__ size_t; typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __INTPTR_TYPE__ intptr_t; typedef __UINTPTR_TYPE__ uintptr_t;
typedef unsigned char uchar; typedef unsigned short ushort;
typedef unsigned int uint; typedef unsigned long ulong; typedef uint cl_mem_fence_flags;
#define VECTOR(T, N) typedef T T##N __attribute__((ext_vector_type(N)));
#define VECTORS(T) VECTOR(T, 2) VECTOR(T, 3) VECTOR(T, 4) VECTOR(T, 8) VECTOR(T, 16)
VECTORS(char) VECTORS(uchar) VECTORS(short) VECTORS(ushort)
VECTORS(int) VECTORS(uint) VECTORS(long) VECTORS(ulong) VECTORS(float)
#ifdef HALF
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
VECTORS(half)
#endif
#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define CLK_LOCAL_MEM_FENCE 1
"""


def _clang(options: list[str]) -> Compile:
    def compile(source: str) -> None:
        if "cl" in options:
            half = "#define HALF\n" if "half" in source else ""
            source = half + OPENCL_TYPES + source
        command = [sys.executable, "-m", "ziglang", "clang", *options, "-w", "-o", os.devnull, "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr)

    return compile


@cache
def _nvrtc(arch: str) -> Compile | None:
    """NVIDIA's run-time compiler, from its packages unless the machine has one."""
    from tinygrad.runtime.support.compiler_cuda import NVRTCCompiler

    try:
        compiler = NVRTCCompiler(arch)
    except Exception:
        return None

    def compile(source: str) -> None:
        compiler.compile(source)

    return compile


@cache
def _dawn() -> Compile | None:
    """Dawn, on its adapter that computes nothing: it translates and checks all the same."""
    library = f"lib/libwebgpu_dawn_{platform.machine()}.so"
    try:
        with _packages({"WEBGPU_PATH": ("pydawn", library)}):
            from tinygrad.runtime import ops_webgpu
        with mock.patch.object(ops_webgpu, "getenv", lambda *_: "WGPUBackendType_Null"):
            device = ops_webgpu.WebGpuDevice("WEBGPU")  # not the one in tinygrad's list of devices
    except Exception:
        return None

    def compile(source: str) -> None:
        try:
            ops_webgpu.WebGPUProgram(device, SimpleNamespace(name="", lib=source.encode()))
        except RuntimeError as error:
            raise CompileError(str(error)) from None

    return compile


@contextmanager
def _packages(places: dict[str, tuple[str, str]]) -> Iterator[None]:
    """Variables that name libraries in installed packages: tinygrad looks there on import."""
    found = {}
    for variable, (package, place) in places.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder, place)).exists():
                found.setdefault(variable, str(path))
    with mock.patch.dict(os.environ, found | {k: os.environ[k] for k in found if k in os.environ}):
        yield


# The table


@dataclass
class Row:
    """One network on one backend."""

    network: Network
    backend: str
    kernels: int
    buffers: int
    threads: int
    shared: int
    compiled: int
    problems: list[str]

    def __str__(self) -> str:
        compiled = f"{self.compiled} compiled" if self.compiled else "written"
        return (
            f"{self.network!s:26} {self.backend:12} {self.kernels:7} {self.buffers:8} "
            f"{self.threads:8} {self.shared:7}   {compiled}"
        )


HEADER = f"{'network':26} {'backend':12} {'kernels':>7} {'buffers':>8} {'threads':>8} {'shared':>7}"
EVERYTHING = (
    *(
        Network("nano", size, dtype)
        for size in (32, 224)
        for dtype in (dtypes.float32, dtypes.half)
    ),
    *(Network("miny", 224, dtype) for dtype in (dtypes.float32, dtypes.half)),
    *(Network("nano", 32, dtype, training=True) for dtype in (dtypes.float32, dtypes.half)),
    *(Network("miny", 224, dtype, training=True) for dtype in (dtypes.float32, dtypes.half)),
)


@cache
def _calls(network: Network, device: str) -> list[UOp]:
    return network.kernels(device)


@cache
def _lowered(network: Network, backend_name: str) -> list[Kernel]:
    backend = BACKENDS[backend_name]
    renderer = renderer_of(backend)
    return [lower(call, renderer) for call in _calls(network, backend.target.device)]


def check(network: Network, backend_name: str, compiling: bool = True) -> Row:
    """Write all kernels of a network for a backend, hold them against its limits, compile them."""
    backend = BACKENDS[backend_name]
    found = _lowered(network, backend_name)
    problems = {k: list(violations(k, backend, network.dtype)) for k in found}
    compiler, compiled = compiler_of(backend) if compiling else None, 0
    for kernel in found if compiler else ():
        try:
            compiler(kernel.source)
            compiled += 1
        except CompileError as error:
            line = f"{kernel.name}: does not compile: {str(error).strip()[:200]}"
            problems[kernel].append(line)
    most = {name: max(getattr(k, name) for k in found) for name in ("buffers", "threads", "shared")}
    come = origins(network, backend.target.device) if any(problems.values()) else {}
    named = [
        f"{line} ({come.get(kernel.key, 'an unknown line')})"
        for kernel, lines in problems.items()
        for line in lines
    ]
    return Row(network, backend_name, len(found), **most, compiled=compiled, problems=named)


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="nano, miny, ...")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--half", action="store_true", help="half precision")
    parser.add_argument("--training", action="store_true", help="a training step")
    parser.add_argument("--everything", action="store_true", help="the committed table")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="all without it")
    args = parser.parse_args(arguments)
    dtype = dtypes.float16 if args.half else dtypes.float32
    networks = [Network(name, args.size, dtype, args.training) for name in args.variants]
    print(f"Kernels written without the hardware (tinygrad {version('tinygrad')}, {date.today()})")
    print("buffers, threads a group, bytes of shared memory: the largest of any kernel\n")
    print(HEADER)
    failed = False
    for network in EVERYTHING if args.everything else networks:
        for name in args.backend or BACKENDS:
            row = check(network, name)
            print(row, *row.problems, sep="\n  ", flush=True)
            failed |= bool(row.problems)
    return failed


if __name__ == "__main__":
    sys.exit(main())
