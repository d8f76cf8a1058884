"""Search once for faster kernels of a network, and keep them."""

from __future__ import annotations

import argparse

from tinygmf.commands.options import add_predictor, add_weights, chosen_predictor, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights(parser)
    parser.add_argument("--batch-size", type=positive, default=1, help="pictures per run")
    parser.add_argument("--beam", type=positive, default=2, help="width of the beam search")
    add_predictor(parser)


def run(args: argparse.Namespace) -> int:
    predict = chosen_predictor(args, args.batch_size)
    before, after = predict.tune(args.beam)
    kept = "kept" if after < before else "nothing faster found, the program is unchanged"
    print(f"{1000 * before:.1f} ms before, {1000 * after:.1f} ms after: {kept}")
    return 0
