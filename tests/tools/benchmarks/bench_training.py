"""How fast a small network trains: the first step, the first step of a new process, and a step.

    python tests/tools/benchmarks/bench_training.py [--batch 64] [--size 32] [--device CPU]
        [--official groupmixformer.py --official-python PYTHON]

The network has embedding dims 20, 40, 80, 80, depths 1, 1, 2, 1 and MLP ratio 4, unless --variant
names another. `--official` is the published PyTorch file, timed in turn with ours on the processor
(fused AdamW, gradient clipping, label smoothing in both); it runs in an interpreter that has
PyTorch and einops.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peer import Peer, describe, in_turn, timed

os.environ.setdefault("DEV", "CPU")


def small_or(variant: str | None, classes: int) -> Any:
    from dataclasses import replace

    from tinygmf.config import VARIANTS, GroupMixFormerConfig

    if variant:
        return replace(VARIANTS[f"groupmixformer_{variant}"], num_classes=classes, drop_path_rate=0)
    return GroupMixFormerConfig((20, 40, 80, 80), (1, 1, 2, 1), (4, 4, 4, 4), classes, 0.0, 0.0)


def training_step(options: argparse.Namespace) -> Callable[[], None]:
    """A function that makes one step, its data at hand."""
    import numpy as np

    from tinygmf.engine.devices import open_device
    from tinygmf.model import GroupMixFormer
    from tinygmf.training.programs import Programs
    from tinygmf.training.state import TrainingState
    from tinygmf.training.update import update_schedule
    from tinygmf.weights.checkpoint import state_arrays

    config = small_or(options.variant, options.classes)
    device = open_device(options.device)
    arrays = state_arrays(GroupMixFormer(config, seed=0))
    state = TrainingState(config, arrays, device, weight_decay=0.05)
    programs = Programs(
        config, state, options.batch, options.size, device, progress=False, dtype=options.dtype
    )
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((options.batch, 3, options.size, options.size), dtype=np.float32)
    targets = np.full((options.batch, options.classes), 0.1 / options.classes, np.float32)
    targets[np.arange(options.batch), rng.integers(0, options.classes, options.batch)] += 0.9
    factors = np.ones((2 * sum(config.serial_depths), options.batch), np.float32)

    def step() -> None:
        programs.gradient(1, pictures, targets, factors)
        programs.update(update_schedule(1e-3, 0, 5.0, 0.0))

    return step


def first_steps(arguments: list[str]) -> list[float]:
    """Seconds from a new process to the end of its second step: nothing compiled yet, and again."""
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {"XDG_CACHE_HOME": caches}
        command = [sys.executable, __file__, *arguments, "--first"]
        run = timed(lambda: subprocess.run(command, env=environment, check=True))
        return [run(), run()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", help="miny, tiny, …")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--first", action="store_true", help="make two steps and no more")
    parser.add_argument("--official", type=Path, help="the published groupmixformer.py")
    parser.add_argument("--official-python", default=sys.executable)
    options = parser.parse_args()
    if options.first:
        step = training_step(options)
        step()
        step()
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, tinygrad {version('tinygrad')}")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    cold, warm = first_steps(sys.argv[1:])
    print(f"new process to the end of its second step: cold {cold:.1f} s, warm {warm:.1f} s{load}")
    step = training_step(options)
    runs = {"a step, tinygmf": timed(step)}
    peer = None
    if options.official:
        config = small_or(options.variant, options.classes)
        shape = (options.batch, 3, options.size, options.size)
        peer = Peer(options.official_python, options.official, config, shape, "training")
        runs[f"a step, PyTorch {peer.version}, {peer.threads} threads"] = peer
    results = in_turn(runs, options.rounds)
    print(f"{'':44}{'smallest':>9} {'median':>9}  ms")
    for name, times in results.items():
        print(f"{name:44}{describe(times)}")
        print(f"{'  pictures a second':44}{1e3 * options.batch / min(times):9.0f}")
    if peer:
        ours, theirs = results.values()
        ratios = [of(ours) / of(theirs) for of in (min, statistics.median)]
        print(f"{'  ours / PyTorch':44}{ratios[0]:9.2f} {ratios[1]:9.2f}")
        peer.close()


if __name__ == "__main__":
    main()
