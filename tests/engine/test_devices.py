"""A device and a compiler are found for the user, and trouble is told in one line."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tinygmf.engine import clang, devices, probe
from tinygmf.engine.user_cache import CacheError, cache_directory

ROOT = Path(__file__).parents[2]
LOAD = "from tinygmf.engine import clang, devices\n"
WITHOUT_ZIG = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "ziglang" else find(name, *rest)
"""
ONE_KERNEL = """
name = devices.open_device("CPU")
devices.set_default_device(name)
from tinygrad import Tensor
result = Tensor([1.0, 2.0]) + 1
print(result.device, result.tolist())
"""


def run(code: str, home: Path, before: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Run code in a new process whose home directory is empty."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CC", "DEV", "CACHEDB")}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", before + LOAD + code],
        env=kept | places | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_line(code: str, home: Path, before: str = "", **variables: str) -> str:
    """Run code that must raise DeviceError and return the error's message: one line."""
    caught = f"try:\n    {code}\nexcept devices.DeviceError as error:\n    print(error)"
    done = run(caught, home, before, **variables)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout
    return done.stdout.strip()


@pytest.fixture
def no_clang_on_path(tmp_path: Path) -> str:
    """A PATH with a shell and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to(str(shutil.which("sh")))
    return str(folder)


def test_one_kernel_runs_on_the_cpu_with_an_empty_home(tmp_path):
    done = run(ONE_KERNEL, tmp_path)
    assert done.stdout.split(maxsplit=1) == ["CPU", "[2.0, 3.0]\n"], done.stderr


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the ziglang package")
def test_zig_stands_in_for_clang_even_where_cc_names_gcc(tmp_path, no_clang_on_path):
    code = "print(clang.compiler())" + ONE_KERNEL
    done = run(code, tmp_path, PATH=no_clang_on_path, CC="gcc")
    script, answer = done.stdout.splitlines()
    assert answer == "CPU [2.0, 3.0]"
    assert Path(script).parent == tmp_path / "cache" / "tinygmf"
    assert stat.S_IMODE(os.stat(script).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(Path(script).parent).st_mode) == 0o700


def test_without_a_compiler_one_line_says_how_to_get_one(tmp_path, no_clang_on_path):
    message = one_line("devices.open_device('CPU')", tmp_path, WITHOUT_ZIG, PATH=no_clang_on_path)
    assert "pip install 'tinygmf[clang]'" in message and "Traceback" not in message


def test_a_name_that_is_no_device_is_told_in_one_line(tmp_path):
    message = one_line("devices.open_device('FOO')", tmp_path)
    assert "FOO" in message and "there is no such device" in message


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has METAL")
def test_a_device_that_does_not_open_is_told_in_one_line_with_those_that_do(tmp_path):
    message = one_line("devices.open_device('metal')", tmp_path)
    assert "this is not a Mac" in message and "Working here: " in message and "CPU" in message


def test_a_driver_that_hangs_does_not_keep_the_message_from_the_user(tmp_path, monkeypatch):
    """The probing of the others is cut short, and those that answered before are named."""
    monkeypatch.setattr(devices, "PROBE_SECONDS", 1.0)
    code = "import time; print('CUDA', flush=True); time.sleep(60)"
    command = devices.probe_command("") | {"args": [sys.executable, "-c", code]}
    monkeypatch.setattr(devices, "probe_command", lambda argument: command)
    with pytest.raises(devices.DeviceError, match=r"no such device.*Working here: CUDA$"):
        devices.open_device("FOO")


def test_an_unwritable_cache_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="XDG_CACHE_HOME") as caught:
        cache_directory()
    assert "\n" not in str(caught.value)


def test_dev_decides_where_no_device_is_named(tmp_path):
    done = run("print(devices.open_device())", tmp_path, DEV="CPU")
    assert done.stdout == "CPU\n", done.stderr


def test_a_number_and_lower_case_name_the_second_cpu_device(tmp_path):
    code = ONE_KERNEL.replace('"CPU"', '"cpu:1"') + "devices.set_default_device('CPU')\n"
    code += "print(Tensor([1.0]).device, devices.device_description(name))"
    first, second = run(code, tmp_path).stdout.splitlines()
    assert first == "CPU:1 [2.0, 3.0]"
    assert second.startswith("CPU CPU:1 (") and "clang" in second


def test_a_clang_that_cc_names_is_left_alone(tmp_path, monkeypatch):
    mine = tmp_path / "my-clang-19"
    mine.touch(mode=0o700)
    monkeypatch.setenv("CC", str(mine))
    clang.prepare_compiler()
    assert os.environ["CC"] == clang.compiler() == str(mine)


def test_every_device_is_tried_and_the_cpu_is_proved():
    reports = {report.name: report for report in probe.list_devices()}
    assert list(reports) == list(devices.NEEDS)
    assert reports["CPU"].available and reports["CPU"].proof > 0
    for report in reports.values():
        assert report.available == (report.proof is not None)
        assert len(report.detail.splitlines()) == 1


def test_a_probe_that_hangs_or_crashes_is_reported(monkeypatch):
    monkeypatch.setattr(devices, "PROBE_SECONDS", 0.01)
    assert "no answer" in probe.try_device("CPU").detail
    monkeypatch.setattr(devices, "PROBE_SECONDS", 30)
    monkeypatch.setattr(devices, "PROBE", os.devnull)
    assert "ended the process" in probe.try_device("CPU").detail
