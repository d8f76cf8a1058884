"""Browsers in the tests: Chromium, and the page of `tinygmf explore`: its sizes, and when it is
ready."""

import shutil
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZE, SMALLER = 64, 32  # pixels: the network's own size, and another


def ready(page: Any) -> None:
    """Wait until the network has answered, and every figure is drawn."""
    page.wait_for_function("view.block && !find('#status').textContent")
    page.evaluate("for (const figure of figures) figure.hidden = false; drawStale()")
