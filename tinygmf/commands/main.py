"""The command `tinygmf`: each subcommand is a file beside this one.

A user's mistake ends with one line on standard error and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from tinygmf import __version__
from tinygmf.commands import interrupt
from tinygmf.commands.examples import ending
from tinygmf.engine.devices import DeviceError, first_line
from tinygmf.engine.user_cache import do_without_kernel_cache
from tinygmf.files import did_you_mean, one_line
from tinygmf.threads import limit_threads, useless_variable

SYNONYMS = {  # what other programs call an option
    "--lr": "--learning-rate",
    "--wd": "--weight-decay",
    "--bs": "--batch-size",
    "--imgsz": "--size",
    "--img-size": "--size",
    "--checkpoint": "--weights",
    "--output": "--out",
}
CLOSED_PIPE = 141  # exit code of a program that SIGPIPE ends
COMMANDS = {
    "demo": "Classify twelve handwritten digits with the network that comes with tinygmf.",
    "classify": "Classify pictures.",
    "segment": "Label every pixel of pictures.",
    "detect": "Find objects in pictures: boxes and masks.",
    "explain": "Draw how the attention sees pictures.",
    "explore": "Write a page in which a browser runs the network and shows its attention.",
    "train": "Train a network on pictures.",
    "ablate": "Train networks with parts of the attention removed, and compare them.",
    "evaluate": "Measure accuracy on a folder of labeled pictures.",
    "tune": "Search once for faster kernels of a network, and keep them.",
    "info": "Show what a network is made of, stage by stage.",
    "verify": "Compare this port with the pure-Python reference, stage by stage.",
    "convert": "Rewrite weights in the other format, or extract the network from a checkpoint.",
    "export": "Write a network as a C program, as WebAssembly or as an ONNX file.",
    "devices": "List the devices that work here, and run a kernel on each.",
    "cache": "Show or clear the cache of compiled programs.",
    "completion": "Print the script that completes commands and options in a shell.",
}


class Parser(argparse.ArgumentParser):
    """A parser that suggests what an unknown choice was meant to be."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        super().error(message)


def not_empty(text: str) -> str:
    """The text. An unset shell variable is empty, and as a path it would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name, found an empty text: name one")
    return text


def build_parser(words: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """A parser of every subcommand; only those in `words` are imported and given their options."""
    parser = Parser(prog="tinygmf", description="GroupMixFormer in tinygrad.")
    parser.add_argument("--version", action="version", version=f"tinygmf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=ending(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.register("type", None, not_empty)
        command.register("type", Path, lambda text: Path(not_empty(text)))
        if name in words:
            module = import_module(f"tinygmf.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run, parser=command)
    return parser


def run() -> int:
    """`main` as the last that a process does: what it leaves need not be searched for garbage,
    which would take a tenth of a second."""
    code = main()
    gc.freeze()
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    _prepare_output()
    try:
        with interrupt.kept():
            code = _run(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has closed its end
        return CLOSED_PIPE
    except KeyboardInterrupt as error:
        print("tinygmf: interrupted", file=sys.stderr)
        return interrupt.exit_code(error)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(f"tinygmf: {_line(error)}", file=sys.stderr)
        return 2
    finally:
        _close_output()


def _run(words: list[str]) -> int:
    parser = build_parser(words)
    if not words:
        parser.print_help()
        return 0
    args, unknown = parser.parse_known_args(words)
    if unknown:
        question = hint(unknown, args.parser)
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{question}")
    limit_threads(getattr(args, "threads", None))
    if "device" in args and (line := useless_variable()):
        print(f"tinygmf: {one_line(line)}", file=sys.stderr)
    try:
        return args.run(args)
    except sqlite3.Error as error:  # tinygrad's own kernel cache, on a full disk
        if not do_without_kernel_cache(error):
            raise
        return args.run(args)


def hint(unknown: list[str], command: argparse.ArgumentParser) -> str:
    """Suggest the option that the first unknown one was probably meant to be."""
    options = set(re.findall(r"--[a-z0-9-]+", command.format_help())) - {"--help"}
    for word in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        if SYNONYMS.get(word) in options:
            return f"; did you mean {SYNONYMS[word]}?"
        return did_you_mean(word, options)
    return ""


def _line(error: Exception) -> str:
    """An error in one line; a system error names its file first."""
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch or smaller pictures"
    if isinstance(error, RuntimeError) and not isinstance(error, DeviceError):
        return (  # from tinygrad, when a device or its compiler fails
            f"the device failed ({one_line(first_line(error))}): choose another with --device, or "
            "set DEV; `tinygmf devices` lists them"
        )
    if isinstance(error, OSError) and error.strerror:
        named = isinstance(error.filename, str | bytes | os.PathLike)
        name = f"{os.fsdecode(error.filename)}: " if named else ""
        return one_line(name + error.strerror)
    return one_line(str(error) or type(error).__name__)


def _prepare_output() -> None:
    """Make streams escape what they cannot encode, and print a warning as one line."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # no stream, or a test's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"tinygmf: {one_line(str(message))}", file=sys.stderr)


def _close_output() -> None:
    """Flush standard output; if that fails, keep Python from trying again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
