"""Show what a network is made of, stage by stage."""

from __future__ import annotations

import argparse
from typing import Any

from tinygmf.commands.options import SHORT, add_entry, add_size
from tinygmf.config import PUBLISHED_SIZE, VARIANTS, GroupMixFormerConfig, full_name
from tinygmf.files import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL|FILE", help="by default every model")
    add_entry(parser)
    add_size(parser)


def run(args: argparse.Namespace) -> int:
    from tinygmf.study.summary import format_summary
    from tinygmf.tensors import without_device

    with without_device():  # shapes are traced, nothing is computed
        if args.model is None:
            size = args.size or PUBLISHED_SIZE
            for name, config in VARIANTS.items():
                print(f"{name}\n{format_summary(config, (size, size))}\n")
            return 0
        config, own, model = _named(args.model, args.entry)
        size = args.size or own or PUBLISHED_SIZE
        if isinstance(config, GroupMixFormerConfig):
            print(format_summary(config, (size, size)))
            return 0
        from tinygmf.dense.summary import format_heads

        print(format_summary(config.backbone, (size, size), head=False))
        print(format_heads(model, (size, size)))
    return 0


def _named(name: str, entry: str | None) -> tuple[Any, int | None, Any]:
    """The configuration of a listed network or of one in a file, the picture size if its settings
    have one, and the network itself."""
    from tinygmf.dense.networks import create_model, list_models, load_model
    from tinygmf.weights.reading import BUNDLED, find_weights

    if full_name(name) in VARIANTS:
        return VARIANTS[full_name(name)], None, None
    if name in list_models():
        model = create_model(name)
    elif find_weights(name).exists():
        model = load_model(name, entry=entry)
    else:
        near = did_you_mean(name, [*SHORT, *list_models(), *BUNDLED])
        raise ValueError(
            f"{name}: expected a weight file or one of {', '.join(list_models())}, found "
            f"neither{near}"
        )
    settings = model.settings
    return model.config, getattr(settings, "min_size", settings.image_size), model
