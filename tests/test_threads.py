"""How many threads a process may compute with."""

import os

import pytest

from tinygmf import threads
from tinygmf.commands.main import main


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    threads.limit_threads(None)


def test_by_default_there_is_one_thread_for_each_core():
    assert threads.thread_count() == 8


@pytest.mark.parametrize(
    ("value", "count"), [("3", 3), ("2,4", 2), ("99", 8), ("0", 8), ("many", 8), ("", 8)]
)
def test_openmps_variable_limits_them(monkeypatch, value, count):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.thread_count() == count


def test_what_a_command_asks_for_comes_before_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.limit_threads(5)
    assert threads.thread_count() == 5
    assert main(["classify", "none.png", "--weights", "none.pth", "--threads", "2"]) == 2
    assert threads.thread_count() == 2


def test_no_threads_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["classify", "none.png", "--weights", "none.pth", "--threads", "0"])
    assert (
        "--threads: expected a whole number from 1 to 10000000, found '0'"
        in capsys.readouterr().err
    )


def test_a_containers_limit_is_that_of_the_groups_around_the_process(tmp_path):
    groups = tmp_path / "cgroup"
    groups.write_text("0::/outer/inner\n")
    inner = tmp_path / "root" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    assert list(threads._quotas(groups, tmp_path / "root")) == [3]


def test_where_there_are_no_control_groups_nothing_limits(tmp_path):
    assert list(threads._quotas(tmp_path / "none", tmp_path)) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has affinities")
def test_affinity_limits_the_cores(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert threads.available_cores.__wrapped__() == 1
