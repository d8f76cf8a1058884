"""Pictures that a command line names, and answers that any terminal and any reader can show."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity import DATA
from PIL import Image
from process import environment

from tinygmf.commands import pictures as command
from tinygmf.commands.main import main
from tinygmf.commands.pictures import Pictures
from tinygmf.image import as_rgb
from tinygmf.weights.checkpoint import read_tensors, write_tensors

NANO = str(DATA / "nano.pth")
SMALL = ["--weights", NANO, "--size", "32"]  # all tests share one compiled program


def write_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(path, format="PNG")
    return folder


def names_read(*words: str) -> list[str]:
    pictures = Pictures(words)
    return [name for name, _ in pictures.read(as_rgb)]


def standard_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_files_folders_and_globs_are_taken_in_natural_order(tmp_path, monkeypatch):
    write_pictures(tmp_path, "f/10.png", "f/9.png", "f/deep/1", "f/.hidden.png", "a[1].png")
    (tmp_path / "f" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    whole = ["f/9.png", "f/10.png", "f/deep/1"]
    assert names_read("f") == whole
    assert names_read("f/*") == whole
    assert names_read("f/**/1*", "a[1].png") == ["f/10.png", "f/deep/1", "a[1].png"]
    assert names_read("f/10.png", "f/10.png") == ["f/10.png"] * 2


def test_standard_input_is_a_picture_or_names(tmp_path, monkeypatch):
    folder = write_pictures(tmp_path, "a b.png", "c.png")
    standard_input(monkeypatch, (folder / "c.png").read_bytes())
    assert names_read("-") == ["-"]
    names = [str(folder / "a b.png"), str(folder / "c.png")]
    for text in ("\n".join(names), "\r\n".join(names) + "\r\n", "\0".join(names) + "\0"):
        standard_input(monkeypatch, text.encode())
        assert names_read("-") == names
    standard_input(monkeypatch, b"")
    with pytest.raises(ValueError, match=r"standard input: .* found nothing"):
        names_read("-")


def test_broken_pictures_are_named_counted_and_skipped(tmp_path, capsys):
    folder = write_pictures(tmp_path, "1.png", "3.png")
    for name in ("0.png", "2.jpg"):
        (folder / name).write_bytes(b"no picture")
    pictures = Pictures([str(folder), "missing.png"])
    assert len(list(pictures.read(as_rgb))) == pictures.count == 2
    assert pictures.finish() == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["skipped"] * 3
    assert all(name in line for name, line in zip(("0", "2", "missing"), lines, strict=False))
    assert lines[3:] == ["3 of 5 pictures cannot be read"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one.png"], "one.png: expected a picture file, found No such file"),
        (["one.png", "two.png"], "expected pictures, found 2 that cannot be read"),
        (["empty"], "empty: expected pictures, found none"),
        (["*.nothing"], r"\*.nothing: expected a picture file, found No such file"),
    ],
)
def test_no_picture_at_all_is_an_error(tmp_path, monkeypatch, names, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    pictures = Pictures(names)
    assert not list(pictures.read(as_rgb))
    with pytest.raises(ValueError, match=message):
        pictures.finish()


def test_pictures_are_decoded_as_they_are_needed_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    alive, most, decoded = set(), 0, 0

    class Held:
        def __init__(self) -> None:
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    def read(_: object) -> Held:
        nonlocal decoded
        decoded += 1
        return Held()

    for i, (_, held) in enumerate(Pictures(["x.png"] * 200).read(read)):
        most = max(most, len(alive))
        assert decoded <= i + 12  # four for each of two threads, and what is at hand
        del held
    assert decoded == 200 and most < 16


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tinygmf", *arguments]
    return subprocess.run(command, env=environment(**options.pop("env", {})), **options)


ODD_NAMES = [
    *(b"caf\xe9.png", "日本.png".encode(), b"line\nfeed.png", "😀.png".encode(), b"-dash.png"),
    *(b"sp  ace.png", b"esc\x1b[31m.png", "U\u0308.png".encode(), b"a" * 240 + b".png"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_any_name_is_written_to_any_terminal(tmp_path, encoding):
    for name in ODD_NAMES:
        try:
            write_pictures(tmp_path, os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes no such name")
    done = run(
        *("classify", ".", *SMALL, "--topk", "1"),
        cwd=tmp_path,
        env={"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode(encoding).splitlines()
    assert len(lines) == 2 * len(ODD_NAMES)
    assert all(line.isprintable() for line in lines)
    assert {"caf\\udce9.png", "sp  ace.png", "line\\nfeed.png"} < set(lines)


def test_json_is_whole_with_any_name_and_whatever_else_is_printed(tmp_path, monkeypatch, capsys):
    for name in ODD_NAMES[:3]:
        write_pictures(tmp_path, os.fsdecode(name))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    kept = command.read_ahead

    def loud(*arguments: object) -> object:
        print("*** CPU kernel")  # as tinygrad prints with DEBUG=2
        return kept(*arguments)

    monkeypatch.setattr(command, "read_ahead", loud)
    assert main(["classify", str(tmp_path), *SMALL, "--json"]) == 1
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert {os.fsencode(Path(a["image"]).name) for a in answers} == set(ODD_NAMES[:3])
    assert "*** CPU kernel" in captured.err and "broken.png" in captured.err


def test_answers_that_are_not_finite_are_an_error_and_no_json(tmp_path, capsys):
    write_pictures(tmp_path, "x.png")
    weights, tensors = tmp_path / "broken.pth", read_tensors(NANO)
    huge = np.full_like(tensors["head.weight"], 3e38)  # finite, but not what it gives
    write_tensors(tensors | {"head.weight": huge}, weights)
    options = ["--weights", str(weights), "--size", "32", "--json"]
    assert main(["classify", str(tmp_path / "x.png"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "expected finite numbers, found others" in captured.err


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe as of Unix")
def test_a_reader_that_closes_early_ends_the_program_quietly(tmp_path):
    write_pictures(tmp_path, "x.png")
    read, write = os.pipe()
    os.close(read)
    names = [str(tmp_path / "x.png")] * 3
    for arguments in (["classify", *names, *SMALL], ["--help"], ["info", NANO]):
        done = run(*arguments, stdout=write, stderr=subprocess.PIPE)
        assert b"Traceback" not in done.stderr and b"Broken pipe" not in done.stderr
        assert b"Exception ignored" not in done.stderr
    os.close(write)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "wb") as full:
        done = run("info", NANO, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == ["tinygmf: No space left on device"]


@pytest.mark.parametrize("name", ["", "train", "classify", "evaluate", "explain"])
def test_help_is_written_to_any_terminal(name):
    done = run(
        *filter(None, [name]), "--help", env={"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert done.returncode == 0 and done.stdout.decode("ascii")


def test_answers_as_csv_are_those_in_json(tmp_path, capsys):
    write_pictures(tmp_path, "a, b.png", "c.png")
    options = ["classify", str(tmp_path), *SMALL, "--topk", "2"]
    assert main([*options, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main([*options, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [answer["image"] for answer in expected]
    for row, answer in zip(rows, expected, strict=True):
        for i, top in enumerate(answer["top"], 1):
            assert row[f"answer_{i}"] == top["name"]
            assert float(row[f"probability_{i}"]) == pytest.approx(top["probability"], abs=1e-6)


def test_the_answer_is_written_below_each_picture_and_the_picture_stays(tmp_path, capsys):
    write_pictures(tmp_path / "in", "a/x.png", "b/x.png")
    out = tmp_path / "out"
    assert main(["classify", str(tmp_path / "in"), *SMALL, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["x.png", "x_2.png"]
    drawn = np.asarray(Image.open(out / "x.png"))
    left = (drawn.shape[1] - 40) // 2
    assert (drawn[:40, left : left + 40] == [255, 0, 0]).all()
    assert (drawn[40:] < 100).any()  # ink


def test_explain_goes_on_past_a_broken_picture(tmp_path, capsys):
    folder = write_pictures(tmp_path / "in", "1.png", "2.png")
    (folder / "0.png").write_bytes(b"no picture")
    out = tmp_path / "seen.npz"
    assert main(["explain", str(folder), *SMALL, "--out", str(out)]) == 1
    assert "1 of 3 pictures cannot be read" in capsys.readouterr().err
    names = [Path(name).name for name in np.load(out)["images"]]
    assert names == ["1.png", "2.png"]
