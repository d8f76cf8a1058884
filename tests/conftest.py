"""Tests run on the CPU unless DEV says otherwise, and never touch the user's own caches."""

import os
from pathlib import Path

os.environ.setdefault("DEV", "CPU")  # before tinygrad is imported

import numpy as np
import pytest
from browsing import CHROMIUM
from hypothesis import HealthCheck, settings
from parity import MEASURED, activations_of

from tinygmf.engine import devices

# An example's duration means nothing: other processes may have the cores.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """One folder for all test processes, empty at first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_home(shared_folder):
    """The cache folder of all tests: what one process compiles, the others load."""
    folder = shared_folder / "cache"
    folder.mkdir(exist_ok=True)
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


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests: a process can hold playwright open only once."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options, timeout=0)
        yield browser
        browser.close()


@pytest.fixture(params=MEASURED)
def activations(request) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures (B, 3, H, W), and what each module of the nano network makes of them."""
    return activations_of(request.param)
