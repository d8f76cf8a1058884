"""`tinygmf export`: what it writes is checked; bad options are refused before anything compiles."""

import shutil
import subprocess

import onnx
import pytest
from parity import DATA

from tinygmf.commands.main import main
from tinygmf.weights.checkpoint import read_checkpoint, write_tensors

NANO = str(DATA / "nano.pth")


def failure(capsys, *arguments: str) -> str:
    """Call a command that must fail; return its one line on standard error."""
    assert main(["export", NANO, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_a_c_program_is_written_checked_and_runs(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(10)))
    options = ["--classes", str(tmp_path / "names.txt"), "--size", "32", "--out", str(out)]
    assert main(["export", NANO, "--to", "c", *options]) == 0
    said = capsys.readouterr().out
    assert "network.c: " in said and "working memory: " in said
    assert "the example's logits are within " in said
    done = subprocess.run(["make", "-s", "run", "CC=gcc"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert "name " in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_webassembly_module_is_written_and_checked_where_node_is(tmp_path, capsys):
    out, kept = tmp_path / "out", "groupmixformer_backbone.0.gma_stage.0"
    options = ["--to", "wasm", "--size", "32", "--maps", kept, "--out", str(out)]
    assert main(["export", NANO, *options]) == 0
    said = capsys.readouterr().out
    checked = "the example's logits are within " in said
    assert f"{kept}: 1,280 floats" in said and checked == bool(shutil.which("node"))
    names = ["network.mjs", "network.wasm", "network_relaxed.wasm", "page.html", "weights.bin"]
    assert sorted(path.name for path in out.iterdir()) == names


@pytest.mark.parametrize("size", [(), ("--size", "free")], ids=["trained", "free"])
def test_an_onnx_file_is_written_and_checked_at_the_size_of_the_training(size, tmp_path, capsys):
    weights, out = tmp_path / "nano.safetensors", tmp_path / "out"
    write_tensors(read_checkpoint(NANO).tensors, weights, {"image_size": 32})
    options = ["--to", "onnx", "--folded", "--out", str(out), *size]
    assert main(["export", str(weights), *options]) == 0
    assert "the example's logits are within " in capsys.readouterr().out
    shape = onnx.load(out / "network.onnx").graph.input[0].type.tensor_type.shape.dim
    sides = [side.dim_param or side.dim_value for side in shape[2:]]
    assert sides == (["height", "width"] if size else [32, 32])


def test_logits_that_are_not_the_engines_are_an_error_and_leave_nothing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "tinygmf.export.onnx.run_onnx", lambda path, pictures: pictures[:, 0, 0, :10]
    )
    options = ["--to", "onnx", "--size", "32", "--out", str(tmp_path / "out")]
    assert "expected the example's logits as Predictor gives them" in failure(capsys, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    line = failure(capsys, "--to", "onnx", "--out", str(tmp_path))
    assert f"{tmp_path}: expected a new or empty folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "c", "--dtype", "float16"], "--dtype: expected float32, found float16"),
        (["--to", "onnx", "--batch", "2"], "--batch: an ONNX file takes any number"),
        (["--to", "onnx", "--maps", "x"], "--maps: an ONNX file names every value"),
        (["--to", "c", "--size", "free"], "--size: expected pixels for c, found free"),
        (["--to", "c", "--folded"], "--folded: an export to c always is"),
        (["--to", "c", "--size", "31"], "size: expected at least 32 pixels, found 31"),
        (["--to", "onnx", "--size", "31"], "size: expected at least 32 pixels, found (31, 31)"),
        (["--to", "c", "--example", "no.png"], "no.png: expected a picture file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message, tmp_path, capsys):
    assert message in failure(capsys, *options, "--out", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
