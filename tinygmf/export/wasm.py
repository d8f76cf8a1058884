"""The network as WebAssembly: the C program compiled by zig, with a JavaScript module that runs it.

`network.wasm` needs fixed-width SIMD, which every browser has had since 2023, and imports nothing.
`network_relaxed.wasm` is used where relaxed SIMD is available: it multiplies and adds in one
instruction, which makes it a sixth faster. `page.html` contains everything and opens from disk,
where browsers load no modules.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tempfile
from importlib.resources import as_file
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.export.c import (
    TEMPLATES,
    call_text,
    fill,
    header_fields,
    names,
    weights_file,
    width,
    write_source,
)
from tinygmf.export.program import Program
from tinygmf.export.toolchain import run_tool, zig

EXPORTS = "network_run_from", "network_prepare", "network_weights", "__heap_base"
REGISTERS = "simd128"  # of the tiles, in `capture`
OPTIONS = ["-target", "wasm32-freestanding", "-std=c11", "-O3", "-msimd128", "-mbulk-memory"]
RELAXED = ["-mrelaxed-simd", "-ffp-contract=fast"]
LINKING = ["-nostdlib", "-s", "-Wl,--no-entry"]
# With threads: they share one imported memory, and each sets its own stack.
SHARED_EXPORTS = "network_run_together", "network_help", "network_helped", "__stack_pointer"
SHARED_PAGES = 32, 16384  # of 64 KiB: initially, and at most
SHARED = ["-matomics", "-Wl,--import-memory,--shared-memory"] + [
    f"-Wl,--{name}-memory={pages << 16}"
    for name, pages in zip(("initial", "max"), SHARED_PAGES, strict=True)
]

# For node: load the module, run the pictures from stdin, write logits and maps.
SCRIPT = """
const { load, info } = await import(process.argv[1]);
const network = await load();
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const input = new Uint8Array(Buffer.concat(chunks));
const logits = network.run(new Float32Array(input.buffer));
const kept = Object.keys(info.maps).map((name) => network.map(name).values);
for (const values of [logits, ...kept]) process.stdout.write(Buffer.from(values.buffer));
"""


def write_wasm(program: Program, folder: Path, example: Image.Image) -> None:
    """Write network.wasm, network_relaxed.wasm, weights.bin, network.mjs and page.html to a folder.

    The page first shows `example`, of any size. Raises ValueError without zig; OSError.
    """
    code, relaxed = compile_wasm(program), compile_wasm(program, relaxed=True)
    (folder / "network.wasm").write_bytes(code)
    (folder / "network_relaxed.wasm").write_bytes(relaxed)
    weights = weights_file(program)
    (folder / "weights.bin").write_bytes(weights)
    title = header_fields(program)["TITLE"]
    known = json.dumps(info(program), indent=1).replace("<", "\\u003c")  # safe in <script>
    module = fill("network.mjs", {"TITLE": title, "INFO": known, "NETWORK": fill("network.js", {})})
    (folder / "network.mjs").write_text(module, encoding="utf-8")
    picture = io.BytesIO()
    example.save(picture, "PNG")
    fields = {"NAME": title, "MODULE": module}
    data = {"CODE": code, "RELAXED": relaxed, "WEIGHTS": weights, "EXAMPLE": picture.getvalue()}
    fields |= {name: base64.b64encode(content).decode() for name, content in data.items()}
    (folder / "page.html").write_text(fill("page.html", fields), encoding="utf-8")


def compile_wasm(program: Program, shared: bool = False, relaxed: bool = False) -> bytes:
    """The program as a WebAssembly module. Raises ValueError without zig.

    If `shared`, it imports its memory, SHARED_PAGES, and several threads run it; if `relaxed`, it
    rounds a product and a sum once, as the browser's processor does.
    """
    command = zig()
    if command is None:
        raise ValueError("zig is missing: run pip install 'tinygmf[clang]'")
    with tempfile.TemporaryDirectory() as name, as_file(TEMPLATES.joinpath("wasm")) as headers:
        source, code = Path(name), Path(name) / "network.wasm"
        write_source(program, source)
        file = source / ("threads.c" if shared else "network.c")
        if shared:
            file.write_text(fill("threads.c", thread_fields(program)), encoding="utf-8")
        exports = EXPORTS + (SHARED_EXPORTS if shared else ())
        options = [*OPTIONS, *LINKING, *(f"-Wl,--export={name}" for name in exports)]
        options += (RELAXED if relaxed else []) + (SHARED if shared else [])
        run_tool([*command, "cc", *options, f"-I{headers}", "-o", str(code), str(file)])
        return code.read_bytes()


def thread_fields(program: Program) -> dict[str, object]:
    cases = (f"    case {i}: {call_text(program, c)}; break;" for i, c in enumerate(program.calls))
    return {
        "COUNT": len(program.calls),
        "PIECES": ", ".join(str(call.pieces) for call in program.calls),
        "CASES": "\n".join(cases),
    }


def info(program: Program) -> dict[str, object]:
    """What the module knows about the network, in numbers of floats, but `size` in pixels."""
    settings = program.network.settings
    return {
        "size": program.size,
        "batch": program.batch,
        "picture": 3 * program.size**2,
        "arena": program.arena,
        "crop": settings.crop,
        "maps": {
            kept.name: {
                "offset": kept.offset,
                "size": kept.size,
                "channels": kept.channels,
                "next": kept.next,
            }
            for kept in program.maps
        },
        "classes": names(program),
    }


def run_wasm(
    folder: Path, program: Program, pictures: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Run the folder's module under node on normalized pictures (B, 3, size, size) -> logits and
    kept maps, as from `c.run_c`; None if node is missing."""
    node = shutil.which("node")
    if node is None:
        return None
    module = (folder / "network.mjs").resolve().as_uri()
    command = [node, "--input-type=module", "-e", SCRIPT, module]
    done = subprocess.run(command, input=pictures.astype("<f4").tobytes(), capture_output=True)
    if done.returncode:
        raise ValueError(f"{folder / 'network.mjs'}: node: {done.stderr.decode()[-300:]}")
    values = np.frombuffer(done.stdout, "<f4")
    counts = [program.batch * width(program), *(kept.size for kept in program.maps)]
    logits, *maps = np.split(values, np.cumsum(counts)[:-1])
    shaped = (
        (kept.name, values.reshape(program.batch, -1, kept.channels))
        for kept, values in zip(program.maps, maps, strict=True)
    )
    return logits.reshape(program.batch, -1), dict(shaped)
