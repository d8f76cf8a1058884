"""Tests run on the CPU unless DEV says otherwise, and never touch the user's own caches."""

import os

import pytest

os.environ.setdefault("DEV", "CPU")


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """One empty cache folder for all tests: they share the programs that they compile."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("LOCALAPPDATA", str(folder))
        yield folder
