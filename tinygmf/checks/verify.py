"""The compiled network against the pure-Python reference, stage by stage, on one picture.

The two halves of the project never import each other. The reference runs as its own program, on the
same weights and the same picture, and prints its four maps and logits as JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tinygmf.engine.predictor import Predictor
from tinygmf.image import normalize
from tinygmf.model import MIN_SIZE
from tinygmf.weights.checkpoint import NetworkWeights, load_weights, write_tensors

PROCESS = Path(__file__).with_name("reference_process.py")
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # of the largest output


def find_reference() -> Path:
    """The reference's folder: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "reference", package.parent / "reference"):
        if (folder / "gma.py").is_file():
            return folder
    raise ValueError(
        f"{package / 'reference'}: expected the pure-Python reference, found none: the "
        "installation is incomplete; install tinygmf again"
    )


def run_reference(network: NetworkWeights, picture: Image.Image) -> list[np.ndarray]:
    """Four maps (D_i, h, w) and the logits, in float64, of an RGB picture at its own size.

    Raises ValueError if there is no reference, or if it fails.
    """
    folder = find_reference()
    with tempfile.TemporaryDirectory() as scratch:
        weights, image = Path(scratch, "weights.safetensors"), Path(scratch, "image.ppm")
        write_tensors(network.arrays, weights)
        picture.save(image)
        command = [
            sys.executable,
            "-I",
            str(PROCESS),
            str(folder),
        ]  # -I: no module from here
        command += [str(weights), str(image), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the reference in {folder} failed: {done.stderr.strip()}")
    answer = json.loads(done.stdout)
    return [np.array(values) for values in (*answer["features"], answer["logits"])]


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value; infinite if a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def sample_picture(size: int) -> Image.Image:
    """Smooth coloured noise, always the same."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def verify_network(
    weights: str | os.PathLike[str],
    size: int,
    device: str | None,
    dtype: str = "float32",
    entry: str | None = None,
) -> bool:
    """Print the largest difference of every stage; True if all are within rounding.

    Raises ValueError if the network cannot be read, or there is no reference to compare with.
    """
    if size < MIN_SIZE:
        raise ValueError(f"--size: expected at least {MIN_SIZE} pixels, found {size}")
    network, picture = load_weights(weights, entry), sample_picture(size)
    network.config.require_colour("verify")
    predict = Predictor(network, size, device=device, dtype=dtype)
    expected = run_reference(network, picture)
    found = [output[0] for output in predict.outputs(normalize(picture)[None])]
    names = [f"stage {i}" for i in range(1, len(expected))] + ["logits"]
    print(f"{'':8} {'shape':>14} {'largest value':>14} {'largest difference':>19} {'ratio':>9}")
    good = True
    for name, want, got in zip(names, expected, found, strict=True):
        largest, ratio = abs(want).max(), relative_difference(got, want)
        good &= ratio <= TOLERANCES[dtype]
        shape = "x".join(map(str, want.shape))
        print(f"{name:8} {shape:>14} {largest:14.5f} {ratio * largest:19.2e} {ratio:9.1e}")
    print(
        "the same network"
        if good
        else f"NOT the same network: more than {TOLERANCES[dtype]:g} apart"
    )
    return good
