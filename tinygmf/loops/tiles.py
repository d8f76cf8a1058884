"""The tile of outputs that a loop nest keeps in registers, for each kind of processor.

A tile of a product has some tokens and some channels. It must fit the vector registers beside a row
of weights, or clang keeps it in memory; and be large, or loading takes longer than multiplying. The
rates are GFLOP/s of one core, measured (AVX: Intel Sapphire Rapids, where AVX-512 multiply-adds
alone reach 213; SIMD128: the same under node; Zen 4: AMD EPYC, which reaches 118, and for which
half a vector is half the work) or, in proportion, estimated from the registers (NEON). Only their
order matters.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """What kernels are compiled for; None: what this machine has."""

    cores: int | None = None
    registers: str | None = None  # one of `PRODUCT`'s


THIS = Machine()
elsewhere = ContextVar("elsewhere", default=THIS)


class Tile(NamedTuple):
    tokens: int
    channels: int
    rate: float


class Vectors(NamedTuple):
    """A processor's vector registers, and the numbers in each."""

    registers: int
    lanes: int


Table = Mapping[str, tuple[Tile, ...]]


def tiles(*rows: tuple[int, int, float]) -> tuple[Tile, ...]:
    return tuple(Tile(*row) for row in rows)


PRODUCT = {  # the comments count the registers, and the numbers in each
    "avx512": tiles(  # 32 of 16 numbers
        (8, 32, 163), (7, 32, 163), (8, 48, 169), (7, 48, 170), (6, 64, 158), (5, 80, 169),
        (4, 80, 162), (8, 24, 137), (7, 24, 137), (6, 24, 135), (10, 16, 132), (6, 16, 124),
        (4, 16, 102), (10, 8, 88), (6, 8, 74), (4, 8, 56),
    ),
    "zen4": tiles(  # the same registers
        (5, 80, 113), (4, 80, 111), (6, 48, 112), (8, 48, 112), (7, 48, 110), (6, 40, 95),
        (5, 40, 95), (4, 40, 94), (5, 64, 109), (8, 32, 111), (7, 32, 108), (4, 32, 107),
        (8, 24, 98), (10, 16, 105), (6, 16, 105), (4, 16, 99), (12, 8, 91), (10, 8, 85), (7, 8, 81),
        (4, 8, 61),
    ),
    "avx2": tiles(  # 16 of 8
        (6, 16, 107), (4, 16, 92), (14, 8, 103), (10, 8, 96), (7, 8, 83), (6, 8, 76), (4, 8, 60)
    ),
    "neon": tiles((7, 12, 50), (6, 16, 50), (8, 8, 46), (4, 16, 46), (4, 8, 36)),  # 32 of 4
    "simd128": tiles(  # 16 of 4; clang unrolls 4x8 into scalars
        (2, 16, 34), (3, 8, 33), (2, 12, 32), (7, 4, 31), (2, 8, 29), (4, 4, 27), (1, 16, 24)
    ),
}  # fmt: skip
PAIRS = {  # of products of bfloat16 on their own units: see `pairs`
    "amx": tiles((32, 32, 400), (16, 32, 300), (32, 16, 300), (16, 16, 200)),
    "dot": tiles(
        (8, 48, 218), (7, 48, 214), (6, 48, 212), (4, 80, 213), (6, 64, 211), (4, 64, 213),
        (8, 32, 212), (7, 32, 210), (6, 32, 205), (10, 16, 149), (7, 16, 146),
    ),
}  # fmt: skip
WINDOWS = {  # of depthwise convolutions: no row of weights is used twice by a token
    "avx512": tiles((7, 16, 98), (4, 16, 88), (2, 32, 84)),
    "zen4": tiles((7, 16, 98), (4, 16, 88), (2, 32, 84)),
    "avx2": tiles((7, 16, 71), (4, 16, 66), (2, 32, 64)),
    "neon": tiles((7, 8, 35), (4, 8, 32), (2, 16, 31)),
    "simd128": tiles((2, 16, 16), (3, 8, 16), (2, 8, 15), (7, 4, 15)),
}

SCALARS = 8  # times slower is a tile without vectors
TOKENS = 6  # at most, of a tile of few channels: see `is_unrolled`
LANES = {"avx512": 8, "zen4": 8, "avx2": 8}  # numbers in half a vector or a whole one; elsewhere 4
VECTORS = {
    "avx512": Vectors(32, 16), "zen4": Vectors(32, 16), "avx2": Vectors(16, 8),
    "neon": Vectors(32, 4), "simd128": Vectors(16, 4),
}  # fmt: skip


def best_tile(
    table: Table,
    tokens: int,
    channels: int,
    exact: bool = False,
    unit: str | None = None,
    width: int | None = None,
) -> Tile:
    """The fastest tile for a map of this size, and its rate there; `width` fixes its channels, as
    `panel_width` returns them.

    A tile that does not divide overlaps its neighbor, and that work is wasted; with `exact` the
    tile is shrunk to the largest divisors, of channels in whole vectors.
    """
    unit = unit or registers()
    least = lanes(unit)

    def fitted(tile: Tile) -> Tile:
        if not exact:
            m, c = min(tokens, tile.tokens), min(channels, tile.channels)
            useful = used(tokens, tile.tokens) * used(channels, tile.channels)
        else:
            m, c = divisor(tokens, tile.tokens), vectors(channels, tile.channels, least)
            useful = (m / tile.tokens) * (c / tile.channels) / (1 if c % least == 0 else 2)
        slow = table is PRODUCT and unit in ("avx512", "zen4") and is_unrolled(m, c)
        return Tile(m, c, tile.rate * useful / (SCALARS if slow else 1))

    tiles = (fitted(tile) for tile in table[unit] if width in (None, tile.channels))
    return max(tiles, key=lambda tile: tile.rate)


def is_unrolled(tokens: int, channels: int) -> bool:
    """Whether clang unrolls such a tile of a product with AVX-512 and computes it number by number,
    as measured."""
    return channels <= 16 and tokens > TOKENS and tokens not in (9, 10)


def panel_width(table: Table, channels: int, unit: str | None = None) -> int:
    """Channels of the fastest tile for maps of many tokens."""
    known = table[unit or registers()]
    return max(known, key=lambda tile: tile.rate * used(channels, tile.channels)).channels


def blocks_of(count: int, channels: int, least: int) -> int:
    """The number of diagonal blocks in a product of `count` parts of `channels` each.

    Parts of fewer than `least` channels share a block: zeros cost less than short vectors.
    """
    together = next(n for n in (1, 2, 4, 8) if n * channels >= least or n == count)
    return count // together


def used(size: int, width: int) -> float:
    """The share of the tiles' width that is useful work."""
    return size / (-(-size // width) * width)


def vectors(size: int, most: int, lanes: int) -> int:
    """The largest divisor of `size` up to `most` that fills whole vectors; if none does, the
    largest, part of which clang computes number by number."""
    if size % lanes or most < lanes:
        return divisor(size, most)
    return lanes * divisor(size // lanes, most // lanes)


def divisor(size: int, most: int) -> int:
    """The largest divisor of `size` up to `most`."""
    return next(n for n in range(min(size, most), 0, -1) if size % n == 0)


@contextmanager
def for_machine(cores: int | None = None, registers: str | None = None) -> Iterator[None]:
    """Compile for such a `Machine` in the `with` block."""
    token = elsewhere.set(Machine(cores, registers))
    try:
        yield
    finally:
        elsewhere.reset(token)


def lanes(unit: str | None = None) -> int:
    """The numbers in the shortest vector that is worth using."""
    return LANES.get(unit or registers(), 4)


def registers() -> str:
    """The vector registers that the kernels are compiled for."""
    if (named := elsewhere.get().registers) is not None:
        return named
    if platform.machine().lower() in ("x86_64", "amd64"):
        if "avx512f" not in processor_flags():
            return "avx2"
        return "zen4" if is_amd() else "avx512"
    return "neon"


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, in Linux's names; empty on other systems."""
    for line in processor().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def is_amd() -> bool:
    return "AuthenticAMD" in processor()


@cache
def processor() -> str:
    """What Linux says about the processors."""
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""
