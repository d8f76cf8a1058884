"""The page in a browser, from the disk: every control by keyboard, a narrow screen, dark mode; a
drawing, a file, a pointer. `visit` sees that nothing fails and nothing comes from elsewhere."""

import json
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from browsing import SIZE, SMALLER, ready
from PIL import Image

CONTROLS = "button, select, input, canvas[tabindex], .map[tabindex], a[href]"


def test_the_page_names_no_file_from_elsewhere(folder):
    html = (folder / "index.html").read_text("utf-8")
    named = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", html)
    assert all(name == "data:," or (folder / name).is_file() for name in named)
    scripts = {f"js/{path.name}" for path in (folder / "js").iterdir()}
    assert scripts == {name for name in named if name.startswith("js/")}
    for path in [*folder.glob("js/*.js"), folder / "style.css"]:
        assert "://" not in path.read_text("utf-8"), path


def test_no_script_is_long_and_no_two_declare_one_name(folder):
    declared: list[str] = []
    for path in (folder / "js").iterdir():
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) < 350, path
        pattern = r"(?:async )?(?:function|class|const|let) (\w+)"
        declared += [found[1] for line in lines if (found := re.match(pattern, line))]
    assert len(declared) == len(set(declared))


def test_the_answer_of_a_picture_stands_on_the_page(visit):
    page = visit()
    shares = page.evaluate("softmax(view.model.logits)")
    rows = page.locator("#answer li").all_inner_texts()
    assert [row.split("\n")[-1] for row in rows] == [f"{100 * share:.1f} %" for share in shares]
    best = int(np.argmax(shares))
    assert page.inner_text("#verdict") == f"{best}, {100 * shares[best]:.1f} %"


def test_a_network_without_classes_tells_how_far_its_features_change(visit):
    page = visit()
    page.evaluate("view.model.info.head = false; run(); drawStale()")
    assert page.inner_text("#answer") == "10 features, no classes"
    page.evaluate("run({ off: new Set(['crpe']) }); drawStale()")
    now, before = (page.evaluate(f"[...view.{n}]") for n in ("model.logits", "baseline"))
    change = np.abs(np.subtract(now, before)).max() / np.abs(before).max()
    said = page.inner_text("#answer")
    assert said == f"10 features, no classes; changed by {100 * change:.1f} %"


def test_every_control_is_reached_by_tab_and_named(visit):
    page = visit()
    page.evaluate(
        """window.all = [...document.querySelectorAll('*')];
        window.reached = new Set();
        addEventListener('focusin', ({ target }) => reached.add(all.indexOf(target)))"""
    )
    for _ in range(90):
        page.keyboard.press("Tab")
    reached = set(page.evaluate("[...reached]"))
    found = page.evaluate(
        """(controls) => [...document.querySelectorAll(controls)].map((element) => ({
            place: all.indexOf(element),
            group: element.type === 'radio' ? element.name : '',
            what: element.outerHTML.slice(0, 120),
            name: element.getAttribute('aria-label') || element.textContent.trim() ||
                element.labels?.[0]?.textContent.trim() || '',
        }))""",
        CONTROLS,
    )
    assert [one["what"] for one in found if not one["name"]] == []
    groups = {one["group"] for one in found if one["place"] in reached}
    missed = [o for o in found if o["place"] not in reached and o["group"] not in groups - {""}]
    assert missed == []


def state(page, name: str):
    return page.evaluate(f"state.{name}")


def test_every_control_does_what_it_says_by_keyboard_alone(visit):
    page = visit()
    for selector, key, name, expected in (
        ("#channel", "ArrowRight", "channel", 1),
        ("input[name=part][value='0']", "ArrowRight", "part", 1),
        ("input[name=segment][value='1']", "ArrowRight", "segment", 2),
        ("input[name=form][value=linear]", "ArrowRight", "form", "softmax"),
        ("input[name=scale][value=one]", "ArrowRight", "scale", "own"),
        ("input[name=where][value=all]", "ArrowLeft", "everywhere", False),
        ("#shuffle", "Enter", "seed", 2),
        ("input[name=block][value='0.0']", "ArrowRight", "stage", 1),
        (".branch.part3 button", "Enter", "segment", 3),
    ):
        page.focus(selector)
        page.keyboard.press(key)
        assert state(page, name) == expected, selector
    before = page.evaluate("[...view.model.logits]")
    for part in range(7):
        page.focus(f"#switches label:nth-child({part + 1}) input")
        page.keyboard.press("Space")
    assert page.evaluate("state.off.size") == 7
    assert page.evaluate("[...view.model.logits]") != before
    page.focus("#all-on")
    page.keyboard.press("Enter")
    assert page.evaluate("[...view.model.logits]") == before


def test_the_cost_of_the_attention_is_that_of_its_two_products(visit):
    page = visit()
    n, d = page.evaluate("[view.block.n, view.block.headDim]")
    assert page.inner_text("#cost") == f"{2 * n * d * d:,}"  # (d x N) (N x d), then (N x d) (d x d)
    assert page.inner_text("#map-cost") == f"{2 * n * n * d:,}"


def test_a_time_too_short_for_the_browsers_clock_is_not_zero(visit):
    page = visit()
    page.evaluate("view.model.took = 0; tellPace()")
    assert page.inner_text("#pace") == "less than 1 ms on one thread"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_block_that_is_chosen_can_be_read(visit, width):
    page = visit(width)
    room = page.evaluate(
        """() => {
            const select = find("#block-select");
            const pen = document.createElement("canvas").getContext("2d");
            pen.font = getComputedStyle(select).font;
            const text = pen.measureText(select.selectedOptions[0].text).width;
            return select.getBoundingClientRect().width - text;
        }"""
    )
    assert room > 20  # its arrow and edges


def test_a_stage_is_chosen_by_its_map(visit):
    page = visit()
    page.click(".stage:nth-child(4) .map")  # after picture, stem and stage 1
    assert (state(page, "stage"), state(page, "index")) == (1, 1)


def test_a_scale_holds_every_value_or_says_that_there_is_more(visit):
    page = visit()
    few = page.evaluate("signed([1, -2, 3], [4])")
    assert (few["low"], few["high"], few["beyond"]) == (-4, 4, False)
    many = page.evaluate("signed([...Array(999).fill(-1), 50])")
    assert (many["low"], many["high"], many["beyond"]) == (-1, 1, True)
    page.evaluate("legend(find('#legend-rows'), signed([...Array(999).fill(-1), 50]), 'weight')")
    assert page.inner_text("#legend-rows").split() == ["weight", "≤", "\N{MINUS SIGN}1", "≥", "1"]
    assert page.evaluate("colourOf(signed([5]), 0) === colourOf(signed([0.1]), 0)")


def test_what_cannot_be_loaded_is_named_and_the_page_goes_on(visit):
    page = visit()
    page.evaluate("(loading.digits_32 = Promise.reject(Error('no digits_32.js'))).catch(() => 0)")
    page.evaluate("reopen({ size: 32 })")
    assert page.inner_text("#status") == "no digits_32.js"
    page.click("#pictures button >> nth=3")
    page.wait_for_function("!find('#status').textContent")
    assert state(page, "size") == SIZE


def test_without_a_gpu_the_page_says_so_and_continues_in_webassembly(visit):
    page = visit()
    if page.locator("#engine input").count() == 0:
        pytest.skip("needs a browser with WebGPU")
    page.evaluate("navigator.gpu.requestAdapter = async () => null")
    page.focus("#engine input[value=wasm]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("find('#status').textContent.startsWith('WebGPU: expected')")
    assert page.is_checked("#engine input[value=wasm]") and state(page, "engine") == "wasm"
    page.click("#pictures button >> nth=3")
    ready(page)
    assert page.inner_text("#pace").endswith("on one thread")


@pytest.mark.parametrize("selector", ["#bench-picture .map", "#proxy-tokens .map", "#query .map"])
def test_a_place_is_pointed_at_by_arrow_keys_and_by_pointer(visit, selector):
    page = visit()
    side = page.evaluate("view.block.side")
    assert page.evaluate("view.place") == {"row": side // 2, "column": side // 2}
    page.focus(selector)
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        page.evaluate("drawStale()")
    place = {"row": side // 2 - 2, "column": side // 2 - 1}
    assert page.evaluate("view.place") == place
    box = page.locator(selector).bounding_box()
    page.mouse.click(box["x"] + box["width"] * 2.5 / side, box["y"] + box["height"] * 0.5 / side)
    page.evaluate("drawStale()")
    assert page.evaluate("view.place") == {"row": 0, "column": 2}
    said = page.locator(selector).get_attribute("aria-valuetext")
    assert said == "row 1, column 3"


def test_a_group_is_followed_over_the_whole_map(visit):
    page = visit()
    page.click("#sweep")
    page.wait_for_function("view.place.row === view.block.side - 1")


def test_a_digit_is_drawn_by_mouse_and_by_keyboard(visit):
    page = visit()
    before = page.evaluate("[...view.model.logits]")
    box = page.locator("#drawing").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 200, steps=4)
    page.mouse.up()
    ready(page)
    drawn = page.evaluate("[...view.model.logits]")
    assert drawn != before
    page.focus("#drawing")
    page.keyboard.press("ArrowRight")
    ready(page)
    assert page.evaluate("[...view.model.logits]") != drawn
    page.click("#clear")


def test_a_file_is_opened_and_what_is_no_picture_is_named(visit, tmp_path):
    page = visit()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    page.evaluate("window.before = String(view.model.logits)")
    page.set_input_files("#file", tmp_path / "a.png")
    page.wait_for_function("String(view.model.logits) !== before")
    page.set_input_files("#file", tmp_path / "b.png")
    page.wait_for_function("find('#status').textContent.startsWith('b.png: expected a picture')")


def test_another_size_has_other_maps_and_its_own_answer(visit):
    page = visit()
    assert page.evaluate("view.block.side") == SIZE // 4
    page.select_option("#size-select", str(SMALLER))
    page.wait_for_function(f"view.model.info.size === {SMALLER}")
    ready(page)
    assert page.evaluate("view.block.side") == SMALLER // 4
    page.select_option("#block-select", "3.0")
    page.evaluate("drawStale()")
    assert page.evaluate("view.block.side") == SMALLER // 32


class Isolating(SimpleHTTPRequestHandler):
    """Serves a folder with the headers under which a page may have threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def isolated(browser, folder):
    """Open the page from a server that isolates it, in a browser that tells of so many cores."""
    handler = partial(Isolating, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        pages = []

        def call(cores: int):
            page = browser.new_page()
            pages.append(page)
            page.set_default_timeout(0)
            page.add_init_script(
                f"Object.defineProperty(navigator, 'hardwareConcurrency', {{ value: {cores} }})"
            )
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
            ready(page)
            assert page.evaluate("crossOriginIsolated")
            return page

        yield call
        for page in pages:
            page.close()
        server.shutdown()


HELPED = "view.model.rerun() && view.model.team.exports.network_helped() > 99"


def everything(page) -> list[str]:
    """Logits and maps, to the bit."""
    maps = "Object.keys(view.model.info.maps).map((name) => view.model.network.map(name).values)"
    return page.evaluate(f"[view.model.logits, ...{maps}].map(String)")


def test_threads_of_an_isolated_page_give_the_same_bits(visit, isolated):
    alone, page = visit(), isolated(cores=3)
    assert alone.inner_text("#pace").endswith(" ms on one thread")
    assert page.inner_text("#pace").endswith(" ms on 3 threads")
    page.wait_for_function(HELPED)  # once the workers have come
    assert everything(page) == everything(alone)
    page.evaluate(f"reopen({{ size: {SMALLER} }})")  # another program, with workers of its own
    page.wait_for_function(f"view.model.info.size === {SMALLER} && {HELPED}")
    page.evaluate(f"reopen({{ size: {SIZE} }})")
    page.wait_for_function(f"view.model.info.size === {SIZE}")
    assert everything(page) == everything(alone)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_holds_the_page(visit, scheme):
    page = visit(390, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = page.evaluate(
        """[...document.querySelectorAll('main *')].filter((one) =>
            one.getBoundingClientRect().right > 390.5).map((one) => one.outerHTML.slice(0, 100))"""
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_the_page(visit, scheme):
    page = visit(scheme=scheme)
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    colours = {
        name: luminance(page.evaluate(f"{style}('--{name}')"))
        for name in ("paper", "card", "ink", "soft", "accent", *(f"part{i}" for i in range(5)))
    }
    assert (colours["paper"] < 0.1) == (scheme == "dark")
    for name in colours.keys() - {"paper", "card"}:
        for ground in ("paper", "card"):
            high, low = sorted((colours[name], colours[ground]), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def luminance(colour: str) -> float:
    """Of WCAG 2, of #rrggbb."""
    channels = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_the_scripts_of_data_hold_what_was_written(folder, nano):
    text = (folder / "data" / "contents.js").read_text("utf-8")
    [network] = json.loads(text.removeprefix('receive("contents", ').removesuffix(");\n"))
    assert network["sizes"] == [SIZE, SMALLER] and network["parameters"] == 55602
