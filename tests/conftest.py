"""Tests run on the CPU unless DEV says otherwise, and never touch the user's own caches."""

import os

os.environ.setdefault("DEV", "CPU")  # before tinygrad is imported

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from parity import MEASURED, activations_of

from tinygmf.engine import devices

# How long an example takes says nothing: other processes may have the cores.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """One empty cache folder for all tests: they share the programs that they compile."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("LOCALAPPDATA", str(folder))
        yield folder


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers for every test, whatever ran before."""
    return np.random.default_rng(0)


@pytest.fixture
def patient(monkeypatch) -> None:
    """Devices are waited for: on a busy machine, a process may take long to start."""
    monkeypatch.setattr(devices, "PROBE_SECONDS", 600)


@pytest.fixture(params=MEASURED)
def activations(request) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures (B, 3, H, W), and what each module of the nano network makes of them."""
    return activations_of(request.param)
