"""Ctrl-C and SIGTERM, also in the few places where Python drops the exception."""

import multiprocessing
import signal
import sys
import time
import weakref
from concurrent.futures import ProcessPoolExecutor

import pytest
from process import call

from tinygmf.commands import cache
from tinygmf.commands.main import main
from tinygmf.files import new_folder, replacing


def in_a_callback(number: int) -> None:
    value = {1}
    reference = weakref.ref(value, lambda _: signal.raise_signal(number))
    del value
    assert reference() is None


def in_a_finalizer(number: int) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Interrupted()


@pytest.mark.parametrize("interrupt", [in_a_callback, in_a_finalizer])
@pytest.mark.parametrize("naps", [0, 1000])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_python_drops_still_ends_the_program(
    monkeypatch, capsys, interrupt, naps, number, code
):
    """In a command that ends at once, and in the middle of a long one."""
    left = iter(range(naps))

    def run(args: object) -> int:
        interrupt(number)
        for _ in left:
            time.sleep(0.01)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        monkeypatch.setattr(cache, "run", run)
        assert main(["cache"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "tinygmf: interrupted\n"
    assert naps == 0 or next(left, None) is not None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def write_until_terminated(place: str) -> None:
    """A command that is told to end while a folder of its and a file are half-written."""

    def run(args: object) -> int:
        with new_folder(f"{place}/folder") as folder, replacing(f"{place}/file"):
            (folder / "half").touch()
            signal.raise_signal(signal.SIGTERM)
        return 0

    cache.run = run
    sys.exit(main(["cache"]))


def test_a_command_that_is_told_to_end_leaves_nothing_half_written(tmp_path):
    done = call(write_until_terminated, tmp_path)
    assert (done.returncode, done.stderr) == (143, "tinygmf: interrupted\n")
    assert not list(tmp_path.iterdir())


def sleep_in_a_process() -> None:
    """A command that waits for a process of its own."""

    def run(args: object) -> int:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(time.sleep, 0).result()
            asleep = pool.submit(time.sleep, 1000)
            signal.raise_signal(signal.SIGTERM)
            asleep.result()
        return 0

    cache.run = run
    sys.exit(main(["cache"]))


def test_its_processes_end_with_it():
    assert call(sleep_in_a_process).returncode == 143
