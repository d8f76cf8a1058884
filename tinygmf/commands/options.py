"""Options that several commands have."""

from __future__ import annotations

import argparse

from tinygmf.tensors import DTYPES


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, metavar="FILE", help=".pth or .safetensors")


def add_size(parser: argparse.ArgumentParser, default: int = 224) -> None:
    parser.add_argument("--size", type=positive, default=default, help="picture size in pixels")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")
