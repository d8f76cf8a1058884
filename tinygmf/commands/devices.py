"""List the devices that work here, and run a kernel on each."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="DEVICE", help="to test; by default all")
    parser.add_argument("--test", action="store_true", help="run a whole network on each device")


def run(args: argparse.Namespace) -> int:
    if args.test:
        from tinygmf.checks.device_suite import print_suites

        return 0 if print_suites(args.names) else 1
    from tinygmf.engine.probe import list_devices

    for report in list_devices():
        state = f"works ({report.proof:.0f} ms)" if report.proof is not None else "no"
        print(f"{report.name:7} {state:16} {report.detail}")
        if not report.available:
            print(f"{'':24} needs {report.needs}")
    return 0
