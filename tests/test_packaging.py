"""What is built and installed, and who imports whom."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from imports import imported_packages

from tinygmf import __version__

ROOT = Path(__file__).parents[1]


def tracked_files() -> set[str]:
    """The files that git knows; skips if this is not a clone."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone: no list of files to compare with")
    command = ["git", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this tree."""
    for tool in ("build", "hatchling"):
        pytest.importorskip(tool, reason=f"pip install {tool} to check the wheel and the sdist")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)  # offline: nothing is fetched
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_package_with_its_assets_and_nothing_else(built):
    [wheel] = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tinygmf"}
    for needed in ("digits.safetensors", "imagenet_labels.txt", "PROVENANCE.txt"):
        assert f"tinygmf/assets/{needed}" in names
    assert sum(name.startswith("tinygmf/assets/digits/") for name in names) == 12


def test_the_wheel_carries_the_reference_whole(built):
    [wheel] = built.glob("*.whl")
    place = "tinygmf/reference/"
    with zipfile.ZipFile(wheel) as archive:
        carried = {n.removeprefix(place): archive.read(n) for n in archive.namelist() if place in n}
    ours = {p.relative_to(ROOT / "reference"): p for p in (ROOT / "reference").rglob("*.py")}
    assert carried == {str(name): path.read_bytes() for name, path in ours.items()}


def test_an_installed_wheel_verifies_itself_whatever_lies_in_the_present_folder(built, tmp_path):
    [wheel] = built.glob("*.whl")
    installed, here = tmp_path / "installed", tmp_path / "here"
    options = ["--no-deps", "--disable-pip-version-check", "--target", str(installed)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    for package in ("reference", "tinygmf", "json", "numpy"):  # each would end the process
        (here / package).mkdir(parents=True)
        for name in ("__init__", "__main__", "gma"):
            (here / package / f"{name}.py").write_text("import os; os._exit(7)")
    command = [sys.executable, str(installed / "bin" / "tinygmf"), "verify", "--size", "32"]
    command += ["--weights", str(installed / "tinygmf" / "assets" / "digits.safetensors")]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [*command, "--device", "CPU"], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the same network"


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
    allowed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", ".gitignore", ".ci", ".github"}
    assert found <= allowed | {"reference", "tinygmf", "notebooks", "tests"}


def test_the_version_stands_in_one_place(built):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    [wheel] = built.glob("*.whl")
    assert wheel.name.startswith(f"tinygmf-{__version__}-")
