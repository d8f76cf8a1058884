"""`tinygmf explore`: what it writes; what it cannot show is refused before anything compiles."""

import webbrowser

import pytest
from parity import DATA

from tinygmf.commands.explore import name_of
from tinygmf.commands.main import main
from tinygmf.model import create_model
from tinygmf.weights.checkpoint import save_model

MOST = 4_000_000  # bytes of the page with the bundled networks


def test_a_network_of_grey_pictures_is_refused_in_one_line(tmp_path, capsys):
    save_model(create_model("nano", in_chans=1), tmp_path / "grey.safetensors")
    out = tmp_path / "out"
    assert (
        main(["explore", "--weights", str(tmp_path / "grey.safetensors"), "--out", str(out)]) == 2
    )
    assert "expected a network for pictures with 3 channels" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("kept")
    assert main(["explore", "--out", str(tmp_path), "--no-open"]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_page_that_is_there_is_named_and_left(tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    assert main(["explore", "--out", str(tmp_path)]) == 2
    assert f"found a page: open {tmp_path / 'index.html'}" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/best model (2).pth", "best-model-2"), ("ü.pth", "network"), ("digits", "digits")],
)
def test_a_network_is_named_by_its_file_in_plain_letters(path, name):
    assert name_of(path) == name


@pytest.mark.slow
def test_the_page_is_written_small_and_opened(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    out = tmp_path / "page"
    assert main(["explore", "--out", str(out)]) == 0
    assert opened == [(out / "index.html").as_uri()]
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < MOST
    assert capsys.readouterr().out.startswith(f"{out / 'index.html'}: digits")


@pytest.mark.slow
def test_weights_of_ones_own_come_first(tmp_path, capsys):
    out = tmp_path / "page"
    assert (
        main(["explore", "--weights", str(DATA / "nano.pth"), "--out", str(out), "--no-open"]) == 0
    )
    text = (out / "data" / "contents.js").read_text("utf-8")
    assert text.index('"name":"nano"') < text.index('"name":"digits"')
