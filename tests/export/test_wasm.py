"""The WebAssembly module gives the published network's numbers under node, and the page, which
holds all of it, in a browser; what does not fit is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browsing import CHROMIUM
from parity import DATA, load_npz, parity_input
from PIL import Image

from tinygmf.config import Settings
from tinygmf.export.c import run_c, write_c
from tinygmf.export.program import Program, capture
from tinygmf.export.wasm import REGISTERS, run_wasm, write_wasm
from tinygmf.image import normalize, preprocess
from tinygmf.weights.checkpoint import load_weights

SIZE = 64
NAMES = ("</script><!--<script>", '"', "\\", "@INFO@", "${x}", "`", "Ü 三", "7", "8", "9")
BLOCK = "groupmixformer_backbone.1.gma_stage.1"
MAPS = [f"{BLOCK}.att.qkv", BLOCK]

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs node")


@pytest.fixture(scope="module")
def program() -> Program:
    weights = load_weights(DATA / "nano.pth")
    network = weights._replace(settings=Settings(classes=NAMES))
    return capture(network, SIZE, maps=MAPS, registers=REGISTERS)


@pytest.fixture(scope="module")
def folder(program, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wasm with space")
    write_wasm(program, folder, slope())
    return folder


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def slope() -> Image.Image:
    """A picture that looks nearly the same after any resizing."""
    y, x = np.mgrid[0:130, 0:150] / 150
    return Image.fromarray((255 * np.stack([x, y, 1 - x], 2)).astype(np.uint8))


def node(folder: Path, script: str, *options: str) -> subprocess.CompletedProcess:
    module = json.dumps((folder / "network.mjs").as_uri())
    start = f"const {{ load, info, relaxed }} = await import({module});"
    command = ["node", *options, "--input-type=module", "-e", start + script]
    return subprocess.run(command, capture_output=True, text=True)


def test_logits_and_maps_are_those_that_pytorch_measured(program, folder):
    numbers = load_npz("nano_activations_1x3x64x64")
    x = parity_input(int(numbers["seed"]), (1, 3, SIZE, SIZE))
    logits, maps = run_wasm(folder, program, x)
    assert np.abs(logits - numbers["logits"]).max() < 1e-5
    assert list(maps) == MAPS
    for name, found in maps.items():
        np.testing.assert_allclose(found, numbers[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_classify_reads_pixels_as_the_engine_does(program, folder, tmp_path):
    rgba = json.dumps(np.asarray(noise().convert("RGBA")).reshape(-1).tolist())
    script = f"""
        const source = {{ data: Uint8ClampedArray.from({rgba}), width: {SIZE}, height: {SIZE} }};
        const network = await load();
        console.log(JSON.stringify([[...network.prepare(source)], network.classify(source, 3)]));
    """
    pixels, answers = json.loads(node(folder, script).stdout)
    expected = normalize(noise())
    np.testing.assert_allclose(np.array(pixels).reshape(expected.shape), expected, atol=1e-6)
    write_c(program, tmp_path, noise())
    logits = run_c(tmp_path, program, expected[None])[0][0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    best = [int(i) for i in (-logits).argsort()[:3]]
    assert [answer["index"] for answer in answers] == best
    assert [answer["name"] for answer in answers] == [NAMES[i] for i in best]
    assert [a["probability"] for a in answers] == pytest.approx(shares[best], abs=1e-6)


def test_weights_that_are_cut_short_or_damaged_are_refused(folder):
    for damage in ("bytes.slice(0, -1)", "(bytes[999] ^= 1, bytes)", "new Uint8Array(0)"):
        script = f"""
            const {{ readFile }} = await import("node:fs/promises");
            const bytes = await readFile({json.dumps(str(folder / "weights.bin"))});
            await load(undefined, {damage}).catch((error) => console.log(error.message));
        """
        assert node(folder, script).stdout.startswith("expected this network's weights, whole")


def test_the_rest_of_the_network_runs_on_other_values_for_a_kept_map(folder):
    script = f"""
        const network = await load();
        const picture = Float32Array.from({{ length: info.picture }}, (_, i) => Math.sin(i));
        const logits = network.run(picture);
        const {{ values }} = network.map("{BLOCK}");
        const other = network.runFrom("{BLOCK}", values.map((value) => 2 * value));
        const same = network.runFrom("{BLOCK}", values);
        console.log(logits.every((logit, i) => logit === same[i] && logit !== other[i]));
        for (const name of ["{BLOCK}", "{BLOCK}.att.qkv"])
          try {{ network.runFrom(name, new Float32Array(1)); }} catch ({{ message }})
          {{ console.log(message); }}
    """
    assert node(folder, script).stdout.splitlines() == [
        "true",
        f"expected {20 * (SIZE // 8) ** 2} values",
        f"{BLOCK}.att.qkv: expected what all that follows comes from alone",
    ]


def test_pictures_of_another_size_are_refused(folder):
    script = """
        const network = await load();
        for (const wrong of [() => network.run(new Float32Array(5)),
                             () => network.prepare({ data: new Uint8Array(16) })])
          try { wrong(); } catch (error) { console.log(error.message); }
    """
    assert node(folder, script).stdout.split("\n")[:2] == [
        f"expected {3 * SIZE * SIZE} values",
        f"expected {SIZE} x {SIZE}",
    ]


READ = """
    const { readFile } = await import("node:fs/promises");
    const read = (name) => readFile(new URL(name, %s));
"""


def reading(folder: Path) -> str:
    return READ % json.dumps((folder / "network.mjs").as_uri())


def test_the_module_takes_nothing_from_outside(folder):
    script = """
        const module = new WebAssembly.Module(await read("network.wasm"));
        console.log(WebAssembly.Module.imports(module).length);
    """
    assert node(folder, reading(folder) + script).stdout == "0\n"


def test_where_products_may_be_relaxed_they_are_and_answers_stay_within_rounding(folder):
    flag = "--experimental-wasm-relaxed-simd"  # until Node 21
    known = subprocess.run(["node", "--v8-options"], capture_output=True, text=True).stdout
    script = """
        const picture = Float32Array.from({ length: info.picture }, (_, i) => Math.sin(i));
        const chosen = (await load()).run(picture);
        const plain = (await load(read("network.wasm"))).run(picture);
        console.log(relaxed, Math.max(...plain.map((x, i) => Math.abs(x - chosen[i]))));
    """
    options = [flag] if flag in known else []
    can, apart = node(folder, reading(folder) + script, *options).stdout.split()
    assert can == "true" and 0 < float(apart) < 1e-5
    if options:
        assert node(folder, reading(folder) + script).stdout.split() == ["false", "0"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_answers_in_a_browser_from_the_disk(folder, program, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    page = (folder / "page.html").as_uri()
    command = [str(CHROMIUM), *options, "--virtual-time-budget=20000", "--dump-dom", page]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = done.stdout.partition("<ol")[2].partition("</ol>")[0].split("<li>")[1:]
    write_c(program, tmp_path, slope())
    logits = run_c(tmp_path, program, preprocess(slope(), SIZE)[None])[0][0].astype(np.float64)
    shares = 100 * np.exp(logits) / np.exp(logits).sum()
    assert [float(row.split(" ")[0]) for row in rows] == pytest.approx(
        sorted(shares, reverse=True)[:5], abs=0.1
    )
