"""The README's table of speed: tinygmf beside PyTorch, ONNX Runtime and OpenVINO, in turn, one run.

    python tests/tools/benchmarks/bench_peers.py --official groupmixformer.py --python PYTHON
        [--variants miny tiny small base] [--batches 1 16] [--rounds 20]
        [--parts answers steps starts]

`--official` is models/groupmixformer.py of https://github.com/AILab-CVC/GroupMixFormer (3d3f409),
`--python` an interpreter with torch, einops, onnxruntime and openvino; this one needs onnx. Every
runtime takes as many threads as it likes. Times are milliseconds, the smallest of all rounds; a
load average above 1 spoils them.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bench_training import small_or, training_step
from peer import Peer, in_turn, timed

from tinygmf.loops.tiles import processor

PEERS = {  # kind, and its column
    "eager": "PyTorch",
    "compiled": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino float32": "OpenVINO, float32",
    "openvino": "OpenVINO, default",
}
OURS = {"float32": "tinygmf", "bfloat16": "tinygmf, bfloat16"}
STEPS = (("nano", 32, 64), ("miny", 96, 16))  # variant, size, batch
SIZE = 224

Options = argparse.Namespace


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="the published code")
    parser.add_argument("--python", required=True, help="an interpreter that has the peers")
    parser.add_argument("--variants", nargs="+", default=["miny", "tiny", "small", "base"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--parts", nargs="+", default=["answers", "steps", "starts"])
    options = parser.parse_args()
    print(f"{processor_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    if "answers" in options.parts:
        answers(options)
    if "steps" in options.parts:
        steps(options)
    if "starts" in options.parts:
        starts()


def processor_name() -> str:
    lines = [line for line in processor().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor()


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def heading(*cells: object) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def answers(options: Options) -> None:
    """A row for each variant and batch."""
    heading("", *PEERS.values(), *OURS.values())
    versions: dict[str, str] = {}
    for variant in options.variants:
        for batch in options.batches:
            with ExitStack() as stack:
                runs = runners(options, variant, batch, stack, versions)
                times = in_turn(runs, options.rounds if batch == 1 else -(-options.rounds // 4))
            cells = (f"{min(times[kind]):.1f}" for kind in (*PEERS, *OURS))
            row(f"{variant}, {batch} picture{'s' if batch > 1 else ''}", *cells)
    print("\n" + "; ".join(f"{PEERS[kind]} {text}" for kind, text in versions.items()) + "\n")


def runners(
    options: Options, variant: str, batch: int, stack: ExitStack, versions: dict[str, str]
) -> dict[str, Callable[[], float]]:
    """Each runtime's network, ready to be timed, by its kind. The ONNX file is the folded network:
    runtimes fold the rest."""
    import numpy as np

    from tinygmf import Predictor, create_model
    from tinygmf.export.onnx import write_onnx
    from tinygmf.weights.checkpoint import NetworkWeights

    shape = (batch, 3, SIZE, SIZE)
    model = create_model(f"groupmixformer_{variant}")
    file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "network.onnx")
    write_onnx(NetworkWeights.of(model), file, (SIZE, SIZE), folded=True)
    runs: dict[str, Callable[[], float]] = {}
    for kind in PEERS:
        source = options.official if kind in ("eager", "compiled") else file
        runs[kind] = peer = Peer(options.python, source, model.config, shape, kind)
        stack.enter_context(closing(peer))
        versions[kind] = f"{peer.version}, {peer.threads} threads"
    pictures = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    for dtype in OURS:
        setting: dict[str, Any] = {"device": "CPU", "dtype": dtype, "progress": False}
        predict = Predictor(model, SIZE, batch_size=batch, **setting)
        runs[dtype] = timed(lambda predict=predict: predict.run(pictures))
    return runs


def steps(options: Options) -> None:
    """A row for each training step."""
    heading("a training step", "PyTorch", "tinygmf", "ratio")
    for variant, size, batch in STEPS:
        setting = {"variant": variant, "size": size, "batch": batch, "classes": 10}
        step = training_step(Options(device="CPU", dtype="float32", **setting))
        shape, config = (batch, 3, size, size), small_or(variant, 10)
        with closing(Peer(options.python, options.official, config, shape, "training")) as peer:
            times = in_turn({"peer": peer, "ours": timed(step)}, options.rounds)
        theirs, ours = min(times["peer"]), min(times["ours"])
        row(
            f"{variant}, {batch} of {size}x{size}",
            f"{theirs:.0f}",
            f"{ours:.0f}",
            f"{ours / theirs:.2f}",
        )
    print()


def starts() -> None:
    """Seconds of whole commands in a new process, the last of which finds all compiled."""
    from PIL import Image

    from tinygmf import create_model, save_model

    with tempfile.TemporaryDirectory() as folder:
        picture, weights = Path(folder, "picture.png"), Path(folder, "miny.safetensors")
        Image.new("RGB", (320, 240), "navy").save(picture)
        save_model(create_model("groupmixformer_miny"), weights)
        setting = ["--weights", str(weights), "--device", "CPU"]
        classify = [sys.executable, "-m", "tinygmf", "classify", str(picture), *setting]
        caches = os.environ | {"XDG_CACHE_HOME": folder}

        def seconds(command: list[str]) -> float:
            run = lambda: subprocess.run(command, env=caches, check=True, capture_output=True)  # noqa: E731
            return timed(run)()

        heading("a new process, to its end", "seconds")
        row("classify, miny, nothing compiled", f"{seconds(classify):.1f}")
        row("classify, miny, after that", f"{min(seconds(classify) for _ in range(5)):.2f}")
        bare = [sys.executable, "-c", "import tinygmf"]
        row("import tinygmf", f"{min(seconds(bare) for _ in range(5)):.2f}")


if __name__ == "__main__":
    main()
