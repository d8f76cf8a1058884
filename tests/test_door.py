"""What a reader meets first: pages whose links lead somewhere, workflows that run what exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tinygmf.gma import ConvRelPosEnc

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("pages/*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
YAML = sorted((ROOT / ".github").rglob("*.yml"))
FIGURES = sorted((ROOT / "notebooks" / "figures").glob("*.svg"))
FIGURE = ROOT / "notebooks" / "figures" / "group_mix_attention.svg"
LINK = re.compile(r"(?<!\\)\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The Markdown of a page or a notebook, without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return FENCED.sub("", text)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have on GitHub; in a notebook they are Jupyter's."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    if page.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_of_this_repository(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://|attachment:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_the_links_are_found():
    assert "reference/gma.py" in LINK.findall(prose(ROOT / "README.md"))


def test_the_walks_through_the_code_name_files_that_are_there():
    names = re.findall(r"`((?:tinygmf/)?\w+/\w+\.py)`", prose(ROOT / ".github/CONTRIBUTING.md"))
    assert len(names) > 20
    for name in names:
        assert (ROOT / "tinygmf" / name.removeprefix("tinygmf/")).is_file(), name


def test_every_command_is_in_the_readme():
    from tinygmf.commands.main import COMMANDS

    shown = re.findall(r"^tinygmf (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(set(shown)) == sorted(COMMANDS)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_a_file_of_github_is_yaml_and_asks_for_no_secret(path):
    text = path.read_text(encoding="utf-8")
    assert "secrets." not in text
    content = yaml.safe_load(text)
    if path.parent.name == "ISSUE_TEMPLATE":
        assert "`tinygmf devices --test`" in [one["attributes"]["label"] for one in content["body"]]
    else:
        assert content["jobs"] and "make " in text


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def test_workflows_name_targets_of_the_makefile():
    commands = re.findall(
        r"make ((?:[a-z]+ ?)+)", "\n".join(path.read_text(encoding="utf-8") for path in YAML)
    )
    wanted = {word for command in commands for word in command.split()}
    assert {"lint", "test", "slow", "versions"} <= wanted <= targets()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_every_target():
    command = ["make", "--no-print-directory", "help"]  # these tests may be run by make
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    [phony] = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)
    assert listed == set(phony.split()) == targets()


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_drawing_says_what_it_shows_and_has_colours_for_light_and_dark(path):
    """Every colour is a variable that both schemes set; nothing is fetched from elsewhere."""
    text = path.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text)
    names = {part.tag.rpartition("}")[2]: part.text for part in tree}
    assert names["title"] and len(names["desc"] or "") > 60
    light, dark = re.findall(r"svg \{([^}]*)\}", text)
    set_names = [set(re.findall(r"(--\w+):", scheme)) for scheme in (light, dark)]
    assert set_names[0] == set_names[1] == set(re.findall(r"var\((--\w+)\)", text))
    assert not re.search(r"(fill|stroke)=|href=\"(?!#)|url\((?!#)", text)
    assert path.stat().st_size < 20_000


def test_the_drawing_of_the_attention_has_the_borders_of_the_network():
    """Eight heads in four segments of two; crpe's dashed boxes end where its heads do."""
    tree = ElementTree.fromstring(FIGURE.read_text(encoding="utf-8"))
    boxes = [one.attrib for one in tree.iter("{http://www.w3.org/2000/svg}rect")]
    heads = [one for one in boxes if one.get("class") == "head"]
    assert [one["style"] for one in heads[::2]] == [one["style"] for one in heads[1::2]]
    tops = [float(one["y"]) for one in heads]
    dashed = [one for one in boxes if "dasharray" in one.get("style", "")]
    spans = [(float(one["y"]), float(one["y"]) + float(one["height"])) for one in dashed]
    counts = [sum(top <= y < bottom for y in tops) for top, bottom in spans]
    assert counts == [heads for _, heads in ConvRelPosEnc.KERNELS] == [2, 3, 3]
