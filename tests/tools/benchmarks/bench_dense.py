"""Dense networks beside mmsegmentation's and torchvision's, in turn and in one run.

    python tests/tools/benchmarks/bench_dense.py --official groupmixformer.py --python PYTHON
        [--variant miny] [--size 512] [--rounds 10]

`--official` is models/groupmixformer.py of https://github.com/AILab-CVC/GroupMixFormer (3d3f409),
`--python` an interpreter with torch, torchvision, einops, mmsegmentation 1.2 and mmcv-lite 2.1.
Both sides are given a normalized picture: UPerNet's ends in a class for each pixel, RetinaNet's in
boxes after suppression. Weights are random: scores stay low, few boxes reach the suppression.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from bench_peers import heading, processor_name, row
from peer import Peer, in_turn

from tinygmf.config import VARIANTS, full_name

CLASSES = {"upernet": 150, "retinanet": 91}  # of ADE20K, and of torchvision's COCO


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="the published code")
    parser.add_argument("--python", required=True, help="an interpreter that has the peers")
    parser.add_argument("--variant", default="miny")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print(f"{processor_name()}; milliseconds, the smallest and the median; MB at most\n")
    heading("", "PyTorch", "tinygmf", "ratio of the smallest", "PyTorch, MB", "tinygmf, MB")
    for head in CLASSES:
        compare(options, head)


def compare(options: argparse.Namespace, head: str) -> None:
    shape = 1, 3, options.size, options.size
    config = replace(VARIANTS[full_name(options.variant)], num_classes=CLASSES[head])
    theirs = Peer(options.python, options.official, config, shape, head)
    ours = Peer(sys.executable, options.official, config, shape, f"tinygmf {head}")
    times = in_turn({"theirs": theirs, "ours": ours}, options.rounds)
    cells = [f"{min(of):.0f}, {statistics.median(of):.0f}" for of in times.values()]
    ratio = min(times["ours"]) / min(times["theirs"])
    memory = [f"{peer.close():.0f}" for peer in (theirs, ours)]
    name = f"{head}, {options.variant}, one picture of {options.size}x{options.size}"
    row(name, *cells, f"{ratio:.2f}", *memory)


if __name__ == "__main__":
    main()
