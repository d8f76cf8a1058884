"""The network as a readable C program: C11, no library except libm, no allocation.

`network.c` has each kernel once and the calls in order; `weights.bin` has the folded weights after
a header with a checksum; `main.c` is a program that names what a picture shows.
"""

from __future__ import annotations

import ctypes
import re
import string
import struct
import tempfile
import zlib
from collections.abc import Iterable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf import __version__
from tinygmf.config import variant_name
from tinygmf.export.program import Call, Program, round_up
from tinygmf.export.toolchain import c_compiler, run_tool
from tinygmf.files import counted
from tinygmf.image import resize_and_crop

HEADER, MAGIC = 64, b"tgmf"  # bytes before the weights, and how they start
TEMPLATES = files("tinygmf.export").joinpath("templates")


def write_c(program: Program, folder: Path, example: Image.Image) -> None:
    """Write everything that a C compiler needs into an existing folder. `example`, of any size,
    becomes example.ppm, of the network's size. Raises OSError."""
    write_source(program, folder)
    for name in ("main.c", "Makefile"):
        (folder / name).write_text(fill(name, {}), encoding="utf-8")
    (folder / "weights.bin").write_bytes(weights_file(program))
    cropped = resize_and_crop(example, program.size, program.network.settings)
    cropped.save(folder / "example.ppm")


def write_source(program: Program, folder: Path) -> None:
    """network.c and network.h."""
    header = header_fields(program)
    (folder / "network.h").write_text(fill("network.h", header), encoding="utf-8")
    source = fill("network.c", header | source_fields(program))
    (folder / "network.c").write_text(source, encoding="utf-8")


def run_c(
    folder: Path, program: Program, pictures: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Compile the folder's network.c for this machine and run it on normalized pictures
    (B, 3, size, size) -> logits (B, classes), and the kept maps (B, N, channels).

    Raises ValueError if there is no C compiler, or the program rejects its weights.
    """
    file = (folder / "weights.bin").read_bytes()
    arena = np.full(program.arena, np.nan, np.float32)  # its initial content must not matter
    logits = np.empty((program.batch, width(program)), np.float32)
    arrays = arena, np.ascontiguousarray(pictures, np.float32), logits
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        library = str(Path(temporary) / "network.so")
        options = ["-std=c11", "-O2", "-shared", "-fPIC", "-o", library]
        run_tool([*c_compiler(), *options, str(folder / "network.c"), "-lm"])
        network = ctypes.CDLL(library)
        network.network_weights.restype = ctypes.c_void_p
        weights = network.network_weights(file, ctypes.c_size_t(len(file)))
        if not weights:
            raise ValueError(f"{folder / 'weights.bin'}: the program rejects its weights")
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        network.network_run(ctypes.c_void_p(weights), *pointers)
    cut = {m.name: arena[m.offset : m.offset + m.size] for m in program.maps}
    shape = {m.name: (program.batch, -1, m.channels) for m in program.maps}
    return logits, {name: part.reshape(shape[name]) for name, part in cut.items()}


def width(program: Program) -> int:
    """Values per picture: classes, or features without a head."""
    config = program.network.config
    return config.num_classes or config.embedding_dims[-1]


def names(program: Program) -> list[str]:
    """A name for each of the outputs: the classes', or else numbers. A dense network's backbone has
    features as outputs, though its file names classes."""
    classes = program.network.settings.classes if program.network.config.num_classes else ()
    return list(classes) or [str(i) for i in range(width(program))]


def fill(template: str, fields: dict[str, object]) -> str:
    """The template's text with a value in place of each @FIELD@."""
    text = TEMPLATES.joinpath(template).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda match: str(fields[match[1]]), text)


def header_fields(program: Program) -> dict[str, object]:
    config = program.network.config
    name = variant_name(config) or "GroupMixFormer"
    return {
        "TITLE": f"{name}, {counted(config.num_classes, 'class')}, "
        f"{program.size} x {program.size} pixels: written by tinygmf {__version__}",
        "BATCH": program.batch,
        "SIZE": program.size,
        "CLASSES": width(program),
        "WEIGHTS": weight_offsets(program)[-1],
        "ARENA": program.arena,
    }


def source_fields(program: Program) -> dict[str, object]:
    settings = program.network.settings
    offsets = zip(program.weights, weight_offsets(program), strict=False)
    return {
        "NAMES": "\n".join(f"    {c_string(name)}," for name in names(program)),
        "MEAN": ", ".join(map(c_float, settings.mean)),
        "STD": ", ".join(map(c_float, settings.std)),
        "ARCHITECTURE": architecture(program),
        "KERNELS": "\n".join(map(plain_c, program.kernels.values())),
        "WEIGHT_OFFSETS": "\n".join(f"    {weight.name} = {at}," for weight, at in offsets),
        "CALLS": "\n".join(call_lines(program)),
    }


def call_lines(program: Program) -> Iterable[str]:
    """The calls, in sections that a run can start from."""
    starts = sorted({0, *(kept.next for kept in program.maps)})
    for first, end in pairwise([*starts, len(program.calls)]):
        yield f"    if (first <= {first}) {{"
        yield from (f"    {line}" for line in section_lines(program, first, end))
        yield "    }"


def section_lines(program: Program, first: int, end: int) -> Iterable[str]:
    part = ""
    for call in program.calls[first:end]:
        if call.part != part:
            part = call.part
            yield f"    /* {part} */"
        if call.pieces == 1:
            yield f"    {call_text(program, call)};"
        else:
            yield f"    for (unsigned char piece = 0; piece < {call.pieces}; piece++)"
            yield f"        {call_text(program, call)};"


def call_text(program: Program, call: Call) -> str:
    """`kernel(…)`, with the weights at `w`, the arena at `a`, and one `piece` of several."""
    arguments = [
        f"a + {program.offsets[name]}"
        if name in program.offsets
        else name
        if name in ("input", "output")
        else f"w + {name}"
        for name in call.arguments
    ]
    return f"{call.kernel}({', '.join(arguments + ['piece'] * (call.pieces > 1))})"


# Weights


def weight_offsets(program: Program) -> list[int]:
    """Where each array starts, and the total size."""
    ends = np.cumsum([round_up(weight.array.size) for weight in program.weights])
    return [0, *map(int, ends)]


def weights_file(program: Program) -> bytes:
    """The header, and the arrays at their offsets, little-endian."""
    *offsets, size = weight_offsets(program)
    data = np.zeros(size, "<f4")
    for weight, offset in zip(program.weights, offsets, strict=True):
        data[offset : offset + weight.array.size] = weight.array.reshape(-1)
    body = data.tobytes()
    header = struct.pack("<4sIII", MAGIC, architecture(program), size, zlib.crc32(body))
    return header.ljust(HEADER, b"\0") + body


def architecture(program: Program) -> int:
    """A number that is equal for networks whose weights have the same names and shapes."""
    return zlib.crc32(repr([(w.name, w.array.shape) for w in program.weights]).encode())


# Kernels that every compiler accepts


def plain_c(source: str) -> str:
    """One kernel without the builtins of clang."""
    text = source.replace("__builtin_bit_cast(float, ", "from_bits(")
    text = text.replace("__builtin_sqrtf", "sqrtf").replace("__builtin_inff()", "INFINITY")
    if "__builtin" in text:
        raise ValueError(f"{source.partition('(')[0]}: expected plain C, found a compiler's own")
    return f"static {text}\n"
    raise ValueError("unbalanced brackets")


def c_string(text: str) -> str:
    """A string literal in UTF-8; three-digit escapes cannot run into what follows."""
    plain = (string.ascii_letters + string.digits + " ,.-_()'").encode()
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def c_float(value: float) -> str:
    return f"{float(value):.9g}f"
