"""The user's private folder for compiled kernels and programs, and environment variables.

What is in the folder is run as code, so nothing is read that others could have written.
"""

import os
import sqlite3
import sys
import warnings
from pathlib import Path

from tinygmf.files import is_private

# Variables that tinygrad reads as integers, and that other programs use too
SHARED_NAMES = (
    *("BEAM", "CCACHE", "DEBUG", "FLOAT16", "IMAGE", "JIT", "LRU", "NOOPT", "NO_COLOR", "PARALLEL"),
    *("PROFILE", "RING", "SCACHE", "SPEC", "TC", "TRACEMETA", "TRAINING", "VIZ", "WINO"),
)


WEIGHTS = "weights"  # in the cache folder: published files that the user put there
WRAPPER = "zig-clang"  # prefix of the script that runs zig's clang


class CacheError(OSError):
    """The cache folder cannot be used; the message is one line that says what to do."""


def cache_directory() -> Path:
    """Return the user's own folder for tinygmf's caches, created with mode 0700.

    It is `tinygmf` in `XDG_CACHE_HOME` or ~/.cache, ~/Library/Caches, `LOCALAPPDATA`. Its content
    is run as code: raises CacheError if the folder cannot be written or belongs to another user.
    """
    usual = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}.get(sys.platform, "~/.cache")
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    folder = Path(named if os.path.isabs(named) else usual).expanduser() / "tinygmf"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid():
            raise PermissionError("it belongs to another user")
        folder.chmod(0o700)
        if os.access(folder, os.W_OK):
            return folder
        raise PermissionError("it cannot be written")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise CacheError(f"no cache in {folder}: {reason}; set XDG_CACHE_HOME to a folder of your own")


def removable() -> list[Path]:
    """Every file in the cache folder that can be made again: not the user's own weight files, nor
    the compiler's wrapper script, which another process may be about to run."""
    found = [path for path in cache_directory().rglob("*") if path.is_file()]
    weights = cache_directory() / WEIGHTS
    return [p for p in found if weights not in p.parents and not p.name.startswith(WRAPPER)]


def clear() -> tuple[int, int]:
    """Remove those files; return how many they were, and how many bytes."""
    files, size = removable(), 0
    for path in files:
        size += path.stat().st_size
        path.unlink(missing_ok=True)
    return len(files), size


def ignore_foreign_settings() -> None:
    """Remove, for this process, variables that tinygrad would stumble over, such as `DEBUG=app:*`
    or `IMAGE=name:tag`; and TRAINING, which would make BatchNorm use the batch's statistics.
    """
    for name in SHARED_NAMES:
        value = os.environ.get(name, "0")
        if name == "TRAINING" or not value.lstrip("-").isdecimal():
            os.environ.pop(name, None)
            if name == "NO_COLOR" and value:  # any value sets it
                os.environ[name] = "1"
    device = os.environ.get("DEV", "")
    if any(part.count(":") > 2 or part.count("+") > 1 for part in device.split(";")):
        del os.environ["DEV"]  # an address, perhaps: tinygrad's have at most three parts


def keep_kernels_private(compiler: str) -> None:
    """Make tinygrad keep its compiled kernels in our folder, because it unpickles what it finds:
    those of each compiler in a file of their own, as it finds them by their source alone.

    Its workers read the path from the environment. If others could have written the kernels, none
    are read and none are kept.
    """
    from tinygrad import helpers

    try:
        path = cache_directory() / f"kernels-{compiler}.db"
        path.touch(mode=0o600)
        files = path.parent.glob(path.name + "*")  # SQLite keeps a log beside it
        shared = [file for file in files if not is_private(file.lstat())]
    except OSError:  # `program_cache` says so when it has something to keep
        _keep_no_kernels()
        return
    if shared:
        _keep_no_kernels()
        warnings.warn(
            f"{shared[0]}: expected a file that only you can write, found that others can: no "
            "kernels are read from it or kept; remove it",
            stacklevel=2,
        )
        return
    os.environ["CACHEDB"] = helpers.CACHEDB = str(path)
    helpers._db_connection = None


def _keep_no_kernels() -> None:
    from tinygrad.helpers import CACHELEVEL

    os.environ["CACHELEVEL"], CACHELEVEL.value = "0", 0


def do_without_kernel_cache(error: sqlite3.Error) -> bool:
    """Stop using tinygrad's kernel database, which a full disk breaks; False if already stopped."""
    from tinygrad.engine.worker import terminate_worker_pool
    from tinygrad.helpers import CACHEDB, CACHELEVEL

    if not CACHELEVEL.value:
        return False
    _keep_no_kernels()
    terminate_worker_pool()  # new workers read the environment again
    warnings.warn(f"kernels are not kept: {CACHEDB} cannot be used ({error})", stacklevel=2)
    return True
