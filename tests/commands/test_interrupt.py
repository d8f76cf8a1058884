"""Ctrl-C in the few places where Python drops the exception."""

import signal
import time
import weakref

import pytest

from tinygmf.commands import cache
from tinygmf.commands.main import main


def in_a_callback() -> None:
    value = {1}
    reference = weakref.ref(value, lambda _: signal.raise_signal(signal.SIGINT))
    del value
    assert reference() is None


def in_a_finalizer() -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    Interrupted()


@pytest.mark.parametrize("interrupt", [in_a_callback, in_a_finalizer])
@pytest.mark.parametrize("naps", [0, 1000])
def test_an_interrupt_that_python_drops_still_ends_the_program(
    monkeypatch, capsys, interrupt, naps
):
    """In a command that ends at once, and in the middle of a long one."""
    left = iter(range(naps))

    def run(args: object) -> int:
        interrupt()
        for _ in left:
            time.sleep(0.01)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        monkeypatch.setattr(cache, "run", run)
        assert main(["cache"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "tinygmf: interrupted\n"
    assert naps == 0 or next(left, None) is not None
