"""Some thousands of inputs of fuzz_checkpoints.py, and proof that it finds defects."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz_checkpoints
import pytest
from fuzz_checkpoints import Result, Target, Watch, targets
from process import environment

SCRIPT = Path(fuzz_checkpoints.__file__)


@pytest.mark.parametrize(
    "amount", ["--inputs=1000", pytest.param("--seconds=60", marks=pytest.mark.slow)]
)
def test_thousands_of_broken_files_do_no_harm(tmp_path, amount):
    command = [sys.executable, str(SCRIPT), amount, "--keep", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 defects") == len(targets())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pth", "safetensors", "pictures"])
def test_inputs_that_reach_new_lines_do_no_harm_either(tmp_path, name):
    pytest.importorskip("atheris", reason="pip install atheris to let coverage guide the fuzzing")
    command = [sys.executable, str(SCRIPT.with_name("guided.py")), name, "-max_total_time=60"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def watch() -> Watch:
    """One for all tests: an audit hook cannot be removed."""
    return Watch()


@pytest.mark.parametrize("name", targets())
def test_what_is_changed_was_whole(name):
    target = targets()[name]
    for content in target.make.files:
        target.prepare(content)
        assert target.read(content) >= 0


BROKEN_PROMISES = {
    "exec": lambda data: eval("0"),
    "os.listdir": lambda data: len(os.listdir()) * 0,
    "ZeroDivisionError": lambda data: 1 / 0,
    "not one line": lambda data: int("two\nlines"),
    "more was read": lambda data: 10**9,
}


@pytest.mark.parametrize("told", BROKEN_PROMISES)
def test_a_broken_promise_is_seen(watch, told):
    def reader(data: bytes) -> int:
        try:
            return BROKEN_PROMISES[told](data)
        except ValueError as error:
            raise ValueError("two\nlines") from error

    target = Target(lambda r: b"", reader, ValueError)
    assert told in fuzz_checkpoints.try_one(target, b"", Result(), watch)


def test_an_input_that_takes_longer_than_promised_is_seen(watch):
    target = Target(lambda r: b"", lambda data: 0, ValueError, seconds=-1)  # any time is longer
    assert fuzz_checkpoints.try_one(target, b"", Result(), watch) == "0.0 s"


def test_a_reader_of_folders_may_read_and_no_more(watch, tmp_path):
    def told(flags: int) -> str:
        def read(data: bytes) -> int:
            os.close(os.open(tmp_path / "file", flags))
            return 0

        target = Target(lambda r: b"", read, ValueError, allowed=("open",))
        return fuzz_checkpoints.try_one(target, b"", Result(), watch)

    (tmp_path / "file").touch()
    assert told(os.O_RDONLY) == ""
    assert told(os.O_WRONLY).startswith("open")
