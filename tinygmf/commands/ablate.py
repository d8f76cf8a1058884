"""Train networks with parts of the attention removed, and compare them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from tinygmf.commands.options import add_threads, positive
from tinygmf.config import VARIANTS, full_name
from tinygmf.files import replacing, require_writable
from tinygmf.study.ablation import (
    ABLATIONS,
    HEADING,
    TASKS,
    ablate,
    draw_outcomes,
    format_outcome,
    save_outcomes,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tinygmf ablate`."""
    listed = ", ".join(ABLATIONS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {listed}; default: all")
    parser.add_argument(
        "--model", type=full_name, choices=list(VARIANTS), default="groupmixformer_nano"
    )
    parser.add_argument("--data", choices=list(TASKS), default="digits")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, seeded 0, 1, 2, …")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw them: .png or .svg")
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")
    text = "ablations trained side by side, each on one core; by default one, on all of them"
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help=text)
    add_threads(parser)


def refuse_what_cannot_be(args: argparse.Namespace) -> None:
    """Raise ValueError or OSError before minutes go into training."""
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

    refuse_what_cannot_be(args)
    task = TASKS[args.data]
    task = replace(task, recipe=replace(task.recipe, epochs=args.epochs))
    device = open_device(args.device)
    set_default_device(device)
    names, config = args.names or list(ABLATIONS), VARIANTS[args.model]
    what = f"{args.model}, {args.data}, {args.epochs} epochs, {args.seeds} seeds"
    print(f"{what}; {device_description(device)}")
    print(HEADING)
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
