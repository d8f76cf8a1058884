"""The command `tinygmf`: each subcommand is a file beside this one.

A user's mistake ends with one line on standard error and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Iterable
from importlib import import_module

from tinygmf import __version__
from tinygmf.engine.devices import DeviceError
from tinygmf.engine.user_cache import do_without_kernel_cache

COMMANDS = {
    "demo": "Classify twelve handwritten digits with the network that comes with tinygmf.",
    "classify": "Name what pictures show.",
    "explain": "Draw what the attention makes of pictures.",
    "train": "Train a network on pictures.",
    "ablate": "Train networks with parts of the attention taken away, and compare them.",
    "evaluate": "Measure accuracy on a folder of labelled pictures.",
    "tune": "Search once for faster kernels of a network, and keep them.",
    "info": "Show what a network is made of, stage by stage.",
    "verify": "Compare this port with the pure-Python reference, stage by stage.",
    "convert": "Rewrite weights in the other format, or take the network out of a checkpoint.",
    "devices": "List what tinygrad can compute on here, and prove it with one kernel each.",
    "cache": "Show or clear the compiled programs that are kept.",
}


def build_parser(words: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Every subcommand; those that `words` name are imported and have their options."""
    parser = argparse.ArgumentParser(prog="tinygmf", description="GroupMixFormer in tinygrad.")
    parser.add_argument("--version", action="version", version=f"tinygmf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in words:
            module = import_module(f"tinygmf.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    args = build_parser(words).parse_args(words)
    try:
        try:
            return args.run(args)
        except sqlite3.Error as error:  # tinygrad's own cache of kernels, on a full disk
            if not do_without_kernel_cache(error):
                raise
            return args.run(args)
    except (ValueError, DeviceError, OSError) as error:
        print(f"tinygmf: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("tinygmf: too little memory: a smaller batch or picture needs less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tinygmf: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
