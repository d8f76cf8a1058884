"""The sliders of notebook 5 in a real browser: each is moved, and the picture changes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE = 240_000  # milliseconds, for a machine that has other work
CELL = """
import numpy as np
from PIL import Image
from tinygmf.study.figures import explore_attention
from tinygmf.study.observe import Observation

rng, pictures, blocks = np.random.default_rng(0), [], {}
for _ in range(2):
    pictures.append(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)))
for stage, side, dim in ((1, 8, 20), (2, 4, 40)):
    blocks[f"stage {stage}"] = [
        Observation(
            stage, 1, (32, 32), (side, side),
            qkv=rng.normal(size=(3, side**2, dim)),
            mixed=rng.normal(size=(3, 8, side**2, dim // 10)),
            non_attention=rng.normal(size=(side**2, dim // 5)),
            ensemble=rng.normal(size=(side**2, dim)),
        )
        for _ in pictures
    ]
explore_attention(pictures, blocks)
"""


@pytest.fixture
def address(tmp_path):
    """A Jupyter server of its own, with a notebook in it that shows the sliders."""
    pytest.importorskip("jupyterlab", reason="needs pip install 'tinygmf[notebooks]'")
    pytest.importorskip("ipywidgets", reason="needs pip install 'tinygmf[notebooks]'")
    cell = {
        **{"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}},
        **{"outputs": [], "source": CELL},
    }
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}}
    text = json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5})
    (tmp_path / "sliders.ipynb").write_text(text, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--ServerApp.token=", "--allow-root", "--no-browser"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={tmp_path}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in server.stderr:  # it says so when it listens
        if "is running at" in line:
            break
    yield f"http://127.0.0.1:{port}/lab/tree/sliders.ipynb"
    server.terminate()
    server.communicate()


@pytest.mark.slow
def test_each_slider_changes_the_picture(browser, address):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Control+Enter")
    picture = page.locator(".jp-OutputArea img").last
    picture.wait_for()
    seen = [picture.get_attribute("src")]
    sliders = page.locator(".widget-slider .noUi-handle, .widget-slider [role=slider]")
    assert sliders.count() == 4  # picture, y, x, head
    for i in range(4):
        sliders.nth(i).focus()
        page.keyboard.press("ArrowRight" if i != 1 else "ArrowUp")
        seen.append(changed(page, seen[-1]))
    page.locator(".widget-dropdown select").select_option("stage 2")
    changed(page, seen[-1])
    page.close()


def changed(page, before: str) -> str:
    """Wait for another picture than `before`."""
    page.wait_for_function(
        "before => { const all = document.querySelectorAll('.jp-OutputArea img');"
        " return all.length && all[all.length - 1].src !== before }",
        arg=before,
    )
    return page.locator(".jp-OutputArea img").last.get_attribute("src")
