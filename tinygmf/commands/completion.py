"""Print the script, made by shtab, that completes `tinygmf`'s commands and options in a shell."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to print the script for")


def run(args: argparse.Namespace) -> int:
    from tinygmf.commands.main import build_parser

    try:
        import shtab
    except ModuleNotFoundError:
        raise ValueError("completion needs shtab: run pip install 'tinygmf[completion]'") from None
    print(shtab.complete(build_parser(), shell=args.shell))
    return 0
