"""The compiled network as plain data: kernels, calls in order, weights, and a memory plan.

tinygrad captures the folded network as a list of calls to kernels in C. Here each result gets a
place in an arena, shared by results that are never alive at the same time, and each call gets the
name of the part of the network that it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tinygrad import Context, Tensor
from tinygrad.uop.ops import Ops, UOp

from tinygmf.config import STAGES, GroupMixFormerConfig
from tinygmf.engine import program_cache
from tinygmf.engine.compile_ahead import source_of
from tinygmf.engine.folded import BlockWeights, FoldedGroupMixFormer
from tinygmf.loops.tiles import for_machine
from tinygmf.model import MIN_SIZE
from tinygmf.tensors import tensor_from_numpy
from tinygmf.weights.checkpoint import NetworkWeights

ALIGNMENT = 16  # floats: 64 bytes, a line of most caches and the widest vector
MAPS = {  # the results that can be kept, by the weight of the call that makes them
    "stem1": "conv_stem.act1",
    "stem2": "conv_stem.act2",
    "pointwise": "{}.act",
    "cpe": "{}.cpe",
    "qkv": "{}.att.qkv",
    "mix": "{}.att.aggregator",  # (B, N, 3, 4D/5): queries, keys and values
    "fifth_weight": "{}.att.aggregator.agg0",
    "crpe": "{}.att.crpe.conv_list",
    "proj_heads": "{}.cpe+att",  # the block's tokens between attention and MLP
    "fc1": "{}.mlp.fc1",
    "fc2": "{}",
}


@dataclass(frozen=True)
class Weight:
    """A folded array, its name in C, and the part of the network that it belongs to."""

    name: str
    part: str  # a checkpoint's prefix
    field: str  # its role there
    array: np.ndarray


@dataclass(frozen=True)
class Call:
    """A kernel and the names of its arguments, the result first: "input", "output", the name of a
    weight, or that of a value in `Program.offsets`. A kernel in several pieces is called once for
    each, in any order."""

    kernel: str
    arguments: tuple[str, ...]
    pieces: int = 1
    part: str = ""


@dataclass(frozen=True)
class Map:
    """An intermediate (B, N, channels) that stays in the arena after a run. The calls from `next`
    on can run again with other values in it; 0 if they need something that does not stay."""

    name: str
    offset: int
    size: int
    channels: int
    next: int


@dataclass(frozen=True)
class Program:
    """A network for one picture size. Sizes and offsets are numbers of floats."""

    network: NetworkWeights
    size: int
    batch: int
    kernels: dict[str, str]  # C functions by name
    calls: list[Call]
    weights: list[Weight]
    sizes: dict[str, int]  # of the values in the arena
    offsets: dict[str, int]
    arena: int
    maps: list[Map]


def capture(
    network: NetworkWeights,
    size: int,
    batch: int = 1,
    maps: Sequence[str] = (),
    threads: int = 1,
    registers: str | None = None,
) -> Program:
    """Compile the folded network for `batch` pictures of size x size, in plain loops.

    `maps` are checkpoint names of intermediates to keep; large kernels are split into at most
    `threads` pieces, with tiles for `registers`, by default this machine's. Raises ValueError for a
    size below 32, a name that is not an intermediate, or an ablation.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size: expected at least {MIN_SIZE} pixels, found {size}")
    folded, weights = plain_weights(network)
    x = tensor_from_numpy(np.zeros((batch, 3, size, size), np.float32), "CPU")

    def logits(x: Tensor, weights: list[Tensor]) -> Tensor:
        return folded.forward(x, weights)[-1]

    with Context(NO_MEMORY_PLANNER=1, NOOPT=1), for_machine(threads, registers):
        jit: Any = program_cache.compile_program(logits, x, folded.weights, progress=False)
    kernels, calls, sizes = read_calls(jit.captured.linear.src, jit.captured.ret.uop.base, weights)
    known = find_maps(calls, weights)
    if unknown := [name for name in maps if name not in known]:
        raise ValueError(f"map {unknown[0]!r}: expected one of {', '.join(known)}")
    held = {known[name][0] for name in maps}
    offsets, arena = plan(calls, sizes, held)
    after = next_calls(calls, held)
    kept = [Map(name, offsets[v], sizes[v], c, after[v]) for name in maps for v, c in [known[name]]]
    return Program(network, size, batch, kernels, calls, weights, sizes, offsets, arena, kept)


def plain_weights(network: NetworkWeights) -> tuple[FoldedGroupMixFormer, list[Weight]]:
    """The folded network, with matrices that are not in panels, and its weights by name."""
    folded = FoldedGroupMixFormer(network.config, network.arrays, device="CPU", plain=True)
    arrays = [tensor.numpy() for tensor in folded.weights]
    return folded, list(name_weights(network.config, arrays))


def name_weights(config: GroupMixFormerConfig, arrays: Sequence[np.ndarray]) -> Iterator[Weight]:
    """The arrays of `folded.fold`, in its order."""
    names = [("conv_stem", "", f"stem{i}{end}") for i in (1, 2) for end in ("", "_bias")]
    for stage in range(STAGES):
        part, prefix = f"patch_embed_layers.{stage}", f"stage{stage}_"
        names += [(part, prefix, field) for field in ("windows", "pointwise", "bias", "mask")]
        for j in range(config.serial_depths[stage]):
            block = f"groupmixformer_backbone.{stage}.gma_stage.{j}"
            names += [(block, f"{prefix}block{j}_", field) for field in BlockWeights._fields]
    names += [("head", "", "head"), ("head", "", "head_bias")]
    for (part, prefix, field), array in zip(names, arrays, strict=True):
        yield Weight(prefix + field, part, field, array)


def read_calls(
    linear: Sequence[UOp], output: UOp, weights: list[Weight]
) -> tuple[dict[str, str], list[Call], dict[str, int]]:
    """Kernels by name, the calls, and the sizes of all values except input and output."""
    kernels: dict[str, str] = {}
    names: dict[bytes, str] = {}
    values: dict[UOp, str] = {output: "output"}
    calls = []
    for call in linear:
        program, arguments = call.src[0], call.src[1:]
        if program.key not in names:
            name, source = kernel_source(program, kernels)
            names[program.key], kernels[name] = name, source
        for buffer in arguments:
            if buffer.op is Ops.PARAM:
                slot = buffer.arg.slot
                values[buffer] = weights[slot - 1].name if slot else "input"
            values.setdefault(buffer, f"value{len(values)}")
        named = tuple(values[buffer] for buffer in arguments)
        calls.append(Call(names[program.key], named, program.arg.global_size[0]))
    inner = {b: name for b, name in values.items() if b.op is Ops.BUFFER and b is not output}
    return kernels, name_parts(calls, weights), {n: b.max_numel() for b, n in inner.items()}


def kernel_source(program: UOp, taken: Iterable[str]) -> tuple[str, str]:
    """An unused name that says what the kernel does, and its C."""
    info, name = program.arg, program.arg.name
    found = re.fullmatch(rf"void {name}\((.*)", source_of(program), re.S)
    pieces = [variable.arg.name for variable in info.vars] == ["core_id"] * len(info.vars)
    if found is None or info.outs != (0,) or not pieces or set(info.global_size[1:]) != {1}:
        raise ValueError(f"kernel {name}: expected a single plain C function, found another")
    same = sum(re.fullmatch(rf"{name}(_v\d+)?", other) is not None for other in taken)
    name = f"{name}_v{same + 1}" if same else name
    return name, f"void {name}({found[1]}"


def name_parts(calls: list[Call], weights: list[Weight]) -> list[Call]:
    """Name each call's part after its weights, or else after the first call that reads its result.
    Masks do not count, because all blocks of a stage share one."""
    own = {weight.name: weight.part for weight in weights if weight.field != "mask"}
    wanted: dict[str, str] = {}
    named = []
    for call in reversed(calls):
        out, *inputs = call.arguments
        part = next((own[name] for name in inputs if name in own), wanted.get(out, ""))
        wanted |= dict.fromkeys(inputs, part)
        named.append(replace(call, part=part))
    return named[::-1]


def find_maps(calls: list[Call], weights: list[Weight]) -> dict[str, tuple[str, int]]:
    """The value and the channels of every intermediate with a checkpoint name."""
    known = {weight.name: weight for weight in weights}
    found = {}
    for call in calls:
        first = next((known[name] for name in call.arguments if name in known), None)
        if first is not None and first.field in MAPS:
            name = MAPS[first.field].format(first.part)
            found[name] = call.arguments[0], first.array.shape[-1]
    return found


def lifetimes(calls: list[Call]) -> dict[str, tuple[int, int]]:
    """For each argument the first and the last call that has it."""
    alive: dict[str, tuple[int, int]] = {}
    for i, call in enumerate(calls):
        for name in call.arguments:
            alive[name] = alive.get(name, (i, i))[0], i
    return alive


def next_calls(calls: list[Call], held: set[str]) -> dict[str, int]:
    """For each held value the call after the one that completes it, if everything made before and
    read after that call is held too; else 0."""
    made = {call.arguments[0]: i for i, call in enumerate(calls, 1)}  # of the call after it
    passing = [span for name, span in lifetimes(calls).items() if name in made and name not in held]
    lost = {i for first, last in passing for i in range(first + 1, last + 1)}
    return {name: 0 if made[name] in lost else made[name] for name in held}


def plan(
    calls: list[Call], sizes: dict[str, int], held: Iterable[str] = ()
) -> tuple[dict[str, int], int]:
    """An offset for every value, and the arena's size. Values are placed largest first, each at the
    lowest offset that is free while it is alive. Values in `held` live to the end."""
    alive = {name: span for name, span in lifetimes(calls).items() if name in sizes}
    for name in held:
        alive[name] = alive[name][0], len(calls)
    offsets: dict[str, int] = {}
    for name in sorted(alive, key=lambda name: -sizes[name]):
        first, last = alive[name]
        offset = 0
        for other in sorted(offsets, key=offsets.__getitem__):
            start, end = alive[other]
            apart = last < start or end < first or offset + sizes[name] <= offsets[other]
            if not apart:
                offset = max(offset, round_up(offsets[other] + sizes[other]))
        offsets[name] = offset
    return offsets, max(round_up(offsets[name] + sizes[name]) for name in offsets)


def round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
