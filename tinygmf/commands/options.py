"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from tinygmf.config import LARGEST_SIZE, PUBLISHED_SIZE, VARIANTS, full_name
from tinygmf.files import did_you_mean
from tinygmf.tensors import DTYPES
from tinygmf.weights.reading import BUNDLED

SHORT = [name.removeprefix("groupmixformer_") for name in VARIANTS]


def positive(text: str) -> int:
    """A whole number of at least 1, and of no more than makes sense anywhere."""
    number = int(text[:20]) if text.isdecimal() else 0  # Python refuses thousands of digits
    if not 1 <= number <= LARGEST_SIZE:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 1 to {LARGEST_SIZE}, found {text[:60]!r}"
        )
    return number


def variant(text: str) -> str:
    """The whole name of a listed network."""
    if full_name(text) not in VARIANTS:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(SHORT)}, or such a name with groupmixformer_ before it, found "
            f"{text!r}{did_you_mean(text, [*SHORT, *VARIANTS])}"
        )
    return full_name(text)


def add_weights(parser: argparse.ArgumentParser, required: bool = True) -> None:
    text = f".pth or .safetensors, or a bundled network: {', '.join(BUNDLED)}"
    parser.add_argument("--weights", required=required, metavar="FILE", help=text)
    add_entry(parser)


def add_entry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="which of several networks in the file, e.g. model or state_dict.teacher; by "
        "default the moving average, if the file holds a network and its average",
    )


def add_size(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    usual = "" if default else "; by default the training size, or 224"
    parser.add_argument(
        "--size", type=positive, default=default, help=f"picture size in pixels{usual}"
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one per line; by default those in the weight file",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    text = (
        "of the products; on the CPU device bfloat16 saves time if the processor multiplies it "
        "(AMX, or AMD since Zen 4); otherwise, like float16, it saves only memory"
    )
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="CPU, CUDA, METAL, AMD, CL, …; by default the best one")


def add_threads(parser: argparse.ArgumentParser) -> None:
    text = "for the CPU device; by default OMP_NUM_THREADS, or one per core"
    parser.add_argument("--threads", type=positive, help=text)


def add_predictor(parser: argparse.ArgumentParser) -> None:
    """The options that `chosen_predictor` reads, except --weights and --entry."""
    add_size(parser)
    add_dtype(parser)
    add_device(parser)
    add_threads(parser)


def chosen_predictor(args: argparse.Namespace, batch_size: int = 1) -> Any:
    """The engine for the network of --weights, on its device; nothing is compiled yet."""
    from tinygmf.engine.predictor import Predictor
    from tinygmf.weights.checkpoint import load_weights

    device = chosen_device(args)
    model = load_weights(args.weights, args.entry)
    size = chosen_size(args, model)
    return Predictor(model, size, batch_size=batch_size, dtype=args.dtype, device=device)


def chosen_device(args: argparse.Namespace) -> str:
    """Open the device and make it the default of all tensors: call this before the first one."""
    from tinygmf.engine.devices import open_device, set_default_device

    device = open_device(args.device)
    set_default_device(device)
    return device


def chosen_size(args: argparse.Namespace, model: Any) -> int:
    """The side of the pictures in pixels: --size, else the training size, else 224.

    Prints a line if the network was trained at another size. Raises ValueError if even one picture
    and its first maps do not fit in memory.
    """
    trained = model.settings.image_size
    size = args.size or trained or PUBLISHED_SIZE
    where = f"--size {size}" if args.size else f"{args.weights}: image_size {size}"
    check_memory(size, model.config, where)
    if args.size and trained and args.size != trained:
        print(
            f"{args.weights}: trained at a size of {trained} pixels, used at {args.size}",
            file=sys.stderr,
        )
    return size


def check_memory(size: int, config: Any, where: str) -> None:
    """Raise ValueError if one picture of this size, which comes from `where`, and the stem's maps
    do not fit in memory: the system would kill the process without a message."""
    if (there := memory_here()) is None:
        return
    pixels = config.in_chans + config.embedding_dims[0] / 4  # the stem's maps have half the side
    if (needed := 4 * pixels * size**2) > there:
        raise ValueError(
            f"{where}: expected pictures that fit in {there / 1e9:.0f} GB of memory, found "
            f"that one needs at least {needed / 1e9:.0f} GB: give a smaller size"
        )


def memory_here() -> float | None:
    """Bytes of memory that this process may use; None if the system does not say."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # a container's limit; it may read "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)


def chosen_classes(args: argparse.Namespace, model: Any) -> list[str]:
    """The names of the network's classes. Raises ValueError if it has no head."""
    from tinygmf.data.classes import names_of

    if not model.config.num_classes:
        raise ValueError(f"{args.weights}: expected a network with a head, found one without")
    return names_of(model.settings, model.config.num_classes, args.weights, args.classes)
