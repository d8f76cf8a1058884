"""Compare this port with the pure-Python reference, stage by stage."""

from __future__ import annotations

import argparse

from tinygmf.commands.options import add_device, add_dtype, add_entry, add_size, chosen_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="FILE", help="by default the network of the demo")
    add_entry(parser)
    add_size(parser, default=32)
    add_dtype(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.checks.demo import DIGITS_WEIGHTS
    from tinygmf.checks.verify import verify_network

    weights = args.weights or DIGITS_WEIGHTS
    device = chosen_device(args)
    return 0 if verify_network(weights, args.size, device, args.dtype, args.entry) else 1
