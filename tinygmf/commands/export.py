"""Write a network as a C program, as WebAssembly or as an ONNX file, and check what was written."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tinygmf.commands.options import add_classes, add_entry, chosen_classes, chosen_size, positive

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from tinygmf.weights.checkpoint import NetworkWeights

EXAMPLE = files("tinygmf").joinpath("assets/digits/3_0059.png")
TOLERANCE = 1e-4  # of a logit, relative to the largest if that is above 1


def size_or_free(text: str) -> int | str:
    """Pixels, or "free"."""
    return text if text == "free" else positive(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help=".pth or .safetensors")
    add_entry(parser)
    parser.add_argument("--to", required=True, choices=["c", "wasm", "onnx"])
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="new or empty")
    parser.add_argument(
        "--size",
        type=size_or_free,
        help="picture size in pixels; by default the training size, or 224; for ONNX also free",
    )
    parser.add_argument(
        "--batch", type=positive, help="pictures per run, by default 1; ONNX takes any number"
    )
    parser.add_argument(
        "--maps",
        nargs="+",
        default=[],
        metavar="NAME",
        help="not for ONNX: maps to keep, by their checkpoint names",
    )
    parser.add_argument(
        "--dtype", default="float32", help="float32 is the only one; the README says why"
    )
    parser.add_argument("--folded", action="store_true", help="ONNX: fold norms into convolutions")
    add_classes(parser)
    parser.add_argument(
        "--example", type=Path, metavar="PICTURE", help="to check it with; by default a digit"
    )


def run(args: argparse.Namespace) -> int:
    """Export and check; the folder gets its name only if the check passes."""
    from tinygmf.files import new_folder
    from tinygmf.image import load_image, preprocess

    check_options(args)
    start = time.perf_counter()
    weights = chosen_weights(args)
    free, args.size = args.size == "free", None if args.size == "free" else args.size
    size = chosen_size(args, weights)
    example = load_image(args.example or Path(str(EXAMPLE)))
    x = preprocess(example, size, weights.settings)
    with new_folder(args.out) as folder:
        if args.to == "onnx":
            found, notes = write_network(weights, folder, x, free, args.folded)
        else:
            found, notes = write_program(args, weights, folder, x, example)
        checked = check(weights, x, found)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name, size in sizes.items():
        print(f"{args.out / name}: {size:,} bytes")
    for note in notes:
        print(note)
    print(f"{checked}; {time.perf_counter() - start:.1f} s")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for options of other targets, and for half precision, which none has."""
    if args.dtype != "float32":
        raise ValueError(
            f"--dtype: expected float32, found {args.dtype}: C11 and WebAssembly have no "
            "half-precision arithmetic, and a runtime converts an ONNX file itself"
        )
    if args.to == "onnx" and args.batch:
        raise ValueError("--batch: an ONNX file takes any number of pictures; leave it out")
    if args.to == "onnx" and args.maps:
        raise ValueError("--maps: an ONNX file names every value; leave it out")
    if args.to != "onnx" and args.size == "free":
        raise ValueError(f"--size: expected pixels for {args.to}, found free: give a number")
    if args.to != "onnx" and args.folded:
        raise ValueError(f"--folded: an export to {args.to} always is; leave it out")


def chosen_weights(args: argparse.Namespace) -> NetworkWeights:
    """The network of WEIGHTS, with the class names that the options give it."""
    from tinygmf.weights.checkpoint import load_weights

    weights = load_weights(args.weights, args.entry)
    weights.config.require_colour("export")
    if not weights.config.num_classes:
        return weights
    classes = tuple(chosen_classes(args, weights))
    return weights._replace(settings=replace(weights.settings, classes=classes))


def write_program(
    args: argparse.Namespace,
    weights: NetworkWeights,
    folder: Path,
    x: np.ndarray,
    example: Image.Image,
) -> tuple[np.ndarray | None, list[str]]:
    """Write C or WebAssembly; returns its logits for x (3, H, W) and lines about its memory."""
    import numpy as np

    from tinygmf.export.c import run_c, write_c
    from tinygmf.export.program import capture
    from tinygmf.export.wasm import REGISTERS, run_wasm, write_wasm

    print("compiling: this takes half a minute", file=sys.stderr)
    write, run = (write_c, run_c) if args.to == "c" else (write_wasm, run_wasm)
    registers = REGISTERS if args.to == "wasm" else None
    program = capture(weights, x.shape[1], args.batch or 1, args.maps, registers=registers)
    write(program, folder, example)
    result = run(folder, program, np.stack([x] * program.batch))
    notes = [f"working memory: {4 * program.arena:,} bytes"]
    notes += [f"  {m.name}: {m.size:,} floats, from float {m.offset:,} on" for m in program.maps]
    return result and result[0], notes


def write_network(
    weights: NetworkWeights, folder: Path, x: np.ndarray, free: bool, folded: bool
) -> tuple[np.ndarray | None, list[str]]:
    """Write network.onnx; returns its logits for x (3, H, W) and no lines."""
    from tinygmf.export.onnx import run_onnx, write_onnx

    size = None if free else (x.shape[1], x.shape[2])
    write_onnx(weights, folder / "network.onnx", size, folded=folded)
    return run_onnx(folder / "network.onnx", x[None]), []


def check(weights: NetworkWeights, x: np.ndarray, found: np.ndarray | None) -> str:
    """Compare the logits found for x (3, H, W) with the engine's; returns a line about it.

    Raises ValueError if they differ by more than TOLERANCE.
    """
    import numpy as np

    from tinygmf.engine.predictor import Predictor

    if found is None:
        return "not checked: node is not installed"
    expected = Predictor(weights, x.shape[1], device="CPU").run(x[None])
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * max(1, np.abs(expected).max()):
        raise ValueError(
            f"expected the example's logits as Predictor gives them, found them {difference:.1e} "
            "off: nothing was written; please report this"
        )
    return f"the example's logits are within {difference:.1e} of Predictor's"
