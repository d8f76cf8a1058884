"""The same checks on every device that this machine has: `tinygmf devices --test` runs them too."""

import shutil

import pytest

from tinygmf.checks.device_suite import NotRun, Suite, print_suites, run_suite
from tinygmf.checks.verify import relative_difference
from tinygmf.engine import devices, probe


def run(device: str, training: bool) -> None:
    report = probe.try_device(device)
    if not report.available:
        pytest.skip(f"{device} needs {report.needs}: {report.detail}")
    outcomes = list(run_suite(device, training))
    print(*outcomes, sep="\n")
    assert [str(outcome) for outcome in outcomes if outcome.passed is False] == []
    assert all(outcome.passed for outcome in outcomes[:5])  # float16 may be missing, nothing else


@pytest.mark.parametrize("device", devices.NEEDS)
def test_the_network_works_on(device):
    run(device, training=False)


@pytest.mark.slow  # the programs take minutes to compile
@pytest.mark.parametrize("device", devices.NEEDS)
def test_training_works_on(device):
    run(device, training=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang on PATH")
def test_the_network_works_on_the_cpu_with_the_systems_clang(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing compiled is there
    monkeypatch.setenv("CC", "clang")  # not zig's
    assert print_suites(["CPU"])


def test_a_check_that_fails_is_told_and_the_others_are_made(monkeypatch):
    def wrong(self):
        return 0.5, 0.1

    def broken(self):
        raise RuntimeError("no such\nluck")

    def missing(self):
        raise NotRun("not here")

    for name, check in {"logits": wrong, "features": broken, "half": missing}.items():
        monkeypatch.setattr(Suite, name, check)
    for name in ("digits", "repeated", "cached"):
        monkeypatch.setattr(Suite, name, lambda self: (0.0, 0.0))
    lines = [str(outcome) for outcome in run_suite("CPU", training=False)]
    assert "FAILED" in lines[0] and "5.0e-01" in lines[0] and "more than 0.1" in lines[0]
    assert "FAILED" in lines[1] and lines[1].endswith("RuntimeError: no such")
    assert all("passed" in line for line in lines[2:5])
    assert "not run" in lines[5] and lines[5].endswith("not here")


def test_a_value_that_is_no_number_is_never_close():
    import numpy as np

    assert relative_difference(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == float("inf")
    assert relative_difference(np.array([1.0]), np.array([1.0, 2.0])) == float("inf")
    assert relative_difference(np.array([1.0, 3.0]), np.array([1.0, 4.0])) == 0.25
