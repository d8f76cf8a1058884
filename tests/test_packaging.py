"""What is built and installed, and who imports whom."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from imports import imported_packages

ROOT = Path(__file__).parents[1]


def tracked_files() -> set[str]:
    """What git knows of; skips where this is no clone."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone: no list of files to compare with")
    command = ["git", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this tree."""
    pytest.importorskip("build", reason="pip install build to check the wheel and the sdist")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_package_with_its_assets_and_nothing_else(built):
    [wheel] = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tinygmf"}
    for needed in ("digits.safetensors", "imagenet_labels.txt", "PROVENANCE.txt"):
        assert f"tinygmf/assets/{needed}" in names
    assert sum(name.startswith("tinygmf/assets/digits/") for name in names) == 12


def test_the_sdist_holds_everything(built):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked_files() - names <= {".gitignore"}


def test_the_two_halves_never_import_each_other():
    for path in (ROOT / "tinygmf").rglob("*.py"):
        assert "reference" not in imported_packages(path), path
    for path in (ROOT / "reference").rglob("*.py"):
        assert "tinygmf" not in imported_packages(path), path


def test_the_top_level_holds_only_what_the_readme_names():
    found = {name.split("/")[0] for name in tracked_files()}
    allowed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", ".gitignore", ".ci"}
    assert found <= allowed | {"reference", "tinygmf", "notebooks", "tests"}
