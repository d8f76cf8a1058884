"""Thousands of predictions: memory and open files stay as they are, and so do the answers.

    python tests/long_run.py --predictions 10000

Prints what the process has after a tenth of the predictions, and at the end. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from pathlib import Path

import numpy as np

from tinygmf.checkpoint import load_model
from tinygmf.demo import ASSETS, DIGITS_WEIGHTS, SIZE
from tinygmf.predictor import Predictor

MEGABYTES = 3  # what memory may grow: the allocator's own small change


def usage() -> tuple[float, int]:
    """Megabytes of memory, and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


def run(predictions: int, device: str | None = None) -> tuple[float, int]:
    """What memory (MB) and open files grow by after the first tenth of the predictions."""
    predict = Predictor(load_model(DIGITS_WEIGHTS), SIZE, device=device, progress=False)
    paths = sorted((ASSETS / "digits").glob("*.png"))
    first = [predict(path) for path in paths]
    before, start = (0.0, 0), time.perf_counter()
    for i in range(predictions):
        if i == predictions // 10:
            before = usage()
        found = predict(paths[i % len(paths)])
        np.testing.assert_array_equal(found, first[i % len(paths)])
    after, seconds = usage(), time.perf_counter() - start
    print(f"{predictions} predictions in {seconds:.0f} s, every answer the same bit by bit")
    print(f"memory {before[0]:.1f} -> {after[0]:.1f} MB, open files {before[1]} -> {after[1]}")
    return after[0] - before[0], after[1] - before[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--device")
    args = parser.parse_args(arguments)
    memory, files = run(args.predictions, args.device)
    return int(memory > MEGABYTES or files > 0)


if __name__ == "__main__":
    sys.exit(main())
