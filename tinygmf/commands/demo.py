"""Classify twelve handwritten digits with the network that comes with tinygmf."""

from __future__ import annotations

import argparse

from tinygmf.commands.options import add_device, add_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="tinygmf_demo.png", help="where to save the picture")
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.checks.demo import run_demo

    return run_demo(args.out, args.device)
