"""The course as one small site that needs no network: python notebooks/course/site.py [FOLDER]

Every notebook as it is committed, every page of notebooks/pages/ and an index, with the formulas as
MathML; and, unless --no-explore is given, the network in the browser (`tinygmf explore`).
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import latex2mathml.converter
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments.formatters import HtmlFormatter

from tinygmf.files import new_folder

FOLDER = Path(__file__).resolve().parents[1]
SITE = FOLDER.parent / "build" / "course"
HERE = Path(__file__).parent
EXPLORE = "explore"
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
LINK = re.compile(r'(href|src)="([^"]+)"')
HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)(?:<a class="anchor-link".*?</a>)?</h2>', re.DOTALL)
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the course to a site of static pages.")
    parser.add_argument("folder", type=Path, nargs="?", default=SITE, help="new or empty")
    parser.add_argument("--no-explore", action="store_true", help="leave out the network itself")
    args = parser.parse_args()
    if args.folder == SITE and SITE.exists():
        shutil.rmtree(SITE)
    with new_folder(args.folder) as folder:
        count = write_site(folder, explored=not args.no_explore)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{args.folder / 'index.html'}: {count} pages, {size / 1e6:.1f} MB")


def write_site(folder: Path, explored: bool) -> int:
    """All pages, into an empty folder; returns how many there are."""
    shutil.copytree(FOLDER / "figures", folder / "figures")
    if explored:
        explore(folder / EXPLORE)
    notebooks = sorted(FOLDER.glob("*.ipynb"))
    pages = [FOLDER / "README.md", *notebooks, *sorted(FOLDER.glob("pages/*.md"))]
    places = {page.resolve(): place_of(page) for page in pages}
    for page in pages:
        target = folder / places[page.resolve()]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rendered(page, places, explored), encoding="utf-8")
    return len(pages)


def explore(folder: Path) -> None:
    """Write the network in the browser into the site: a minute or two of compiling."""
    command = [sys.executable, "-m", "tinygmf", "explore", "--out", str(folder), "--no-open"]
    subprocess.run(command, check=True, cwd=FOLDER.parent)


def place_of(page: Path) -> str:
    """Where a page lies in the site."""
    if page.name == "README.md":
        return "index.html"
    return str(page.relative_to(FOLDER).with_suffix(".html"))


def rendered(page: Path, places: dict[Path, str], explored: bool) -> str:
    """A page of the site, whole: its own text, and around it contents, style and colours."""
    if page.suffix == ".ipynb":
        notebook = nbformat.read(page, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_math(cell.source)
        exporter = HTMLExporter(template_name="basic")
        exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
        body, _ = exporter.from_notebook_node(notebook)
        source = notebook.cells[0].source
    else:
        source = page.read_text(encoding="utf-8")
        body = markdown2html_mistune(with_math(source))
    body = linked(body, page, places)
    title = TITLE.search(source)
    depth = places[page.resolve()].count("/")
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title[1] if title else page.stem),
        root="../" * depth,
        style=(HERE / "style.css").read_text(encoding="utf-8") + colours(),
        contents=contents(body),
        explore=f'<a href="{"../" * depth}{EXPLORE}/index.html">Explore</a>' if explored else "",
        body=body,
    )


def contents(body: str) -> str:
    """A page's headings as links, folded; nothing where there are none."""
    entries = [f'<li><a href="#{name}">{text}</a></li>' for name, text in HEADING.findall(body)]
    summary = "<summary>On this page</summary>"
    folded = f'<details class="contents">{summary}<ol>{"".join(entries)}</ol></details>'
    return folded if entries else ""


def with_math(markdown: str) -> str:
    """Markdown with its formulas, but for those in code, turned into MathML."""
    parts = CODE.split(markdown)
    parts[::2] = [MATH.sub(mathml, part) for part in parts[::2]]
    return "".join(parts)


def mathml(formula: re.Match[str]) -> str:
    block = formula[1] is not None
    text = (formula[1] or formula[2]).strip()
    return latex2mathml.converter.convert(text, display="block" if block else "inline")


def linked(body: str, page: Path, places: dict[Path, str]) -> str:
    """Links to pages of the course lead to where they are in the site; links to other files of the
    repository, which the site does not hold, become plain text in the reader's eyes."""
    root = "../" * places[page.resolve()].count("/")

    def change(link: re.Match[str]) -> str:
        kind, target = link.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return link[0]
        file = (page.parent / path).resolve()
        if file in places:
            return f'{kind}="{root}{places[file]}{mark}{anchor}"'
        if file.is_relative_to(FOLDER / "figures"):
            return f'{kind}="{root}{file.relative_to(FOLDER)}"'
        return f'data-file="{file.relative_to(FOLDER.parent)}"'

    return LINK.sub(change, body)


def colours() -> str:
    """The colours of code, on light and on dark pages."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


if __name__ == "__main__":
    main()
