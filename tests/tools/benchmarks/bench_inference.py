"""How fast the engine answers, cold, warm and after that, and where the time goes.

    python tests/tools/benchmarks/bench_inference.py [--variant miny] [--size 224] [--device CPU]
        [--dtype float32] [--batches 1 16] [--chart FILE.png]
        [--official groupmixformer.py --official-python PYTHON]

`--official` is the published PyTorch file, timed in turn with ours on the processor; it runs in an
interpreter that has PyTorch and einops. Times of runs are milliseconds: smallest and median.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peer import THREADS, Peer, describe, in_turn, timed

os.environ.setdefault("DEV", "CPU")

FIRST_ANSWER = """
import time; began = time.perf_counter()
import numpy as np, tinygmf
model = tinygmf.create_model("groupmixformer_{variant}")
predict = tinygmf.Predictor(model, {size}, device="{device}", dtype="{dtype}", progress=False)
predict.run(np.zeros((1, 3, {size}, {size}), np.float32))
print(time.perf_counter() - began)
"""


def first_answers(options: argparse.Namespace) -> tuple[float, float]:
    """Seconds from a new process to its first answer: with empty caches, and again after that."""
    script = FIRST_ANSWER.format(**vars(options))
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {"XDG_CACHE_HOME": caches}
        command = [sys.executable, "-c", script]
        seconds = [
            float(subprocess.check_output(command, env=environment, text=True).split()[-1])
            for _ in range(2)
        ]
    return seconds[0], seconds[1]


def loading() -> float:
    """Seconds to load a checkpoint of miny, 23 MB, with `load_model`."""
    from tinygmf import create_model, load_model, save_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "miny.pth")
        save_model(create_model("groupmixformer_miny"), path)
        return min(timed(lambda: load_model(path))() for _ in range(3))


def peak() -> float:
    """GFLOP/s of one core in NumPy's matrix product, the best of many."""
    import numpy as np

    x = np.ones((768, 768), np.float32)
    return 2 * 768**3 / min(timed(lambda: x @ x)() for _ in range(30)) / 1e9


PARTS = {  # the part of the network that a weight belongs to
    **dict.fromkeys(("qkv", "proj_fifth", "proj_heads", "mask"), "attention"),
    **dict.fromkeys(("windows", "mix", "fifth", "fifth_weight"), "aggregator"),
    **dict.fromkeys(("cpe", "crpe"), "position"),
    **dict.fromkeys(("fc1", "fc2"), "MLP"),
}
WITHOUT_WEIGHTS = {
    "layernorm": "norms",
    "gelu": "MLP",
    "softmax": "attention",
    "dense": "attention",
}


def weight_names(config: Any) -> list[str]:
    """The name of each weight of a folded network, in the order of its list."""
    from tinygmf.engine.folded import BlockWeights

    names = ["stem"] * 4
    for depth in config.serial_depths:
        names += ["embedding"] * 3 + ["mask"] + list(BlockWeights._fields) * depth
    return names + ["head"] * 2


def part_of(call: Any, names: list[str]) -> str:
    """The part of the network that a kernel belongs to: that of the weights it reads."""
    from tinygrad.uop.ops import Ops

    slots = {u.arg.slot for source in call.src[1:] for u in source.toposort() if u.op is Ops.PARAM}
    weights = [names[slot - 1] for slot in sorted(slots) if slot > 0]  # slot 0 is the picture
    kind = call.src[0].src[0].arg.function_name.split("_")[0]
    if weights:
        return PARTS.get(weights[0], weights[0])
    return WITHOUT_WEIGHTS.get(kind, "padding")


def groups(predict: Any, rounds: int = 20) -> dict[str, tuple[int, float, float]]:
    """Kernels, milliseconds and GFLOP of each part of the network, from the best times."""
    launcher, names = predict._launcher, weight_names(predict.config)
    best = [float("inf")] * len(launcher.kernels)
    for _ in range(rounds):
        for i, kernel in enumerate(launcher.kernels):
            pieces = [[ctypes.c_uint64(word) for word in words] for words in kernel.pieces]
            began = time.perf_counter()
            for words in pieces:
                kernel.program.fxn(*words)
            best[i] = min(best[i], time.perf_counter() - began)
    table: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for call, seconds in zip(launcher.captured.linear.src, best, strict=True):
        row = table[part_of(call, names)]
        row[0] += 1
        row[1] += 1e3 * seconds
        row[2] += call.src[0].src[0].arg.estimates.ops / 1e9
    ordered = sorted(table.items(), key=lambda item: -item[1][1])
    return {name: (int(row[0]), row[1], row[2]) for name, row in ordered}


def draw(table: dict[str, tuple[int, float, float]], title: str, path: Path) -> None:
    """A bar for each part of the network: its milliseconds in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    names = list(table)[::-1]
    bars = axis.barh(names, [table[name][1] for name in names], color="#3b6ea5")
    axis.bar_label(bars, [f"{table[n][1]:.1f} ms, {table[n][0]} kernels" for n in names], padding=4)
    axis.set(xlabel="milliseconds of one picture", title=title)
    axis.set_xlim(0, 1.35 * max(row[1] for row in table.values()))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def compare(options: argparse.Namespace, model: Any, batch: int) -> Any:
    """Times one batch size, beside PyTorch if it is there; returns the predictor."""
    import numpy as np

    from tinygmf import Predictor

    shape = (batch, 3, options.size, options.size)
    setting = {"device": options.device, "dtype": options.dtype, "progress": False}
    predict = Predictor(model, options.size, batch_size=batch, **setting)
    pictures = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    runs = {f"batch {batch}, tinygmf": timed(lambda: predict.run(pictures))}
    peer = None
    if options.official:
        peer = Peer(options.official_python, options.official, model.config, shape, "eager")
        if batch == options.batches[0]:
            print(f"PyTorch {peer.version} from a new process to its first: {peer.first:.2f} s")
        runs[f"batch {batch}, PyTorch, {peer.threads} threads"] = peer
    rounds = options.rounds if batch == 1 else max(options.rounds // 4, 3)
    results = in_turn(runs, rounds)
    for name, times in results.items():
        print(f"{name:44}{describe(times)}")
    if peer is not None:
        ours, theirs = results.values()
        ratios = [of(ours) / of(theirs) for of in (min, statistics.median)]
        print(f"{'  ours / PyTorch':44}{ratios[0]:9.2f} {ratios[1]:9.2f}")
        peer.close()
    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--variant", default="miny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chart", type=Path, help="draw the time by part of the network")
    parser.add_argument("--official", type=Path, help="the published groupmixformer.py")
    parser.add_argument("--official-python", default=sys.executable)
    options = parser.parse_args()
    for name in THREADS:
        os.environ[name] = "1"  # for the peak of one core

    import numpy as np

    from tinygmf import create_model

    for name in THREADS:
        del os.environ[name]
    cores = os.cpu_count() or 1
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {sys.version[:7]}")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"tinygrad {version('tinygrad')}, NumPy {np.__version__}{load}")
    cold, warm = first_answers(options)
    print(f"from a new process to its first answer: cold {cold:.2f} s, warm {warm:.2f} s")
    print(f"loading a checkpoint of 23 MB: {loading():.2f} s")

    model = create_model(f"groupmixformer_{options.variant}")
    print(f"{'':44}{'smallest':>9} {'median':>9}  ms")
    first, *_ = [compare(options, model, batch) for batch in options.batches]
    if options.device == "CPU":
        report_kernels(first, options)


def report_kernels(predict: Any, options: argparse.Namespace) -> None:
    """Where the time of one run goes, and how far it is from the core's peak."""
    from tinygmf.study.summary import summarize

    table = groups(predict)
    total = sum(milliseconds for _, milliseconds, _ in table.values())
    print(f"\n{'kernels of one picture':24}{'calls':>6}{'ms':>8}{'share':>7}{'GFLOP/s':>9}")
    for name, (calls, milliseconds, gflop) in table.items():
        rate = gflop / milliseconds * 1e3
        print(f"{name:24}{calls:6}{milliseconds:8.2f}{milliseconds / total:7.0%}{rate:9.1f}")
    rows = summarize(predict.config, (options.size, options.size))
    useful = 2 * sum(row.flops for row in rows) / 1e9
    top = peak()
    print(
        f"\nroofline: {useful:.2f} GFLOP of the unfolded network in {total:.1f} ms is "
        f"{useful / total * 1e3:.1f} GFLOP/s; one core reaches {top:.0f} in NumPy's product "
        f"({useful / total * 1e3 / top:.0%})"
    )
    if options.chart:
        draw(table, f"{options.variant} at {options.size}x{options.size}, one core", options.chart)


if __name__ == "__main__":
    main()
