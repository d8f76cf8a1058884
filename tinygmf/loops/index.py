"""The indices of a loop nest: sums of its loops' variables, each times a factor.

What an inner loop does not change is summed up once, in a variable outside it. Rounded quotients
and the smaller or larger of two sums become variables too, unless their bounds decide.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from tinygrad import dtypes
from tinygrad.uop.ops import Ops, UOp

from tinygmf.loops.pieces import number, size

CORE = "piece"
OUTSIDE = -1  # the block outside all loops; that of a loop has its number


class Variable(NamedTuple):
    """An integer of the function: a loop's, or one that is computed from others."""

    block: int
    least: int
    most: int


class Sum(NamedTuple):
    """An index: a constant plus variables, each times a factor."""

    terms: dict[str, int]
    constant: int = 0

    def plus(self, other: Sum) -> Sum:
        terms = Counter(self.terms)
        terms.update(other.terms)
        return Sum({name: n for name, n in terms.items() if n}, self.constant + other.constant)

    def times(self, n: int) -> Sum:
        return Sum({name: n * f for name, f in self.terms.items() if n}, n * self.constant)


class Indices:
    """The indices of one function, whose blocks get their variables."""

    def __init__(
        self, blocks: dict[int, list[str]], value: Callable[[UOp], str], kind: str, pieces: int
    ) -> None:
        self.blocks, self.value, self.kind = blocks, value, kind
        self.variables = {CORE: Variable(OUTSIDE, 0, pieces - 1)}
        self.known: dict[tuple[int, str], str] = {}  # variables by block and value
        self.sums: dict[UOp, Sum] = {}

    def text(self, node: UOp) -> str:
        return self.text_of(self.sum(node))

    def offset(self, places: list[UOp], shape: tuple[int, ...]) -> str:
        """Of an element of an array of this shape."""
        total, stride = Sum({}), 1
        for place, length in zip(places[::-1], shape[::-1], strict=True):
            along = self.sum(place)
            if length == 1 and along != Sum({}):
                raise ValueError(f"an axis of one element: expected index 0, found {along}")
            total = total.plus(along.times(stride))
            stride *= length
        return self.text_of(total)

    def sum(self, node: UOp) -> Sum:
        if node not in self.sums:
            self.sums[node] = self.new_sum(node)
        return self.sums[node]

    def new_sum(self, node: UOp) -> Sum:
        if (value := constant(node)) is not None:
            return Sum({}, int(value))
        if node.dtype != dtypes.weakint:
            return self.computed(node)
        match node.op:
            case Ops.RANGE:
                name = variable_of(node)
                self.variables[name] = Variable(number(node), 0, size(node) - 1)
                return Sum({name: 1}) if repeats(node) else Sum({})
            case Ops.ADD:
                return self.sum(node.src[0]).plus(self.sum(node.src[1]))
            case Ops.MUL if (factor := constant(node.src[1])) is not None:
                return self.sum(node.src[0]).times(int(factor))
            case Ops.MUL if (factor := constant(node.src[0])) is not None:
                return self.sum(node.src[1]).times(int(factor))
            case Ops.CAST if node.src[0].op is Ops.PARAM:
                return Sum({CORE: 1})
            case Ops.XOR if is_complement(node):
                inner = node.src[0]
                if inner.op is Ops.MAX and all(map(is_complement, inner.src)):  # ~max(~a, ~b)
                    return self.extreme("<", *(self.sum(side.src[0]) for side in inner.src))
                return self.sum(inner).times(-1).plus(Sum({}, -1))
            case Ops.MAX:
                return self.extreme(">", *map(self.sum, node.src))
            case Ops.FLOORDIV if (by := constant(node.src[1])) is not None:
                return self.divided(self.sum(node.src[0]), int(by))
            case Ops.FLOORMOD if (by := constant(node.src[1])) is not None:
                whole = self.sum(node.src[0])
                return whole.plus(self.divided(whole, int(by)).times(-int(by)))
            case Ops.WHERE:
                condition, *choices = node.src
                texts = [self.atom(self.sum(choice)) for choice in choices]
                text = f"{self.value(condition)} ? {texts[0]} : {texts[1]}"
                return self.variable(text, innermost(node), node.vmin, node.vmax)
            case Ops.CAST:
                return self.computed(node.src[0])
        raise ValueError(f"{node.op}: no C for it in an index")

    def computed(self, node: UOp) -> Sum:
        """A value that is an index."""
        text = self.value(node)
        if not text.isidentifier():
            return self.variable(text, innermost(node), node.vmin, node.vmax)
        self.variables[text] = Variable(innermost(node), node.vmin, node.vmax)
        return Sum({text: 1})

    def extreme(self, better: str, a: Sum, b: Sum) -> Sum:
        """The smaller ("<") or the larger (">") of two."""
        low, high = (a, b) if better == "<" else (b, a)
        if self.bounds(low)[1] <= self.bounds(high)[0]:
            return a
        if self.bounds(high)[1] <= self.bounds(low)[0]:
            return b
        choose = min if better == "<" else max
        bounds = map(choose, self.bounds(a), self.bounds(b))
        where = max(self.block_of(a), self.block_of(b))
        first, second = self.atom(a), self.atom(b)
        return self.variable(f"{first} {better} {second} ? {first} : {second}", where, *bounds)

    def divided(self, dividend: Sum, by: int) -> Sum:
        """Rounded down. What `by` divides needs no division, nor does a rest that is too small."""
        whole = {name: n // by for name, n in dividend.terms.items() if n % by == 0}
        rest = Sum(
            {name: n for name, n in dividend.terms.items() if n % by}, dividend.constant % by
        )
        quotient = Sum(whole, dividend.constant // by)
        least, most = self.bounds(rest)
        if least < 0:  # C rounds toward zero
            turns = -(least // by)
            rest, quotient = rest.plus(Sum({}, turns * by)), quotient.plus(Sum({}, -turns))
            least, most = self.bounds(rest)
        if most < by:
            return quotient
        text = f"{self.atom(rest)} / {by}"
        return quotient.plus(self.variable(text, self.block_of(rest), least // by, most // by))

    def bounds(self, total: Sum) -> tuple[int, int]:
        ends = [
            sorted((n * self.variables[name].least, n * self.variables[name].most))
            for name, n in total.terms.items()
        ]
        return total.constant + sum(e[0] for e in ends), total.constant + sum(e[1] for e in ends)

    def block_of(self, total: Sum) -> int:
        return max((self.variables[name].block for name in total.terms), default=OUTSIDE)

    def variable(self, text: str, where: int, least: int, most: int) -> Sum:
        """A variable with this value in this block, as an index."""
        if (name := self.known.get((where, text))) is None:
            name = self.known[where, text] = f"a{len(self.known)}"
            self.variables[name] = Variable(where, least, most)
            self.blocks[where].append(f"{self.kind} {name} = {text};")
        return Sum({name: 1})

    def atom(self, total: Sum) -> str:
        """A name or a number."""
        text = self.text_of(total)
        if text.lstrip("-").isalnum():
            return text
        [name] = self.variable(text, self.block_of(total), *self.bounds(total)).terms
        return name

    def text_of(self, total: Sum) -> str:
        """The sum, of which all but what the innermost loop changes is a variable outside it."""
        levels: dict[int, list[str]] = defaultdict(list)
        for name in total.terms:
            levels[self.variables[name].block].append(name)
        text = ""
        bounds = Sum({})
        for i, level in enumerate(sorted(levels), 1):
            part = Sum({name: total.terms[name] for name in levels[level]})
            bounds = bounds.plus(part)
            terms = [name if n == 1 else f"{name}*{n}" for name, n in part.terms.items()]
            text = " + ".join([text, *terms] if text else terms)
            if i < len(levels) and not text.isalnum():
                [text] = self.variable(text, level, *self.bounds(bounds)).terms
        if not text:
            return str(total.constant)
        sign = "-" if total.constant < 0 else "+"
        return f"{text} {sign} {abs(total.constant)}" if total.constant else text


def repeats(loop: UOp) -> bool:
    """Whether there is a loop at all: one that runs once is not written."""
    return size(loop) > 1


def variable_of(loop: UOp) -> str:
    return f"i{number(loop)}"


def innermost(node: UOp) -> int:
    """The block that a node's statement belongs to: the innermost loop that it depends on."""
    return max(map(number, filter(repeats, node.ranges)), default=OUTSIDE)


def is_complement(node: UOp) -> bool:
    return node.op is Ops.XOR and constant(node.src[1]) == -1


def constant(node: UOp) -> float | None:
    """The value of a node that has only one."""
    if node.op is Ops.CONST:
        return node.val
    if node.op is Ops.CAST and node.src[0].op is Ops.CONST:
        return node.src[0].val
    if node.dtype == dtypes.weakfloat:
        left, right = map(constant, node.src)
        if node.op is Ops.MUL and left is not None and right is not None:
            return left * right
    if node.dtype in (dtypes.bool, dtypes.weakint) and node.vmin == node.vmax:
        return node.vmin
    return None
