"""Show or clear the cache of compiled programs."""

from __future__ import annotations

import argparse

from tinygmf.files import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clear", action="store_true", help="remove them, and tinygrad's cached kernels"
    )


def run(args: argparse.Namespace) -> int:
    from tinygmf.engine import program_cache, user_cache

    if args.clear:
        count, size = user_cache.clear()
        removed, place = counted(count, "file"), user_cache.cache_directory()
        print(f"removed {removed}, {size / 1e6:.1f} MB, from {place}")
        return 0
    entries = program_cache.list_entries()
    for path, key in entries:
        network, rows = key.get("network", {}), "x".join(map(str, key.get("input", ())))
        dims = ",".join(map(str, network.get("embedding_dims", ())))
        print(
            f"{path.name[:8]}  {path.stat().st_size / 1e6:6.1f} MB  {key['device']:6} "
            f"{key.get('dtype', ''):8}  {rows:14} widths {dims}"
        )
    total = sum(path.stat().st_size for path, _ in entries) / 1e6
    programs = counted(len(entries), "program")
    print(f"{programs}, {total:.1f} MB, in {program_cache.programs_directory()}")
    whole = sum(path.stat().st_size for path in user_cache.removable()) / 1e6
    print(f"{whole:.1f} MB with tinygrad's cached kernels; --clear removes them")
    return 0
