"""Train networks with parts of the attention removed, and compare them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tinygmf.commands.options import SHORT, add_threads, positive, variant
from tinygmf.config import VARIANTS
from tinygmf.files import counted, replacing, require_writable
from tinygmf.study.ablation import (
    ABLATIONS,
    TASKS,
    ablate,
    chosen_ablations,
    draw_outcomes,
    format_outcome,
    heading,
    save_outcomes,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = ", ".join(ABLATIONS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {listed}; by default all")
    parser.add_argument(
        "--model",
        type=variant,
        choices=list(VARIANTS),
        metavar="NAME",
        default="groupmixformer_nano",
        help=", ".join(SHORT),
    )
    able = ", ".join(chosen_ablations(TASKS["scenes-segment"], ()))
    text = f"scenes-segment: a Semantic FPN on each network, for {able} only"
    parser.add_argument("--data", choices=list(TASKS), default="digits", help=text)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, seeded 0, 1, 2, …")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw them: .png or .svg")
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")
    text = "ablations trained side by side, each on one core; by default one, on all cores"
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help=text)
    add_threads(parser)


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError or OSError before minutes are spent on training."""
    from tinygmf.study.figures import require_matplotlib

    if args.seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, found {args.seeds}")
    if args.chart:
        require_matplotlib()
        if args.chart.suffix not in (".png", ".svg"):
            raise ValueError(f"{args.chart}: expected a name that ends in .png or .svg")
    for path in filter(None, (args.json, args.chart)):
        require_writable(path)


def run(args: argparse.Namespace) -> int:
    """Train ablations of Group-Mix Attention and compare them."""
    from tinygmf.engine.devices import device_description, open_device, set_default_device

    check_options(args)
    known: Any = TASKS[args.data]
    task = replace(known, recipe=replace(known.recipe, epochs=args.epochs))
    names, config = chosen_ablations(task, args.names), VARIANTS[args.model]
    device = open_device(args.device)
    set_default_device(device)
    runs = f"{counted(args.epochs, 'epoch')}, {counted(args.seeds, 'seed')}"
    print(f"{args.model}, {args.data}, {runs}; {device_description(device)}")
    print(heading(task.measure))
    outcomes = []
    for outcome in ablate(names, config, task, range(args.seeds), device, args.jobs):
        tqdm.write(format_outcome(outcome))  # above the bar
        sys.stdout.flush()
        outcomes.append(outcome)
        if args.json:
            save_outcomes(outcomes, args.json)
    if args.chart:
        with replacing(args.chart) as file:
            draw_outcomes(outcomes).savefig(file, format=args.chart.suffix[1:])
    return 0
