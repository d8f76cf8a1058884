"""Every number on the page is the network's own: compared with what PyTorch measured, with NumPy,
and with the reference whose weights are changed as a switch says."""

import numpy as np
import pytest
from browsing import ready
from parity import activations_of, relative_difference

import reference

BLOCK = (1, 1)  # of stage 2, the second
NAME = "groupmixformer_backbone.1.gma_stage.1"


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return activations_of()


@pytest.fixture(scope="module")
def opened(browser, folder, measured):
    """The page, looking at the measured picture."""
    page = browser.new_page()
    page.set_default_timeout(0)
    page.goto((folder / "index.html").as_uri())
    ready(page)
    look_at(page, measured[0])
    yield page
    page.close()


def look_at(page, picture: np.ndarray) -> None:
    run = "picture => view.baseline = view.model.run(Float32Array.from(picture))"
    page.evaluate(run, picture.ravel().tolist())


@pytest.fixture
def page(opened):
    """The page, looking at BLOCK, with all parts on."""
    opened.evaluate(
        """([stage, index]) => {
            view.picture = view.model.picture;
            run({ stage, index, off: new Set(), everywhere: true });
            drawStale();
        }""",
        BLOCK,
    )
    return opened


def numbers(page, expression: str) -> np.ndarray:
    return np.array(page.evaluate(f"Array.from({expression})"), np.float64)


def as_tokens(values: np.ndarray) -> np.ndarray:
    """(1, C, H, W) or (1, N, C) -> (N, C)."""
    return values[0].reshape(len(values[0]), -1).T if values.ndim == 4 else values[0]


def test_logits_and_maps_are_those_that_pytorch_measured(page, measured):
    _, outputs = measured
    assert relative_difference(numbers(page, "view.model.logits"), outputs["logits"][0]) < 1e-5
    names = [name for name in page.evaluate("Object.keys(view.model.info.maps)") if "+" not in name]
    assert len(names) == 6 + 5 * 6
    for name in names:
        found = numbers(page, f"view.model.network.map('{name}').values")
        if name.endswith("aggregator"):
            values = outputs[f"{name}#0"][:, 0]  # (3, heads, N, head_dim)
            expected = values.transpose(2, 0, 1, 3)
        elif name.endswith("conv_list"):
            parts = [outputs[f"{name}.{i}"][0] for i in range(3)]
            expected = np.concatenate([part.reshape(len(part), -1) for part in parts]).T
        else:
            expected = as_tokens(outputs[name])
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_webgpu_gives_the_logits_that_pytorch_measured_and_the_maps_of_webassembly(page, measured):
    if page.locator("#engine input").count() == 0:
        pytest.skip("needs a browser with WebGPU")
    kept = "Array.from(view.model.network.map(name).values)"
    maps = f"Object.keys(view.model.info.maps).map((name) => [name, {kept}])"
    expected = page.evaluate(maps)
    without = numbers(page, "view.model.run(view.picture, new Set(['crpe']))")
    page.evaluate("reopen({ engine: 'webgpu' })")  # and with it the page's own picture
    assert page.inner_text("#pace").endswith("on the GPU")
    look_at(page, measured[0])
    found = numbers(page, "view.model.logits")
    assert relative_difference(found, measured[1]["logits"][0]) < 1e-4
    for (name, own), (_, values) in zip(page.evaluate(maps), expected, strict=True):
        np.testing.assert_allclose(own, values, rtol=1e-4, atol=1e-4, err_msg=name)
    page.evaluate("view.model.run(view.model.picture, new Set(['crpe']))")
    assert relative_difference(numbers(page, "view.model.logits"), without) < 1e-4
    assert relative_difference(found, without) > 1e-3
    page.evaluate("reopen({ engine: 'wasm' })")
    assert page.inner_text("#pace").endswith("on one thread")
    look_at(page, measured[0])


def test_a_block_shows_what_pytorch_measured_of_its_parts(page, measured):
    _, outputs = measured
    added = numbers(page, "view.block.att")
    np.testing.assert_allclose(added, outputs[f"{NAME}.att.proj"].ravel(), rtol=1e-4, atol=1e-4)
    q, k, v = outputs[f"{NAME}.att.aggregator#0"][:, 0]  # (heads, N, head_dim)
    for part, values in enumerate((q, k, v)):
        found = numbers(page, f"view.block.after({part}, 2, 3)")  # heads 5 and 6, the last channel
        np.testing.assert_allclose(found, values[5, :, 1], rtol=1e-4, atol=1e-4)
    qkv = outputs[f"{NAME}.att.qkv"][0].reshape(-1, 3, 5, 4)
    found = numbers(page, "view.block.before(1, 3, 2)")
    np.testing.assert_allclose(found, qkv[:, 1, 3, 2], rtol=1e-4, atol=1e-4)


def test_rows_of_both_forms_of_attention_are_those_of_the_same_q_and_k(page, measured):
    _, outputs = measured
    q, k, _ = outputs[f"{NAME}.att.aggregator#0"][:, 0].astype(np.float64)
    places = np.exp(k) / np.exp(k).sum(1, keepdims=True)
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2]))
    maps = {"linear": q @ places.transpose(0, 2, 1), "softmax": scores / scores.sum(2)[..., None]}
    for form, expected in maps.items():
        for head, query in ((0, 0), (7, 38)):
            found = numbers(page, f"view.attention.row({head}, {query}, '{form}')")
            np.testing.assert_allclose(found, expected[head, query], atol=1e-4)


def test_heads_and_fifth_segment_through_the_ensemble_layer_are_the_blocks_attention(
    page, measured, nano
):
    heads = [numbers(page, f"view.attention.sum({head})") for head in range(8)]
    together = [head.reshape(64, -1) for head in heads]
    together.append(numbers(page, "view.block.fifth").reshape(64, -1))
    weight, bias = (nano.arrays[f"{NAME}.att.proj.{end}"] for end in ("weight", "bias"))
    expected = measured[1][f"{NAME}.att.proj"][0]
    found = np.concatenate(together, axis=1) @ weight.T + bias
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segment", [0, 1, 2, 3])
def test_a_proxy_made_step_by_step_is_the_one_in_the_networks_map(page, segment):
    for row, column in ((0, 0), (4, 5), (7, 3)):
        place = f"{{ row: {row}, column: {column} }}"
        made = numbers(page, f"proxySteps(view.block, 1, {segment}, {place}).proxy")
        held = [
            numbers(page, f"view.block.after(1, {segment}, {c})")[8 * row + column]
            for c in range(len(made))
        ]
        np.testing.assert_allclose(made, held, atol=1e-4)


def without(arrays: dict[str, np.ndarray], part: int | str, block: str) -> dict[str, np.ndarray]:
    """Weights of the same network without a branch (0 to 4) or a position encoding."""
    arrays = {name: np.array(array) for name, array in arrays.items()}
    if isinstance(part, int):
        weight = arrays[f"{block}.att.proj.weight"]
        segment = len(weight) // 5
        weight[:, part * segment : (part + 1) * segment] = 0
    for name, array in arrays.items():
        if isinstance(part, str) and name.startswith(block) and f".{part}." in name:
            array[:] = 0
    return arrays


@pytest.mark.parametrize("where", ["chosen", "every"])
@pytest.mark.parametrize("part", [0, 3, 4, "cpe", "crpe"])
def test_a_part_switched_off_is_the_network_without_its_weights(page, measured, nano, part, where):
    name = f"PARTS[{part}]" if isinstance(part, int) else f"'{part}'"
    page.evaluate(f"run({{ off: new Set([{name}]), everywhere: {str(where == 'every').lower()} }})")
    block = NAME if where == "chosen" else "groupmixformer_backbone"
    blocks = sorted({n.partition(".att.")[0] for n in nano.arrays if ".att.proj." in n})
    arrays = dict(nano.arrays)
    for one in blocks:
        arrays = without(arrays, part, one) if one.startswith(block) else arrays
    expected = reference.Network({n: a.tolist() for n, a in arrays.items()})(
        measured[0][0].tolist()
    )
    found = numbers(page, "view.model.logits")
    assert relative_difference(found, np.array(expected)) < 1e-4
    assert relative_difference(found, numbers(page, "view.baseline")) > 1e-4
    page.evaluate("run({ off: new Set() })")
    assert (numbers(page, "view.model.logits") == numbers(page, "view.baseline")).all()


def test_only_parts_with_a_window_notice_that_tokens_are_shuffled(page):
    noticed = dict(
        page.evaluate("whoNotices(view.model, view.block, shuffled(view.block.n, 1)).parts")
    )
    blind = {"Q, K and V", "tokens", "attention among tokens"}
    assert {name for name, share in noticed.items() if share < 1e-5} == blind
    assert min(share for name, share in noticed.items() if name not in blind) > 0.05
    assert (numbers(page, "view.model.logits") == numbers(page, "view.baseline")).all()


def test_tokens_that_are_alike_have_proxies_that_tell_the_border(page):
    page.evaluate("window.alike = allAlike(view.model, view.block, 20)")
    for segment, frame in enumerate((0, 1, 2, 3)):
        values = numbers(page, f"alike.after(0, {segment}, 0)").reshape(8, 8)
        inner = values[frame : 8 - frame, frame : 8 - frame]
        assert np.ptp(inner) < 1e-5
        assert frame == 0 or np.ptp(values) > 0.01
