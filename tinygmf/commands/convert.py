"""Rewrite weights in the other format, or extract the network from a checkpoint."""

from __future__ import annotations

import argparse

from tinygmf.commands.options import add_entry
from tinygmf.config import GroupMixFormerConfig, variant_name
from tinygmf.files import counted, require_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help=".pth or .safetensors")
    parser.add_argument("output", metavar="OUT", help=".pth or .safetensors")
    add_entry(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.dense.networks import kind_of_network, load_model
    from tinygmf.tensors import without_device
    from tinygmf.weights.checkpoint import save_model

    require_writable(args.output)
    with without_device():
        model = load_model(args.input, entry=args.entry)
        save_model(model, args.output)
    head, config = kind_of_network(model), model.config
    network = f"{head} on {_describe(config.backbone)}" if head else _describe(config)
    print(f"{args.output}: {network}, {counted(config.num_classes, 'class')}")
    return 0


def _describe(config: GroupMixFormerConfig) -> str:
    name = f"GroupMixFormer {config.embedding_dims} {config.serial_depths}"
    return variant_name(config) or name
