"""The published PyTorch code, timed in turn with ours: in a process of its own, on the processor.

It imports a few helpers of timm, which get stand-ins here.
"""

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

OFFICIAL = """
import time; began = time.perf_counter()
import sys, types, json, torch
from torch import nn
class DropPath(nn.Identity):
    def __init__(self, *rates): super().__init__()
def module(name, **contents):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)
module("ipdb"); module("timm"); module("timm.models")
module("timm.data", IMAGENET_DEFAULT_MEAN=(0.5,) * 3, IMAGENET_DEFAULT_STD=(0.5,) * 3)
module("timm.models.layers", DropPath=DropPath, to_2tuple=lambda x: (x, x),
       trunc_normal_=nn.init.trunc_normal_)
module("timm.models.registry", register_model=lambda function: function)
nn.SyncBatchNorm = nn.BatchNorm2d
official, (file, sizes, shape, training) = {}, sys.argv[1:]
exec(compile(open(file).read(), file, "exec"), official)
model = official["GroupMixFormer"](
    patch_size=4, in_dim=3, num_stages=4, num_heads=8, qkv_bias=True, qk_scale=None,
    drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0, pretrained=None, **json.loads(sizes))
x = torch.randn(*json.loads(shape))
labels = torch.randint(0, json.loads(sizes)["num_classes"], (len(x),))
loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
def forward():
    with torch.inference_mode():
        model(x)
def step():
    optimizer.zero_grad()
    loss_of(model(x), labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
if training == "true":
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3, weight_decay=0.05, fused=True)
else:
    model.eval()
run = step if training == "true" else forward
run()
print(torch.__version__, torch.get_num_threads(), time.perf_counter() - began, flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    run()
    print(time.perf_counter() - began, flush=True)
"""


class Peer:
    """The published PyTorch network, which runs once when asked: forward, or a training step
    (fused AdamW, gradient clipping, label smoothing)."""

    def __init__(
        self, python: str, path: Path, config: Any, shape: tuple[int, ...], training: bool
    ) -> None:
        sizes = {
            "embedding_dims": config.embedding_dims,
            "serial_depths": config.serial_depths,
            "mlp_ratios": config.mlp_ratios,
            "num_classes": config.num_classes,
        }
        arguments = [str(path), *map(json.dumps, (sizes, shape, training))]
        self.process = subprocess.Popen(
            [python, "-c", OFFICIAL, *arguments],
            env={k: v for k, v in os.environ.items() if k not in THREADS},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.version, self.threads, first = self._read().split()
        self.first = float(first)  # seconds from a new process to its first run

    def __call__(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate()


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return run


def in_turn(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every run, one after the other in every round, as a machine drifts."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(1e3 * run())
    return times


def describe(times: list[float]) -> str:
    return f"{min(times):9.1f} {statistics.median(times):9.1f}"
