"""Thousands of predictions and training steps: memory and open files stay as they are.

    python tests/tools/long_run.py --predictions 10000 --steps 2000

Prints what the process has after a tenth of the way, and at the end. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinygmf.checks.demo import ASSETS, DIGITS_WEIGHTS, SIZE
from tinygmf.data.dataset import Dataset
from tinygmf.data.shapes import shapes
from tinygmf.engine.devices import open_device
from tinygmf.engine.predictor import Predictor
from tinygmf.model import create_model
from tinygmf.training.recipe import Recipe
from tinygmf.training.run_file import save_run
from tinygmf.training.trainer import Trainer
from tinygmf.weights.checkpoint import load_model

MEGABYTES = 3  # what memory may grow: the allocator's own small change
PR_SET_THP_DISABLE = 41  # <linux/prctl.h>


def usage() -> tuple[float, int]:
    """Megabytes of memory, and open files.

    Memory is this process's own: pages of files come and go as the machine has room for them.
    """
    gc.collect()
    _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    own = (resident - of_files) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return own, len(os.listdir("/proc/self/fd"))


def do_without_huge_pages() -> None:
    """Linux may join small pages at any time, and what was never touched counts from then on."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


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


def small_shapes(size: int, pictures: int = 40) -> Dataset:
    """So many pictures to train on, and a quarter as many, ten at least, to validate on."""
    data, few = shapes(size), max(10, pictures // 4)
    return replace(
        data,
        train=data.train[:pictures],
        train_labels=data.train_labels[:pictures],
        val=data.val[:few],
        val_labels=data.val_labels[:few],
    )


def train(steps: int, device: str | None = None, pictures: int = 40) -> tuple[float, int]:
    """The same for training steps of four pictures; after each epoch the run is measured and saved.

    The predictions come first: they warm up what both need.
    """
    data = small_shapes(SIZE, pictures)
    per_epoch = pictures // 4
    recipe = Recipe(epochs=steps // per_epoch, batch_size=4, size=SIZE, warmup_epochs=0)
    model = create_model("groupmixformer_nano", len(data.classes))
    trainer = Trainer(model, data, recipe, open_device(device), progress=False)
    before, start = (0.0, 0), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        while trainer.step < trainer.steps:
            if before[0] == 0 and trainer.step >= trainer.steps // 10:
                before = usage()
            trainer.run_epoch()
            save_run(Path(folder, "run.safetensors"), trainer.state())
    after, seconds = usage(), time.perf_counter() - start
    print(f"{trainer.step} training steps in {seconds:.0f} s")
    print(f"memory {before[0]:.1f} -> {after[0]:.1f} MB, open files {before[1]} -> {after[1]}")
    return after[0] - before[0], after[1] - before[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--predictions", type=int, default=10_000, help="0 for none")
    parser.add_argument("--steps", type=int, default=2000, help="of training, 0 for none")
    parser.add_argument("--device")
    args = parser.parse_args(arguments)
    do_without_huge_pages()
    grown = [run(args.predictions, args.device)] if args.predictions else []
    grown += [train(args.steps, args.device)] if args.steps else []
    return int(any(memory > MEGABYTES or files > 0 for memory, files in grown))


if __name__ == "__main__":
    sys.exit(main())
