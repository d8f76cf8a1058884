"""Several kernels compiled by one run of clang, whose start takes it a third of its time.

The object file has a section for each kernel, and sections of constants that they share. Each
kernel is taken out with the constants that it needs: code that runs wherever it lies in memory, as
tinygrad loads it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

from tinygrad.runtime.autogen import libc
from tinygrad.runtime.support.elf import elf_loader

ALIGNMENT = 64  # of constants: the widest vector's
RELATIVE = libc.R_X86_64_PC32, libc.R_X86_64_PLT32
SECTION = ".text.kernel"


def compile_all(compiler: Any, sources: Sequence[str]) -> list[bytes]:
    """The compiled code of each source, a single function."""
    if len(sources) > 1 and compiler.arch == "x86_64":
        together = compiler.compile("\n".join(map(in_section, range(len(sources)), sources)))
        try:
            return take_apart(together, len(sources))
        except (ValueError, RuntimeError):  # one calls a function, or has a table of addresses
            pass
    return [compiler.compile(source) for source in sources]


def in_section(number: int, source: str) -> str:
    attribute = f'__attribute__((section("{SECTION}{number}")))'
    return re.sub(r"\bvoid \w+\(", f"{attribute} void kernel{number}(", source, count=1)


def take_apart(library: bytes, count: int) -> list[bytes]:
    """The kernels of an object file. Raises ValueError, or tinygrad's RuntimeError, if one needs
    more than constants."""
    image, sections, relocations = elf_loader(library)
    loaded = {s.name: s.header for s in sections if s.header.sh_flags & libc.SHF_ALLOC}
    constants = [
        (header.sh_addr, header.sh_addr + header.sh_size)
        for name, header in loaded.items()
        if name.startswith(".rodata")
    ]
    kernels = []
    for number in range(count):
        code = loaded[f"{SECTION}{number}"]
        start, end = code.sh_addr, code.sh_addr + code.sh_size
        part, places = bytearray(image[start:end]), dict[int, int]()
        for at, target, kind, addend in relocations:
            if not start <= at < end:
                continue
            if kind not in RELATIVE:
                raise ValueError(f"a relocation of kind {kind}")
            [(first, last)] = [span for span in constants if span[0] <= target < span[1]]
            if first not in places:
                part += bytes(-len(part) % ALIGNMENT)
                places[first] = len(part)
                part += image[first:last]
            place = places[first] + target - first
            struct.pack_into("<i", part, at - start, place + addend - (at - start))
        kernels.append(bytes(part))
    return kernels
