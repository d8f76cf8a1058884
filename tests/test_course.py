"""The course: links from notebook to notebook, descriptions of figures, answers to exercises, the
attention in PyTorch, and the site that is made of it."""

import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from notebook_files import FOLDER, NOTEBOOKS, code_cells, each_notebook, load, text_of
from parity import DATA, TWO_PICTURES, activations_of
from PIL import Image

from tinygmf.study import exercises
from tinygmf.weights.checkpoint import read_tensors

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
IMAGE = re.compile(r"!\[(.*?)\]\(")
ATTENTION = "groupmixformer_backbone.0.gma_stage.0"


def markdown(path):
    return [text_of(cell) for cell in load(path)["cells"] if cell["cell_type"] == "markdown"]


def test_a_notebook_leads_to_the_next_the_previous_and_the_contents():
    for before, after in pairwise(NOTEBOOKS):
        assert f"]({after.name})" in markdown(before)[0], f"{before.name}: a link to {after.name}"
        assert f"]({after.name})" in markdown(before)[-1]
        assert f"]({before.name})" in markdown(after)[0], f"{after.name}: a link to {before.name}"
    contents = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert "](README.md)" in markdown(path)[0] and f"]({path.name})" in contents


def test_the_differences_from_the_paper_are_the_same_number_wherever_they_are_listed():
    [cell] = [text for text in markdown(NOTEBOOKS[3]) if "the paper says |" in text]
    page = (FOLDER / "pages" / "proof.md").read_text(encoding="utf-8")
    rows = [len(re.findall(r"^\| ", text, re.MULTILINE)) - 1 for text in (cell, page)]
    assert rows == [8, 8]
    assert "[in eight places]" in (FOLDER.parent / "README.md").read_text(encoding="utf-8")


@each_notebook
def test_headings_make_a_table_of_contents(path):
    text = "\n".join(FENCE.sub("", part) for part in markdown(path))
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^## ", text, re.MULTILINE)) >= 4


@each_notebook
def test_every_figure_is_described_for_those_who_do_not_see_it(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    assert len(output["metadata"].get(kind, {}).get("alt", "")) > 30
    assert all(len(alt) > 20 for text in markdown(path) for alt in IMAGE.findall(text))


def test_drawings_keep_every_pixel_and_photographs_become_small():
    pytest.importorskip("nbformat", reason="needs pip install 'tinygmf[notebooks]'")
    from notebooks.course.execute import packed

    scene = Image.open(FOLDER.parent / "tinygmf" / "assets" / "scenes" / "16500.png")
    photograph = scene.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC)
    lines = Image.fromarray(np.kron(np.eye(8), np.full((20, 20), 255)).astype(np.uint8))
    for picture, expected, most in (lines, "image/png", 0), (photograph, "image/jpeg", 2):
        picture.convert("RGB").save(png := io.BytesIO(), "PNG", optimize=True)
        kind, data = packed(png.getvalue())
        found = np.asarray(Image.open(io.BytesIO(data)), np.int64)
        assert kind == expected and len(data) <= png.tell() * (0.6 if most else 1)
        assert np.abs(found - np.asarray(picture.convert("RGB"))).mean() <= most


@each_notebook
def test_an_exercise_is_open_as_committed_and_its_solution_is_right(path):
    cells = load(path)["cells"]
    for before, cell in pairwise(cells):
        if "exercise" in cell["metadata"].get("tags", []):
            assert "not yet" in "".join(cell["outputs"][0]["data"]["text/plain"])
            [answer] = ANSWER.findall(text_of(before))
            [check] = re.findall(r"^(check_\w+)\((\w+)\)$", text_of(cell), re.MULTILINE)
            scope = {"np": np}
            exec(answer, scope)
            assert getattr(exercises, check[0])(scope[check[1]]).startswith("right")


def test_the_attention_in_pytorch_gives_the_numbers_of_the_published_code():
    """The text in notebook 1, with the published names: the weights load strictly."""
    torch = pytest.importorskip("torch")
    [text] = [part for part in FENCE.findall("\n".join(markdown(NOTEBOOKS[0]))) if "torch" in part]
    scope: dict = {}
    exec(text, scope)
    prefix = f"{ATTENTION}.att."
    weights = {
        name.removeprefix(prefix): torch.tensor(np.asarray(array))
        for name, array in read_tensors(DATA / "nano.pth").items()
        if name.startswith(prefix)
    }
    module = scope["GroupMixAttention"](len(weights["proj.bias"])).eval()
    module.load_state_dict(weights)
    _, measured = activations_of(TWO_PICTURES)
    with torch.inference_mode():
        found = module(torch.tensor(measured[f"{ATTENTION}.norm1"]), 8, 16).numpy()
    np.testing.assert_allclose(found, measured[f"{prefix}proj"], rtol=1e-4, atol=1e-5)


class Links(HTMLParser):
    """The addresses in a page, and what it would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.targets, self.anchors, self.mathml = [], set(), 0

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        self.mathml += tag == "math"
        for name in ("href", "src"):
            if name in found:
                self.targets.append((tag, found[name]))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for module in ("nbconvert", "latex2mathml"):
        pytest.importorskip(module, reason="needs pip install 'tinygmf[notebooks]'")
    folder = tmp_path_factory.mktemp("course") / "site"
    command = [sys.executable, FOLDER / "course" / "site.py", folder, "--no-explore"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_site_is_whole_small_and_needs_no_network(site):
    """Every link leads to a file and an anchor that are there; what a page loads lies beside it."""
    pages = {}
    for page in site.rglob("*.html"):
        pages[page.resolve()] = links = Links()
        links.feed(page.read_text(encoding="utf-8"))
    assert {path.stem for path in NOTEBOOKS} | {"index", "glossary"} <= {p.stem for p in pages}
    for page, links in pages.items():
        for tag, target in links.targets:
            if tag == "a" and re.match(r"https?:", target):
                continue
            assert not re.match(r"https?:|//", target), f"{page.name} loads {target}"
            path, _, anchor = target.partition("#")
            if target.startswith("data:"):
                continue
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in pages[file].anchors, f"{page.name}: {target}"
    assert sum(file.stat().st_size for file in site.rglob("*")) < 8_000_000


def test_every_page_is_reached_from_the_index_and_has_no_empty_list_of_contents(site):
    reached, waiting = set(), [(site / "index.html").resolve()]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".html":
            continue
        reached.add(page)
        text = page.read_text(encoding="utf-8")
        assert "<ol></ol>" not in text, page.name
        (links := Links()).feed(text)
        targets = [t.partition("#")[0] for tag, t in links.targets if tag == "a" and "//" not in t]
        waiting += [(page.parent / target).resolve() for target in targets if target]
    assert reached == {page.resolve() for page in site.rglob("*.html")}


def test_formulas_become_mathml_and_code_stays_code(site):
    text = (site / f"{NOTEBOOKS[0].stem}.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.mathml > 10 and "$$" not in text and "\\mathrm" not in text
