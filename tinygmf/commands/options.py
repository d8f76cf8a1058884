"""Options that several commands have, and what they come to."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from tinygmf.tensors import DTYPES
from tinygmf.weights.reading import SHIPPED


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def add_weights(parser: argparse.ArgumentParser, required: bool = True) -> None:
    text = f".pth or .safetensors, or what comes along: {', '.join(SHIPPED)}"
    parser.add_argument("--weights", required=required, metavar="FILE", help=text)
    add_entry(parser)


def add_entry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="which of several networks in the file, e.g. model or state_dict.teacher; by default "
        "the average of a network and its average",
    )


def add_size(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    usual = "" if default else "; by default that of the training, or 224"
    parser.add_argument(
        "--size", type=positive, default=default, help=f"picture size in pixels{usual}"
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line; by default those in the file of weights",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    text = (
        "of the products; on the CPU device bfloat16 saves time if the processor multiplies it "
        "(AMX, or AMD from Zen 4 on), and else, as float16 does, memory alone"
    )
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")


def add_threads(parser: argparse.ArgumentParser) -> None:
    text = "of the CPU device; by default what OMP_NUM_THREADS says, or one for each core"
    parser.add_argument("--threads", type=positive, help=text)


def chosen_device(args: argparse.Namespace) -> str:
    """The device, opened, and the one for all tensors from here on: call it before the first."""
    from tinygmf.engine.devices import open_device, set_default_device

    device = open_device(args.device)
    set_default_device(device)
    return device


def without_device() -> Any:
    """A context for what computes nothing: tensors lie in Python's memory, no device is opened."""
    from tinygrad import Context

    return Context(DEV="PYTHON")


def chosen_size(args: argparse.Namespace, model: Any) -> int:
    """The side of the pictures: --size, else that of the training, else 224.

    Says so where the network was trained on another size than is asked for. Raises ValueError
    where a picture of that size and its first maps alone would not fit the memory.
    """
    check_memory(args.size, model.config)
    trained = model.settings.image_size
    if args.size and trained and args.size != trained:
        print(
            f"{args.weights}: trained on pictures of {trained} pixels, used on {args.size}",
            file=sys.stderr,
        )
    return args.size or trained or 224


def check_memory(size: int | None, config: Any) -> None:
    """ValueError for --size, where one picture and what the stem makes of it are more than there
    is: the system would end the program after a while, without a word."""
    there = memory_here()
    if size is None or there is None:
        return
    pixels = config.in_chans + config.embedding_dims[0] / 4  # the stem's maps have half the side
    if (needed := 4 * pixels * size**2) > there:
        raise ValueError(
            f"--size {size}: expected pictures that fit the memory of {there / 1e9:.0f} GB, found "
            f"that one needs {needed / 1e9:.0f} GB at least: give a smaller size"
        )


def memory_here() -> float | None:
    """Bytes of memory that this process may have; None where the system does not say."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def chosen_classes(args: argparse.Namespace, model: Any) -> list[str]:
    """The names of the network's classes. Raises ValueError for a network without a head."""
    from tinygmf.data.classes import names_of

    if not model.config.num_classes:
        raise ValueError(f"{args.weights}: expected a network with a head, found one without")
    return names_of(model.settings, model.config.num_classes, args.weights, args.classes)
