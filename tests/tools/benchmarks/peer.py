"""Other runtimes of the network, timed in turn with ours: each in a process of its own, on the
processor."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

SETTLED = 0.3  # seconds until the threads of other runtimes have stopped spinning
PROCESS = Path(__file__).with_name("peer_process.py")


class Peer:
    """A peer of some kind (see `peer_process.py`), which runs once when asked."""

    def __init__(
        self, python: str, path: Path, config: Any, shape: tuple[int, ...], kind: str
    ) -> None:
        sizes = {
            "embedding_dims": config.embedding_dims,
            "serial_depths": config.serial_depths,
            "mlp_ratios": config.mlp_ratios,
            "num_classes": config.num_classes,
        }
        arguments = [kind, str(path), *map(json.dumps, (sizes, shape))]
        self.process = subprocess.Popen(
            [python, str(PROCESS), *arguments],
            env={k: v for k, v in os.environ.items() if k not in THREADS},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if not (ready := self._read()):
            raise SystemExit(f"{kind}: {python} {PROCESS.name} ended before its first run")
        self.version, self.threads, first = ready.split()
        self.first = float(first)  # seconds from a new process to its first run

    def __call__(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> float:
        """Ends it; the most memory that it has held, in MB."""
        return float(self.process.communicate()[0] or "nan")


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return run


def in_turn(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every run, one after the other in every round, as a machine drifts.

    The threads of other runtimes spin for a while after their run, and would take this one's cores;
    so each waits until they have stopped, and runs once to have its data in the caches again.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(SETTLED)
            run()
            times[name].append(1e3 * run())
    return times


def describe(times: list[float]) -> str:
    return f"{min(times):9.1f} {statistics.median(times):9.1f}"
