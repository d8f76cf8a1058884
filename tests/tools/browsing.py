"""The page of `tinygmf explore` in the tests: its sizes, and when it is ready."""

from typing import Any

SIZE, SMALLER = 64, 32  # pixels: the network's own size, and another


def ready(page: Any) -> None:
    """Wait until the network has answered, and every figure is drawn."""
    page.wait_for_function("view.block && !find('#status').textContent")
    page.evaluate("for (const figure of figures) figure.hidden = false; drawStale()")
