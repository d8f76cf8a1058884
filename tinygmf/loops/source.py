"""A loop nest as a C function.

tinygrad rewrites the graph of any kernel some thirty times, which takes it 30 milliseconds. A nest
already has the loops that it wants: here each node of its graph is visited once, in three. Indices
are summed up loop by loop, and a value that several statements need, or an inner loop, has a name.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tinygrad import dtypes
from tinygrad.dtype import AddrSpace, DType
from tinygrad.renderer import Estimates
from tinygrad.renderer.cstyle import ClangRenderer
from tinygrad.uop.ops import GroupOp, KernelInfo, Ops, ProgramInfo, UOp

from tinygmf.loops.index import (
    CORE,
    OUTSIDE,
    Indices,
    constant,
    innermost,
    repeats,
    variable_of,
)
from tinygmf.loops.pieces import number, size

OPERATORS = {
    Ops.ADD: "+", Ops.SUB: "-", Ops.MUL: "*", Ops.FDIV: "/", Ops.AND: "&", Ops.OR: "|",
    Ops.XOR: "^", Ops.SHL: "<<", Ops.SHR: ">>", Ops.CMPLT: "<", Ops.CMPNE: "!=", Ops.CMPEQ: "==",
}  # fmt: skip
STATEMENTS = {Ops.STORE, Ops.CUSTOM}
VALUES = {*GroupOp.ALU, Ops.LOAD, Ops.CAST, Ops.BITCAST}
INT_MAX = 2**31 - 1


def program(nest: UOp) -> UOp:
    """The nest with its source, as tinygrad takes it to be compiled and run."""
    function = Function(nest)
    buffers = function.buffers
    cores = [c.replace(arg=replace(c.arg, slot=len(buffers))) for c in function.cores]
    info = ProgramInfo(
        nest.arg.name,
        (function.pieces, 1, 1),
        (1, 1, 1),
        vars=tuple(cores),
        globals=tuple(node.arg.slot for node in buffers),
        outs=function.stored,
        ins=slots(function.nodes, Ops.LOAD),
    )
    memory = sum(buffer.max_numel() * buffer.dtype.itemsize for buffer in buffers)
    estimates = Estimates(function.operations, memory, memory)
    sink = UOp.sink(arg=KernelInfo(name=nest.arg.name, estimates=estimates))
    signature = UOp(Ops.LINEAR, src=(*buffers, *cores))
    return UOp(Ops.PROGRAM, src=(sink, signature, UOp(Ops.SOURCE, arg=function.text())), arg=info)


def slots(nodes: list[UOp], op: Ops) -> tuple[int, ...]:
    """The buffers that are stored to, or loaded from."""
    touched = {node.src[0].buf_uop for node in nodes if node.op is op}
    return tuple(sorted(buffer.arg.slot for buffer in touched if buffer.op is Ops.PARAM))


class Function:
    """The C function of a nest: its statements, in blocks of one loop each."""

    def __init__(self, nest: UOp) -> None:
        self.name, self.nodes = nest.arg.function_name, list(nest.toposort())
        parameters = [node for node in self.nodes if node.op is Ops.PARAM]
        self.cores = [p for p in parameters if p.arg.addrspace is AddrSpace.ALU]
        self.buffers = sorted(set(parameters) - set(self.cores), key=lambda node: node.arg.slot)
        self.registers = [node for node in self.nodes if node.op is Ops.BUFFER]
        self.stored = slots(self.nodes, Ops.STORE)
        self.names = {buffer: self.buffer_name(buffer.arg.slot) for buffer in self.buffers}
        self.names |= {array: f"r{i}" for i, array in enumerate(self.registers)}
        self.pieces = max((core.vmax + 1 for core in self.cores), default=1)
        self.blocks: dict[int, list[str]] = defaultdict(list)
        kind = "long long" if any(b.max_numel() > INT_MAX for b in self.buffers) else "int"
        self.indices = Indices(self.blocks, self.value, kind, self.pieces)
        self.operations = 0
        self.uses, self.users = self.count_uses()
        for node in self.nodes:
            self.write(node)

    def buffer_name(self, slot: int) -> str:
        return f"{'out' if slot in self.stored else 'in'}{slot or ''}"

    def text(self) -> str:
        parameters = []
        for buffer in self.buffers:
            const = "" if buffer.arg.slot in self.stored else "const "
            parameters.append(f"{const}{c_type(buffer.dtype)}* restrict {self.names[buffer]}")
        parameters += [f"const {c_type(core.dtype)} {CORE}" for core in self.cores]
        head = f"{ClangRenderer.kernel_typedef} {self.name}({', '.join(parameters)}) {{"
        arrays = [f"{c_type(r.dtype)} {self.names[r]}[{r.max_numel()}];" for r in self.registers]
        return "\n".join([head, *indented([*arrays, *self.blocks[OUTSIDE]]), "}"])

    # Which values need a name

    def count_uses(self) -> tuple[Counter[UOp], dict[UOp, set[int]]]:
        """How often each value is written out, and in which blocks."""
        uses: Counter[UOp] = Counter()
        users: dict[UOp, set[int]] = defaultdict(set)
        for node in reversed(self.nodes):
            if node.op in STATEMENTS:
                times, blocks = 1, {innermost(node)}
            elif not uses[node]:
                continue
            elif node.op is Ops.RECIPROCAL:  # never named: x / y is written as such
                times, blocks = uses[node], users[node]
            else:
                times, blocks = 1 + (node.op is Ops.MAX), {innermost(node)}
            for operand in operands(node):
                uses[operand] += times
                users[operand] |= blocks
        return uses, users

    def write(self, node: UOp) -> None:
        """Add a node's statement to its block, if it has one."""
        here = self.blocks[innermost(node)]
        if node.op is Ops.END:
            self.close(node)
        elif node.op is Ops.STORE:
            value = bare(self.value(node.src[1]))
            here.append(f"{self.place(node.src[0])} = {value};")
        elif node.op is Ops.CUSTOM:
            here.append(node.arg.format(*map(self.operand_text, node.src)))
        elif self.uses[node]:
            self.count_operations(node)
            if self.needs_name(node):
                value, name = bare(self.expression(node)), f"v{len(self.names)}"
                here.append(f"{c_type(node.dtype)} {name} = {value};")
                self.names[node] = name

    def needs_name(self, node: UOp) -> bool:
        several = self.uses[node] > 1 or self.users[node] != {innermost(node)}
        return several and node.op is not Ops.RECIPROCAL

    def count_operations(self, node: UOp) -> None:
        if node.op in GroupOp.ALU and dtypes.is_float(node.dtype):
            self.operations += self.pieces * math.prod(map(size, node.ranges))

    def close(self, node: UOp) -> None:
        """Put a loop around its block and add it to the block outside."""
        loops = sorted(filter(repeats, node.src[1:]), key=number)
        outside = [innermost(node), *map(number, loops)]
        for loop, where in reversed(list(zip(loops, outside, strict=False))):
            i = variable_of(loop)
            head = f"for ({self.indices.kind} {i} = 0; {i} < {size(loop)}; {i}++) {{"
            self.blocks[where] += [head, *indented(self.blocks.pop(number(loop))), "}"]

    # Values

    def value(self, node: UOp) -> str:
        """An expression that can stand in another one."""
        if (known := constant(node)) is not None:
            return literal(known, node.dtype)
        if node.dtype == dtypes.weakint:
            return f"({self.indices.text(node)})"
        if node.op is Ops.INDEX:
            return self.place(node)
        return self.names.get(node) or self.expression(node)

    def expression(self, node: UOp) -> str:
        if node.op is Ops.LOAD:
            return self.place(node.src[0])
        if node.op is Ops.WHERE:
            chosen = constant(node.src[0])
            if chosen is not None:
                return self.value(node.src[1 if chosen else 2])
        if node.op in (Ops.AND, Ops.OR) and node.dtype == dtypes.bool:
            known = [constant(source) for source in node.src]
            if known != [None, None]:  # the other one decides
                return self.value(node.src[known.index(None)])
        values = [self.value(source) for source in node.src]
        match node.op:
            case Ops.CAST:
                return self.cast(node, values[0])
            case Ops.BITCAST:
                return bits(node.dtype, node.src[0].dtype, values[0])
            case Ops.ADD if 0 in map(constant, node.src):
                return values[constant(node.src[0]) == 0]
            case Ops.ADD if values[1].startswith("-"):  # a number
                return f"({values[0]} - {values[1][1:]})"
            case Ops.ADD if is_negated(node.src[1]) and node.src[1] not in self.names:
                return f"({values[0]} - {self.value(node.src[1].src[0])})"
            case Ops.MAX:
                a, b = values
                return f"({a} < {b} ? {b} : {a})"
            case Ops.WHERE:
                return "({} ? {} : {})".format(*values)
            case Ops.SQRT:
                return f"__builtin_sqrtf({bare(values[0])})"
            case Ops.RECIPROCAL:
                return f"(1.0f / {values[0]})"
            case Ops.MUL if node.src[1].op is Ops.RECIPROCAL:
                return f"({values[0]} / {self.value(node.src[1].src[0])})"
            case _ if is_negated(node):
                return f"(-{values[0]})"
            case Ops.CMPNE if constant(node.src[1]) is True:
                return f"(!{values[0]})"
        if node.op not in OPERATORS:
            raise ValueError(f"{self.name}: no C for {node.op} of {node.dtype}")
        return f"({values[0]} {OPERATORS[node.op]} {values[1]})"

    def cast(self, node: UOp, value: str) -> str:
        """Clang would call a function for some casts of bfloat16."""
        before, after = node.src[0].dtype, node.dtype
        if before == dtypes.bfloat16 and after == dtypes.float32:
            upper = f"((unsigned int){bits(dtypes.ushort, before, value)} << 16)"
            return bits(after, dtypes.uint32, upper)
        if dtypes.bfloat16 in (before, after):
            raise ValueError(f"{self.name}: no C for a cast of {before} to {after}")
        return f"({c_type(after)}){value}"

    def operand_text(self, node: UOp) -> str:
        """What a C statement names: a pointer, a value or an index."""
        if node.op is Ops.INDEX:
            return f"({self.names[node.buf_uop]} + {self.offset(node)})"
        if node in self.names:
            return self.names[node]
        if node.dtype == dtypes.void or node.op is Ops.AFTER:
            return ""  # named by none: it is only computed before
        return self.value(node)

    def place(self, index: UOp) -> str:
        return f"{self.names[index.buf_uop]}[{self.offset(index)}]"

    def offset(self, index: UOp) -> str:
        """Where a value is in its buffer, which may only be viewed in another shape."""
        viewed, *places = index.src
        node = viewed
        while node.op in (Ops.AFTER, Ops.RESHAPE):
            node = node.src[0]
        if node not in self.names or len(places) != len(viewed.shape):
            raise ValueError(f"{self.name}: expected an index into memory as it is, found {viewed}")
        return self.indices.offset(places, viewed.shape)


def is_negated(node: UOp) -> bool:
    return node.op is Ops.NEG or (node.op is Ops.MUL and constant(node.src[1]) == -1)


def operands(node: UOp) -> Iterator[UOp]:
    """The values in a node's own text, as often as they are there."""
    sources = node.src
    if node.op is Ops.WHERE and (chosen := constant(node.src[0])) is not None:
        sources = node.src[1:2] if chosen else node.src[2:]
    for source in sources:
        if constant(source) is not None:
            continue
        if source.op is Ops.INDEX or source.dtype == dtypes.weakint:
            yield from operands(source)
        elif source.op in VALUES:
            yield source


def c_type(dtype: DType) -> str:
    return ClangRenderer.type_map.get(dtype, dtype.name)


def literal(value: float, dtype: DType) -> str:
    if dtypes.is_float(dtype) or dtype == dtypes.weakfloat:
        if not math.isfinite(value):
            text = '__builtin_nanf("")' if math.isnan(value) else "__builtin_inff()"
            return f"(-{text})" if value < 0 else text
        if dtype == dtypes.float64:
            raise ValueError("no C for numbers of float64")
        text = f"{np.float32(value)!s}f"
        return text if dtype in (dtypes.float32, dtypes.weakfloat) else f"({c_type(dtype)}){text}"
    return f"{int(value)}u" if dtype == dtypes.uint32 else str(int(value))


def bits(after: DType, before: DType, value: str) -> str:
    """What is shorter than an int is one while it is calculated with."""
    exact = bare(value) if before.itemsize >= 4 else f"({c_type(before)}){value}"
    return f"__builtin_bit_cast({c_type(after)}, {exact})"


def bare(text: str) -> str:
    """Without the brackets around all of it."""
    depth = 0
    for i, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text


def indented(lines: list[str]) -> list[str]:
    return ["  " + re.sub("\n", "\n  ", line) for line in lines]
