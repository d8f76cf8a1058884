"""Products of bfloat16 on a unit of the processor made for them.

Such a unit multiplies two neighboring rows of a matrix at once. The matrix (…, K, E) is kept as
pairs (…, K / 2, E) of type uint32, whose lower half is from the even row. There are two units:

* AMX (Intel, from Sapphire Rapids on): 16 tokens by 16 channels by 32 rows in one instruction;
* VDPBF16PS (AMD, from Zen 4 on): 16 channels by 2 rows. Intel's processors need two cycles for it,
  in which they do twice as many products of float32, so there it is not used.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

import numpy as np
from tinygrad import dtypes
from tinygrad.uop.ops import UOp

from tinygmf.loops.nest import Nest, statement
from tinygmf.loops.tiles import PAIRS, best_tile, divisor, is_amd, processor_flags

LANES = 16  # float32 sums in a vector, or in a row of a tile
STEP = 32  # rows of the matrix that AMX takes at once, at most
PERMISSION = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), Linux, x86-64

Place = Callable[..., UOp]  # of a value in memory, by its indices
VECTOR = "typedef float sums __attribute__((vector_size(64), aligned(4)));"
# Set one by one, the sums would stay in memory and take twice as long: told that there is no
# library (-ffreestanding), clang does not see that such a loop fills a whole tile with zeros.
CLEAR = "{{ " + VECTOR + " *(sums*){0} = (sums){{0}}; }}"
DOT = (
    "{{ "
    + VECTOR
    + """
  typedef __bf16 pairs __attribute__((vector_size(64), aligned(4)));
  typedef int pair __attribute__((vector_size(64)));
  *(sums*){0} = __builtin_ia32_dpbf16ps_512(
    *(sums*){0}, (pairs)((pair){{0}} + *(int*){1}), *(pairs*){2});
}}"""
)


@cache
def unit() -> str | None:
    """The unit to use: "amx", "dot" or None. Linux saves AMX's registers only for a process that
    has asked for them."""
    flags = processor_flags()
    if sys.platform == "linux" and {"amx_tile", "amx_bf16", "avx512_bf16"} <= flags:
        with suppress(OSError, AttributeError):
            if ctypes.CDLL(None).syscall(*PERMISSION) == 0:
                return "amx"
    return "dot" if "avx512_bf16" in flags and is_amd() else None


def fits(array: np.ndarray) -> bool:
    """Whether a product's matrix (…, K, E) can be kept as pairs."""
    return array.ndim >= 4 and array.shape[-2] % 2 == 0 and array.shape[-1] >= LANES


def pack(array: np.ndarray) -> np.ndarray:
    """(…, K, E) float32 -> (…, K / 2, E) uint32."""
    halves = rounded(array).astype(np.uint32)
    return halves[..., 0::2, :] | halves[..., 1::2, :] << 16


def rounded(array: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16, which NumPy lacks, as uint16: the upper half, rounded to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def is_packed(weight: UOp) -> bool:
    return weight.dtype == dtypes.uint32


def tile(tokens: int, channels: int, width: int | None = None) -> tuple[int, int]:
    """Tokens and channels of a tile: full vectors, or those of a whole panel, of this `width`; for
    AMX one or two of its tiles each way."""
    m, c, _ = best_tile(PAIRS, tokens, channels, unit=unit(), width=width)
    if unit() == "amx" and LANES < m < 2 * LANES:
        m = LANES
    return m, c if (width or 0) > channels else c // LANES * LANES


def sums(
    nest: Nest,
    around: list[UOp],
    window: tuple[int, int, int],
    tile: tuple[int, int],
    x: Place,
    weight: Place,
    apart: tuple[int, int],
) -> UOp:
    """A tile (m, c) of sums of x(ky, kx, k, i) times weight(ky, kx, k, j) over the window (kh, kw,
    K), where k is even; `apart`: the strides of tokens and of rows of pairs, in values.
    """
    if unit() == "amx":
        return amx_sums(nest, around, window, tile, x, weight, apart)
    acc = nest.registers(tile)
    i, j = nest.loops(tile[0], tile[1] // LANES)
    clear = statement(CLEAR, acc.after(*around)[i, j * LANES])
    acc = acc.after(clear.end(i, j))
    kh, kw, depth = window
    *over, pair = turns = nest.loops(kh, kw, depth // 2)
    i, j = nest.loops(tile[0], tile[1] // LANES)
    term = statement(
        DOT,
        acc.after(*turns)[i, j * LANES],
        x(*over, 2 * pair, i),
        weight(*over, 2 * pair, j * LANES),
    )
    return acc.after(term.end(i, j, *turns[::-1]))


def amx_sums(
    nest: Nest,
    around: list[UOp],
    window: tuple[int, int, int],
    tile: tuple[int, int],
    x: Place,
    weight: Place,
    apart: tuple[int, int],
) -> UOp:
    """Registers 0 to 3 hold sums, 4 and 5 tokens, 6 and 7 pairs."""
    (m, c), (kh, kw, depth) = tile, window
    step, height = 2 * divisor(depth // 2, STEP // 2), min(m, LANES)
    rows, columns = range(0, m, LANES), range(0, c, LANES)
    cells = [(2 * i + j, i, j) for i in range(len(rows)) for j in range(len(columns))]
    ready = statement(f"__builtin_ia32_tile_loadconfig({amx_config(height, step)});")
    clear = statement(each("__builtin_ia32_tilezero({});", cells), ready, *around)
    *over, k = turns = nest.loops(kh, kw, depth // step)
    places = [x(*over, k * step, i) for i in rows] + [weight(*over, k * step, j) for j in columns]
    registers = [(4 + i, i, 2 * apart[0]) for i in range(len(rows))]
    registers += [(6 + j, len(rows) + j, 4 * apart[1]) for j in range(len(columns))]
    load = each("__builtin_ia32_tileloadd64({}, {{{}}}, {});", registers)
    multiply = each("__builtin_ia32_tdpbf16ps({}, 4 + {}, 6 + {});", cells)
    done = statement(load + multiply, *places, clear, *turns).end(*turns[::-1])
    acc = nest.registers(tile)
    targets = [acc.after(*around)[rows[i], columns[j]] for _, i, j in cells]
    numbers = [(cell, n, 4 * c) for n, (cell, _, _) in enumerate(cells)]
    keep = each("__builtin_ia32_tilestored64({}, {{{}}}, {});", numbers)
    return acc.after(statement(keep, *targets, done))


def amx_config(height: int, step: int) -> str:
    """The shapes of the eight registers, as LDTILECFG reads them: bytes per row, and rows."""
    widths = [4 * LANES] * 4 + [2 * step] * 2 + [4 * LANES] * 2
    heights = [height] * 6 + [step // 2] * 2
    start = (ctypes.c_uint8 * 16)(1)  # palette 1
    words = (ctypes.c_uint16 * 16)(*widths)
    content = bytes(start) + bytes(words) + bytes(heights).ljust(16, b"\0")
    return "(const unsigned char[64]){{" + ", ".join(map(str, content)) + "}}"


def each(text: str, rows: Sequence[tuple[int, ...]]) -> str:
    return " ".join(text.format(*row) for row in rows)
