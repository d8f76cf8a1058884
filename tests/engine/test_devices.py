"""A device and a compiler are found for the user, and a failure is one line."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import process
import pytest
from tinygrad import Tensor

from tinygmf.engine import clang, devices, probe
from tinygmf.engine.user_cache import CacheError, cache_directory
from tinygmf.loops import tiles

PATIENCE = 600  # seconds: a busy machine may take long to start a process
needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs the ziglang package"
)


def fresh(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user with an empty home, who has chosen neither compiler nor device."""
    chosen = ("CC", "DEV", "CACHEDB", "CACHELEVEL")
    kept = {name: value for name, value in process.environment().items() if name not in chosen}
    return kept | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")} | variables


def refusal(name: str, home: Path, hidden: str = "", **variables: str) -> str:
    """Open a device that must fail; return the message, one line."""
    done = process.call(print_refusal, name, hidden=hidden, env=fresh(home, **variables))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout
    return done.stdout.strip()


# What the new processes do


def print_refusal(name: str) -> None:
    devices.PROBE_SECONDS = PATIENCE  # for "Working here: ...", however busy the machine is
    try:
        devices.open_device(name)
    except devices.DeviceError as error:
        print(error)


def print_one_kernel(name: str) -> None:
    """The compiler, the device and the result of one kernel, a line each."""
    opened = devices.open_device(name)
    devices.set_default_device(opened)
    result = Tensor([1.0, 2.0]) + 1
    print(clang.compiler(), result.device, result.tolist(), sep="\n")


def print_compiler() -> None:
    clang.prepare_compiler()
    print(clang.compiler())


def print_another_default() -> None:
    """The default device after another one was it, and the other's description."""
    print_one_kernel("cpu:1")
    devices.set_default_device("CPU")
    print(Tensor([1.0]).device, devices.device_description("CPU:1"))


def print_chosen_device() -> None:
    print(devices.open_device())


def count_lowered() -> None:
    """Prints how many of its own programs tinygrad's CPU device lowers when it opens."""
    from tinygrad.runtime import ops_cpu

    lower, lowered = ops_cpu.do_to_program, []
    ops_cpu.do_to_program = lambda *arguments: lowered.append(1) or lower(*arguments)
    devices.open_device("CPU")
    print(len(lowered))


# The tests


@pytest.fixture
def no_clang_on_path(tmp_path: Path) -> str:
    """A PATH with a shell and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to(str(shutil.which("sh")))
    return str(folder)


def test_one_kernel_runs_on_the_cpu_with_an_empty_home(tmp_path):
    done = process.call(print_one_kernel, "CPU", env=fresh(tmp_path))
    assert done.stdout.splitlines()[1:] == ["CPU", "[2.0, 3.0]"], done.stderr


def test_the_programs_of_the_devices_own_queue_are_lowered_once(tmp_path):
    counts = [process.call(count_lowered, env=fresh(tmp_path)).stdout for _ in range(2)]
    assert counts == ["4\n", "0\n"]


@needs_zig
def test_zig_stands_in_for_clang_even_where_cc_names_gcc(tmp_path, no_clang_on_path):
    environment = fresh(tmp_path, PATH=no_clang_on_path, CC="gcc")
    script, *answer = process.call(print_one_kernel, "CPU", env=environment).stdout.splitlines()
    assert answer == ["CPU", "[2.0, 3.0]"]
    assert Path(script).parent == tmp_path / "cache" / "tinygmf"
    assert stat.S_IMODE(os.stat(script).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(Path(script).parent).st_mode) == 0o700


@needs_zig
def test_zigs_clang_comes_before_another_on_path_but_not_before_cc(tmp_path, no_clang_on_path):
    """The kernels are written for a recent clang; a system's own may be years old."""
    other = Path(no_clang_on_path) / "clang"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o700)
    chosen = [
        process.call(print_compiler, env=fresh(tmp_path, PATH=no_clang_on_path, **named)).stdout
        for named in ({}, {"CC": str(other)})
    ]
    assert Path(chosen[0].strip()).name.startswith("zig-clang-")
    assert chosen[1].strip() == str(other)
    hidden = process.call(
        print_compiler, hidden="ziglang", env=fresh(tmp_path, PATH=no_clang_on_path)
    )
    assert hidden.stdout.strip() == "clang"


@needs_zig
@pytest.mark.parametrize(
    ("vendor", "compiler", "added"),
    [
        ("GenuineIntel", "zig-clang-1", ",prefer-vector-width=512"),
        ("AuthenticAMD", "zig-clang-1", ",prefer-vector-width=512,no-gather,no-scatter"),
        ("AuthenticAMD", "clang", ",prefer-vector-width=512"),  # perhaps too old for the others
    ],
)
def test_kernels_are_compiled_for_this_processor(vendor, compiler, added, monkeypatch):
    monkeypatch.setattr(tiles, "processor", lambda: vendor)
    monkeypatch.setattr(clang, "processor_flags", lambda: {"avx512f"})
    monkeypatch.setattr(clang, "compiler", lambda: compiler)
    device = SimpleNamespace(arch="x86_64,native")
    for _ in range(2):  # the second time there is nothing to do
        clang.suit_processor(device)
        assert device.arch == "x86_64,native" + added
    options = [f"-m{option}" for option in added.split(",")[1:]]
    compile_nothing = [clang.zig_wrapper(), "--target=x86_64-linux-gnu", *options, "-c", "-xc", "-"]
    subprocess.run([*compile_nothing, "-o", os.devnull], check=True, input=b"")


def test_without_a_compiler_one_line_says_how_to_get_one(tmp_path, no_clang_on_path):
    message = refusal("CPU", tmp_path, hidden="ziglang", PATH=no_clang_on_path)
    assert "pip install 'tinygmf[clang]'" in message and "Traceback" not in message


def test_a_name_that_is_no_device_is_told_in_one_line(tmp_path):
    message = refusal("FOO", tmp_path)
    assert "FOO" in message and "there is no such device" in message


def test_a_renderer_that_cannot_write_the_kernels_is_told_in_one_line(tmp_path):
    line = refusal("CPU", tmp_path, DEV="CPU:X86")
    assert "its kernels are in C, for clang: expected DEV=CPU, found CPU:X86" in line


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has METAL")
def test_a_device_that_does_not_open_is_told_in_one_line_with_those_that_do(tmp_path):
    message = refusal("metal", tmp_path)
    assert "this is not a Mac" in message
    assert "CPU" in message.partition("Working here: ")[2]


def test_a_driver_that_hangs_does_not_keep_the_message_from_the_user(monkeypatch):
    """Probing the others is cut short, and those that answered by then are named."""

    def cut_short(args: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(args, timeout, output=b"CUDA\n")

    monkeypatch.setattr(subprocess, "run", cut_short)
    with pytest.raises(devices.DeviceError, match=r"no such device.*Working here: CUDA$"):
        devices.open_device("FOO")


def test_an_unwritable_cache_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="XDG_CACHE_HOME") as caught:
        cache_directory()
    assert "\n" not in str(caught.value)


def test_dev_decides_where_no_device_is_named(tmp_path):
    done = process.call(print_chosen_device, env=fresh(tmp_path, DEV="CPU"))
    assert done.stdout == "CPU\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what hardware there is")
@pytest.mark.parametrize(
    ("bus", "vendor", "here"),
    [
        ("pci/devices/0000:00:01.0/vendor", "0x10de", {"NV"}),
        ("usb/devices/1-1/idVendor", "add1", {"AMD"}),
        ("pci/devices/0000:00:01.0/vendor", "0x8086", set()),
    ],
)
def test_unasked_only_the_gpus_that_linux_lists_are_opened(
    bus, vendor, here, tmp_path, monkeypatch
):
    (tmp_path / bus).parent.mkdir(parents=True)
    (tmp_path / bus).write_text(vendor + "\n")
    monkeypatch.setattr(devices, "BUSES", tmp_path)
    for driver, found in (tmp_path / "none", here), (tmp_path, {"AMD", "NV"}):
        listed = {name: (driver, vendors) for name, (_, vendors) in devices.LISTED.items()}
        monkeypatch.setattr(devices, "LISTED", listed)
        opened = set(filter(devices.may_be_here, devices.NEEDS))
        assert opened == set(devices.NEEDS) - {"AMD", "NV"} | found


def test_a_number_and_lower_case_name_the_second_cpu_device(tmp_path):
    done = process.call(print_another_default, env=fresh(tmp_path))
    _, device, result, described = done.stdout.splitlines()
    assert (device, result) == ("CPU:1", "[2.0, 3.0]")
    assert described.startswith("CPU CPU:1 (") and "clang" in described


def test_a_clang_that_cc_names_is_left_alone(tmp_path, monkeypatch):
    mine = tmp_path / "my-clang-19"
    mine.touch(mode=0o700)
    monkeypatch.setenv("CC", str(mine))
    clang.prepare_compiler()
    assert os.environ["CC"] == clang.compiler() == str(mine)


def test_every_device_is_tried_and_the_cpu_is_proved(patient):
    reports = {report.name: report for report in probe.list_devices()}
    assert list(reports) == list(devices.NEEDS)
    assert reports["CPU"].available and reports["CPU"].proof > 0
    for report in reports.values():
        assert report.available == (report.proof is not None)
        assert len(report.detail.splitlines()) == 1


def test_a_probe_that_hangs_is_reported(monkeypatch):
    monkeypatch.setattr(devices, "PROBE_SECONDS", 0.001)  # no Python starts as fast as that
    assert "no answer" in probe.try_device("CPU").detail


def test_a_probe_that_crashes_is_reported(monkeypatch, patient):
    monkeypatch.setattr(devices, "PROBE", os.devnull)
    assert "ended the process" in probe.try_device("CPU").detail
