"""Show what a network is made of, stage by stage."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinygmf.commands.options import add_size
from tinygmf.config import VARIANTS, GroupMixFormerConfig
from tinygmf.model import list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL|FILE", help="all models without it")
    add_size(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.study.summary import format_summary

    if args.model is None:
        for name in list_models():
            print(f"{name}\n{format_summary(VARIANTS[name], (args.size, args.size))}\n")
        return 0
    config = VARIANTS.get(args.model) or _file_config(args.model)
    print(format_summary(config, (args.size, args.size)))
    return 0


def _file_config(path: str) -> GroupMixFormerConfig:
    from tinygmf.weights.checkpoint import load_weights

    if not Path(path).exists():
        raise ValueError(
            f"{path}: expected a weight file or one of {', '.join(VARIANTS)}, found neither"
        )
    return load_weights(path).config
