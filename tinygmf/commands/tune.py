"""Search once for faster kernels of a network, and keep them."""

from __future__ import annotations

import argparse

from tinygmf.commands.options import (
    add_device,
    add_dtype,
    add_size,
    add_threads,
    add_weights,
    chosen_device,
    chosen_size,
    positive,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights(parser)
    add_size(parser)
    parser.add_argument("--batch-size", type=positive, default=1, help="pictures in one run")
    add_dtype(parser)
    parser.add_argument("--beam", type=positive, default=2, help="width of the beam search")
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.engine.predictor import Predictor
    from tinygmf.weights.checkpoint import load_weights

    device = chosen_device(args)
    model = load_weights(args.weights, args.entry)
    size = chosen_size(args, model)
    predict = Predictor(model, size, batch_size=args.batch_size, dtype=args.dtype, device=device)
    before, after = predict.tune(args.beam)
    kept = "kept" if after < before else "nothing faster was found, the program is unchanged"
    print(f"{1000 * before:.1f} ms before, {1000 * after:.1f} ms after: {kept}")
    return 0
