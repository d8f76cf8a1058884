"""Compiled programs on disk: kept once, trusted only if they are the user's own and intact."""

import hashlib
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from process import call, environment
from tinygrad import Tensor

from tinygmf.engine import clang, program_cache, user_cache
from tinygmf.engine.devices import DeviceError, open_device
from tinygmf.tensors import tensor_from_numpy

DEVICE = "CPU"
KEY = {"network": "double"}


def double(x: Tensor, weights: list[Tensor]) -> Tensor:
    return (x * weights[0] + 1).contiguous()


def tensors(value: float) -> tuple[Tensor, list[Tensor]]:
    array = np.full(7, value, np.float32)
    return tensor_from_numpy(array, DEVICE), [tensor_from_numpy(array, DEVICE)]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    return tmp_path


def compile_double(function=double):
    return program_cache.load_or_compile(KEY, function, *tensors(2), device=DEVICE, progress=False)


def entry() -> Path:
    [path] = program_cache.programs_directory().glob("*.program")
    return path


def must_not_run(*_):
    raise AssertionError("compiled again")


def test_a_program_is_compiled_once_and_then_loaded():
    compile_double()
    assert compile_double(must_not_run)(*tensors(3)).tolist() == [10] * 7


def in_new_process(function: Callable) -> subprocess.CompletedProcess[str]:
    """A call in a process of its own, with the cache folder of this test. It leaves no compiled
    files beside its sources: on a full disk, halves of them."""
    return call(function, env=environment(DEV=DEVICE, PYTHONDONTWRITEBYTECODE="1"))


def test_a_new_process_loads_it_and_gives_it_other_weights():
    compile_double()
    done = in_new_process(print_other_weights)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([26.0] * 7)


def print_other_weights() -> None:
    print(compile_double(must_not_run)(*tensors(5)).tolist())


def test_weights_and_inputs_stay_out_of_the_file():
    weights = [tensor_from_numpy(np.full(100_000, 3, np.float32), DEVICE)]
    x = tensor_from_numpy(np.full(100_000, 3, np.float32), DEVICE)
    program_cache.load_or_compile(KEY, double, x, weights, device=DEVICE, progress=False)
    assert entry().stat().st_size < 100_000


def test_a_loaded_program_never_writes_into_a_live_tensor():
    compile_double()
    content = entry().read_bytes()
    alive = [Tensor.full((7,), 9.0).contiguous().realize() for _ in range(50)]
    first, second = compile_double(must_not_run), compile_double(must_not_run)
    answers = first(*tensors(2)), second(*tensors(3))
    assert [answer.tolist() for answer in answers] == [[5] * 7, [10] * 7]
    assert all(tensor.tolist() == [9] * 7 for tensor in alive)
    assert entry().read_bytes() == content


def test_a_program_that_holds_data_of_its_own_is_refused():
    held = Tensor.full((7,), 4.0).contiguous().realize()
    with pytest.raises(ValueError, match="must take all its data as arguments"):
        compile_double(lambda x, weights: (x + held + weights[0]).contiguous())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
def test_the_folder_and_the_entry_are_the_owners_alone():
    compile_double()
    assert entry().stat().st_mode & 0o777 == 0o600
    assert entry().parent.stat().st_mode & 0o777 == 0o700


class Payload:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def hostile(path: Path, mark: Path) -> bytes:
    """An entry that is well formed but must not be trusted."""
    key = path.read_bytes().split(b"\n")[2]
    body = key + b"\n" + pickle.dumps(Payload(mark))
    return program_cache.MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
def test_an_entry_that_others_can_write_or_that_is_a_link_is_never_unpickled(tmp_path):
    compile_double()
    path, mark = entry(), tmp_path / "mark"
    content = hostile(path, mark)
    path.write_bytes(content)
    path.chmod(0o666)
    compile_double()
    assert not mark.exists() and path.stat().st_mode & 0o777 == 0o600
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(content)
    elsewhere.chmod(0o600)
    path.unlink()
    path.symlink_to(elsewhere)
    compile_double()
    assert not mark.exists() and not path.is_symlink()


@pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away"
)
def test_an_entry_of_another_user_is_never_unpickled(tmp_path):
    compile_double()
    path, mark = entry(), tmp_path / "mark"
    path.write_bytes(hostile(path, mark))
    os.chown(path, 12345, 12345)
    compile_double()
    assert not mark.exists() and path.stat().st_uid == 0


def run_kernels() -> None:
    """More than one, so that tinygrad's workers compile them."""
    x = Tensor.empty(7).contiguous()
    Tensor.realize((x + 1).contiguous().sum(), (x * 2).contiguous())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
@pytest.mark.parametrize("others_can_write", ["nothing", "", "-wal"])
def test_kernels_that_others_can_write_are_never_unpickled(tmp_path, others_can_write):
    """tinygrad's own cache is a database: what is private is read, or this would prove nothing."""
    in_new_process(run_kernels)
    [database] = (tmp_path / "tinygmf").glob("kernels-*.db")
    mark = tmp_path / "mark"
    kernels = sqlite3.connect(database)
    for (table,) in kernels.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        kernels.execute(f"UPDATE '{table}' SET val = ?", [pickle.dumps(Payload(mark))])
    kernels.commit()
    kernels.close()
    if others_can_write != "nothing":
        path = database.with_name(database.name + others_can_write)
        path.touch()
        path.chmod(0o666)
    warned = in_new_process(run_kernels).stderr
    assert mark.exists() == (others_can_write == "nothing")
    assert ("a file that only you can write" in warned) == (others_can_write != "nothing")


def test_no_process_keeps_kernels_in_tinygrads_own_folder(tmp_path):
    in_new_process(run_kernels)
    [database] = (tmp_path / "tinygmf").glob("kernels-*.db")
    assert database.stat().st_size > 0
    assert not (tmp_path / "tinygrad").exists()


def clang_that_refuses(text: str, folder: Path) -> str:
    """A compiler like this one, but for sources that contain `text`."""
    script = folder / "clang"
    source = folder / "source.$$"  # one for each process
    script.write_text(
        f"#!/bin/sh\ncat > {source}\nif grep -q {text} {source}; then\n"
        f"echo 'error: {text} is not supported on this target' >&2; exit 1; fi\n"
        f'exec {clang.compiler()} "$@" < {source}\n'
    )
    script.chmod(0o700)
    return str(script)


needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="needs sh")


@needs_shell
def test_another_compiler_has_programs_and_kernels_of_its_own(tmp_path, monkeypatch):
    compile_double()
    monkeypatch.setenv("CC", clang_that_refuses("nothing-at-all", tmp_path))
    with pytest.raises(AssertionError, match="compiled again"):
        compile_double(must_not_run)
    in_new_process(run_kernels)
    monkeypatch.delenv("CC")
    in_new_process(run_kernels)
    assert len(list((tmp_path / "tinygmf").glob("kernels-*.db"))) == 2


def print_bfloat16() -> None:
    def narrow(x: Tensor, weights: list[Tensor]) -> Tensor:
        return x.cast("bfloat16").contiguous() + weights[0]

    try:
        compile_double(narrow)
    except DeviceError as error:
        print(error)


@needs_shell
def test_a_compiler_that_is_too_old_is_told_in_one_line(tmp_path):
    """As clang 14 is for bfloat16."""
    compiler = clang_that_refuses("__bf16", tmp_path)
    done = call(print_bfloat16, env=environment(DEV=DEVICE, CC=compiler))
    assert "__bf16 is not supported on this target" in done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("clang") and "pip install 'tinygmf[clang]'" in line


@pytest.mark.parametrize("damage", ["empty", "half", "one bit", "noise", "directory"])
def test_a_damaged_entry_is_rebuilt(damage):
    compile_double()
    path = entry()
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "empty": b"",
        "half": content[:middle],
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "noise": os.urandom(1000),
    }
    if damage == "directory":
        path.unlink()
        path.mkdir()
        with pytest.warns(UserWarning, match="was not kept"):
            assert compile_double()(*tensors(3)).tolist() == [10] * 7
        return
    path.write_bytes(changed[damage])
    assert compile_double()(*tensors(3)).tolist() == [10] * 7
    assert compile_double(must_not_run)(*tensors(3)).tolist() == [10] * 7


def test_another_version_or_another_processor_makes_another_entry(monkeypatch):
    compile_double()
    here = program_cache.environment(DEVICE)
    for name in ("tinygrad", "processor"):
        there = here | {name: "another"}
        monkeypatch.setattr(program_cache, "environment", lambda device, there=there: there)
        compile_double()
    assert len(program_cache.list_entries()) == 3


def test_several_threads_at_once_leave_one_whole_entry():
    first = compile_double()
    key = dict(KEY) | program_cache.environment(DEVICE)
    path = entry()
    path.unlink()
    writers = [
        threading.Thread(target=program_cache.save, args=(path, key, first)) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert compile_double(must_not_run)(*tensors(3)).tolist() == [10] * 7
    assert [path] == list(program_cache.programs_directory().iterdir())


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root can write everywhere")
def test_a_cache_that_cannot_be_written_is_not_fatal(empty_cache):
    empty_cache.chmod(0o500)
    with pytest.warns(UserWarning, match="will not be kept"):
        assert compile_double()(*tensors(3)).tolist() == [10] * 7


def two_kernels(x: Tensor) -> Tensor:
    return (x + 1).contiguous().sum() * x


def compile_on_a_full_disk() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # less than a database needs
    x = tensor_from_numpy(np.ones(7, np.float32), open_device(DEVICE))
    program = program_cache.load_or_compile({}, two_kernels, x, device=DEVICE)
    print(program(x).tolist())


@pytest.mark.skipif(sys.platform == "win32", reason="limits of resources are POSIX's")
def test_a_full_disk_costs_the_caches_and_nothing_else():
    done = in_new_process(compile_on_a_full_disk)
    assert done.stdout.strip() == str([14.0] * 7), done.stderr
    assert "kernels are not kept" in done.stderr and "program was not kept" in done.stderr


def test_an_error_that_is_not_the_caches_is_raised():
    def function(x, weights):
        raise FileNotFoundError("clang")

    with pytest.raises(FileNotFoundError, match="clang"):
        compile_double(function)


def test_clearing_removes_all_that_can_be_made_anew_and_no_weights(empty_cache):
    compile_double()
    folder = user_cache.cache_directory()
    (folder / "kernels-zig.db").write_bytes(bytes(1000))
    (folder / user_cache.WEIGHTS).mkdir()
    mine = folder / user_cache.WEIGHTS / "groupmixformer_tiny.pth"
    mine.write_bytes(b"downloaded")
    size = 1000 + entry().stat().st_size
    wrappers = sorted(folder.glob("zig-clang*"))
    assert user_cache.clear() == (2, size)
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(left) == sorted([*wrappers, mine]) and not user_cache.removable()
