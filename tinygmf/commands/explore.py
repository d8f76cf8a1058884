"""Write a page in which a browser runs the network and shows its attention at work."""

from __future__ import annotations

import argparse
import re
import sys
import webbrowser
from pathlib import Path

from tinygmf.commands.options import add_entry

SHOWN = "digits", "scenes-segment"  # of the bundled networks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = ".pth or .safetensors, shown beside the bundled networks"
    parser.add_argument("--weights", metavar="FILE", help=text)
    add_entry(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("tinygmf_explore"), metavar="FOLDER", help="new or empty"
    )
    parser.add_argument("--no-open", action="store_true", help="write the page, open no browser")


def run(args: argparse.Namespace) -> int:
    """Write the folder, and open its page."""
    from tinygmf.explore.writer import require_showable, write_page
    from tinygmf.files import new_folder
    from tinygmf.weights.checkpoint import load_weights

    page = args.out / "index.html"
    if page.exists():
        raise ValueError(
            f"{args.out}: expected a new or empty folder, found a page: open {page}, or give "
            "another --out"
        )
    names = {} if args.weights is None else {name_of(args.weights): args.weights}
    names |= {name: name for name in SHOWN if name not in names}
    networks = {
        name: load_weights(path, args.entry if path == args.weights else None)
        for name, path in names.items()
    }
    for name, network in networks.items():
        require_showable(network, names[name])
    with new_folder(args.out) as folder:
        write_page(networks, folder, tell=tell)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{page}: {', '.join(networks)}; {size / 1e6:.1f} MB in all")
    if not args.no_open and not webbrowser.open(page.resolve().as_uri()):
        print("no browser found: open the page yourself", file=sys.stderr)
    return 0


def tell(name: str, size: int) -> None:
    print(f"compiling {name} for {size}x{size} pixels", file=sys.stderr)


def name_of(path: str) -> str:
    """The name of a network in the page and its files: its file's, in plain letters."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", Path(path).stem).strip("-") or "network"
