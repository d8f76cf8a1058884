"""Show what a network is made of, stage by stage."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinygmf.commands.options import add_entry, add_size, without_device
from tinygmf.config import VARIANTS, GroupMixFormerConfig, Settings
from tinygmf.model import list_models

PUBLISHED_SIZE = 224  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL|FILE", help="all models without it")
    add_entry(parser)
    add_size(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.study.summary import format_summary

    with without_device():  # shapes are traced, nothing is computed
        if args.model is None:
            size = args.size or PUBLISHED_SIZE
            for name in list_models():
                print(f"{name}\n{format_summary(VARIANTS[name], (size, size))}\n")
            return 0
        config, size = VARIANTS.get(args.model), args.size or PUBLISHED_SIZE
        if config is None:
            config, settings = _of_file(args.model, args.entry)
            size = args.size or settings.image_size or size
        print(format_summary(config, (size, size)))
    return 0


def _of_file(path: str, entry: str | None) -> tuple[GroupMixFormerConfig, Settings]:
    from tinygmf.weights.checkpoint import load_weights

    if not Path(path).exists():
        raise ValueError(
            f"{path}: expected a weight file or one of {', '.join(VARIANTS)}, found neither"
        )
    model = load_weights(path, entry)
    return model.config, model.settings
