"""The page of the nano network, written once for all processes, and opened from the disk."""

from contextlib import suppress
from pathlib import Path

import pytest
from browsing import SIZE, SMALLER, ready
from parity import DATA

from tinygmf.config import Settings
from tinygmf.explore.writer import write_page
from tinygmf.weights.checkpoint import NetworkWeights, load_weights


@pytest.fixture(scope="session")
def nano() -> NetworkWeights:
    settings = Settings(image_size=SIZE, classes=tuple("0123456789"))
    return load_weights(DATA / "nano.pth")._replace(settings=settings)


@pytest.fixture(scope="session")
def folder(nano, shared_folder, tmp_path_factory) -> Path:
    """The page at two sizes. It takes many seconds to write, so only one process does."""
    shared = shared_folder / "a page"
    if not shared.exists():
        written = tmp_path_factory.mktemp("page")
        write_page({"digits": nano}, written, (SMALLER,))
        with suppress(OSError):  # another process was first
            written.rename(shared)
    return shared


@pytest.fixture
def visit(browser, folder):
    """Open the page; whatever it logs as an error, or asks of another place, fails the test."""
    pages, wrong = [], []

    def call(width: int = 1280, scheme: str = "light"):
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        page.set_default_timeout(0)  # other processes may have the cores
        pages.append(page)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("request", lambda asked: note(asked.url))
        page.goto((folder / "index.html").as_uri())
        ready(page)
        return page

    def note(url: str) -> None:
        if not url.startswith((folder.as_uri(), "data:", "blob:")):
            wrong.append(f"asked for {url}")

    yield call
    for page in pages:
        page.close()
    assert wrong == []
