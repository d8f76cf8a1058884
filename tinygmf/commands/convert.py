"""Rewrite weights in the other format, or take the network out of a checkpoint."""

from __future__ import annotations

import argparse

from tinygmf.commands.options import add_entry, without_device
from tinygmf.config import GroupMixFormerConfig, variant_name
from tinygmf.files import require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help=".pth or .safetensors")
    parser.add_argument("output", metavar="OUT", help=".pth or .safetensors")
    add_entry(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.weights.checkpoint import load_weights, write_tensors

    require_writable(args.output)
    with without_device():
        weights = load_weights(args.input, args.entry)
    write_tensors(weights.arrays, args.output, weights.settings.to_json())
    print(f"{args.output}: {_describe(weights.config)}")
    return 0


def _describe(config: GroupMixFormerConfig) -> str:
    name = variant_name(config) or f"GroupMixFormer {config.embedding_dims} {config.serial_depths}"
    return f"{name}, {config.num_classes} classes"
