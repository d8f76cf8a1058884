"""The command line as a user calls it, with good input and bad."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity import DATA
from PIL import Image
from process import call, environment
from strategies import noise

from tinygmf import __version__
from tinygmf.commands.main import main
from tinygmf.data.archives import CIFAR_CLASSES
from tinygmf.dense.networks import load_model
from tinygmf.engine.predictor import Predictor
from tinygmf.weights.checkpoint import load_weights, write_tensors
from tinygmf.weights.reading import read_checkpoint

NANO = str(DATA / "nano.pth")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(noise(0, 40, 50)).save(path)
    return path


def test_too_little_memory_is_one_line(failure, monkeypatch):
    def too_little(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tinygmf.study.summary.format_summary", too_little)
    assert "out of memory" in failure("info", "groupmixformer_nano")


def test_classify_names_the_likeliest_classes(picture, capsys):
    arguments = ["classify", str(picture), "--weights", NANO, "--size", "32", "--topk", "3"]
    assert main(arguments) == 0
    name, *rows = capsys.readouterr().out.splitlines()
    assert name == str(picture) and len(rows) == 3
    assert main([*arguments, "--json"]) == 0
    [answer] = json.loads(capsys.readouterr().out)
    probabilities = [entry["probability"] for entry in answer["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert rows[0].split()[1] == str(answer["top"][0]["class"])


def test_classify_takes_the_names_that_training_left_beside_the_weights(
    failure, picture, tmp_path, capsys
):
    weights, names = tmp_path / "model.pth", [f"name {i}" for i in range(10)]
    weights.write_bytes(Path(NANO).read_bytes())
    (tmp_path / "classes.txt").write_text("\n".join(names))
    arguments = ["classify", str(picture), "--weights", str(weights), "--size", "32", "--json"]
    assert main(arguments) == 0
    [answer] = json.loads(capsys.readouterr().out)
    assert all(entry["name"] == names[entry["class"]] for entry in answer["top"])
    (tmp_path / "classes.txt").write_text("one")
    line = failure(*arguments)
    assert "classes.txt: expected 10 lines" in line and "found 1: name another file" in line


def test_classify_tells_of_a_missing_picture_before_it_compiles(failure):
    line = failure("classify", "no.png", "--weights", NANO)
    assert "no.png" in line and "expected a picture" in line


def test_classify_tells_of_weights_that_are_none(failure, picture):
    line = failure("classify", str(picture), "--weights", str(picture))
    assert str(picture) in line and ".pth or .safetensors" in line


def test_classify_tells_of_a_size_that_is_too_small(failure, picture):
    line = failure("classify", str(picture), "--weights", NANO, "--size", "31")
    assert "at least 32 pixels, found 31" in line


@pytest.mark.parametrize("command", ["classify", "explain"])
def test_a_size_that_no_memory_holds_is_refused_at_once(failure, picture, command, monkeypatch):
    monkeypatch.setattr("tinygmf.image.load_image", None)  # nothing is read for it
    line = failure(command, str(picture), "--weights", NANO, "--size", "1000000")
    assert "--size 1000000: expected pictures that fit in" in line
    assert "found that one needs at least 32000 GB: give a smaller size" in line


@pytest.mark.parametrize("command", ["classify", "explain"])
def test_so_is_one_that_the_file_of_weights_asks_for(failure, picture, command, tmp_path):
    weights = named_network(tmp_path / "x.safetensors", image_size=1_000_000)
    line = failure(command, str(picture), "--weights", str(weights))
    assert "x.safetensors: image_size 1000000: expected pictures that fit in" in line


@pytest.mark.parametrize("size", [0, 10**8, 10**26, "9" * 5000])
@pytest.mark.parametrize("words", [["info", "digits", "--size"], ["tune", "--size"]])
def test_a_size_that_means_nothing_is_refused(words, size, capsys):
    with pytest.raises(SystemExit):
        main([*words, str(size)])
    expected = "argument --size: expected a whole number from 1 to 10000000, found '"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("text", ["--1,1", "1", "1,2,3", "a,b", "1,", "9" * 5000 + ",1"])
def test_a_query_is_two_numbers(text, capsys):
    with pytest.raises(SystemExit):
        main(["explain", "x.png", "--weights", "digits", f"--query={text}"])
    assert f"expected two whole numbers Y,X, found '{text[:60]}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["classify", "evaluate", "segment"])
def test_a_file_where_the_results_folder_belongs_is_one_line(failure, picture, command):
    weights = "scenes-segment" if command == "segment" else NANO
    line = failure(command, str(picture), "--weights", weights, "--out", str(picture))
    assert f"--out {picture}: expected a folder, new or not, found a file of this name" in line


@pytest.mark.parametrize("value", ["garbage", "-5", "0"])
def test_a_number_of_threads_that_is_none_is_told(failure, monkeypatch, value, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert main(["classify", "no.png", "--weights", NANO]) == 2
    told, _ = capsys.readouterr().err.splitlines()
    expected = f"OMP_NUM_THREADS: expected a whole number of at least 1, found '{value}': "
    assert told.startswith(f"tinygmf: {expected}")
    assert "no.png" in failure("classify", "no.png", "--weights", NANO, "--threads", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # of nested loops
    assert "no.png" in failure("classify", "no.png", "--weights", NANO)


def test_classify_tells_of_a_device_that_is_not_there(failure, picture):
    line = failure("classify", str(picture), "--weights", NANO, "--device", "ABACUS")
    assert "ABACUS" in line and "CPU" in line


def labeled_folder(tmp_path, names=("0", "7")):
    for i, name in enumerate(names):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        Image.fromarray(noise(i, 32, 32)).save(folder / "noise.png")
    (tmp_path / "val" / names[0] / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "val"


def test_evaluate_counts_right_answers_and_names_unreadable_pictures(tmp_path, capsys):
    folder, report = labeled_folder(tmp_path), tmp_path / "report.json"
    options = ["--weights", NANO, "--size", "32", "--batch-size", "1", "--json", str(report)]
    assert main(["evaluate", str(folder), *options]) == 1  # as classify says it
    captured = capsys.readouterr()
    assert "of 2 pictures" in captured.out and "1 unreadable" in captured.out
    assert "broken.jpg" in captured.err
    figures = json.loads(report.read_text())
    assert set(figures["confusion"]) == {"0", "7"} and figures["pictures"] == 2
    labels = tmp_path / "labels.txt"
    likeliest = [next(iter(figures["confusion"][name])) for name in ("0", "7")]
    labels.write_text(f"0/noise.png {likeliest[0]}\n7/noise.png, {likeliest[1]}\n")
    assert main(["evaluate", str(folder), *options, "--labels", str(labels)]) == 0
    assert json.loads(report.read_text())["top1"] == 1


def test_evaluate_tells_of_folders_that_are_not_the_classes(failure, tmp_path):
    folder = labeled_folder(tmp_path, ("cat", "dog"))
    line = failure("evaluate", str(folder), "--weights", NANO)
    assert "the network's 10 classes (0, 1, 2, 3, 4, …), found 'cat', no class" in line
    labels = tmp_path / "labels.txt"
    labels.write_text("cat/noise.png cat\n")
    line = failure("evaluate", str(folder), "--weights", NANO, "--labels", str(labels))
    assert "line 1" in line and "its class, one of the network's 10" in line


def named_network(path: Path, **settings: object) -> Path:
    """The network with settings in its file."""
    weights = load_weights(NANO)
    write_tensors(weights.arrays, path, replace(weights.settings, **settings).to_json())
    return path


def test_the_file_of_weights_says_size_and_classes(picture, tmp_path, capsys):
    names = tuple(f"name, {i}" for i in range(10))
    for suffix in ("pth", "safetensors"):
        weights = named_network(tmp_path / f"x.{suffix}", image_size=32, classes=names)
        (tmp_path / "classes.txt").write_text("others\n")  # the file itself knows better
        answers = []
        for options in ([], ["--size", "32"], ["--size", "64"]):
            assert (
                main(["classify", str(picture), "--weights", str(weights), "--json", *options]) == 0
            )
            captured = capsys.readouterr()
            answers.append(json.loads(captured.out))
            differs = "trained at a size of 32 pixels, used at 64"
            assert captured.err.count(differs) == (options[1:] == ["64"])
        assert answers[0] == answers[1] != answers[2]
        assert all(entry["name"] == names[entry["class"]] for entry in answers[0][0]["top"])
        assert Predictor(load_weights(weights), device="CPU").image_size == 32
    assert Predictor(load_weights(NANO), device="CPU").image_size == 224


def test_the_file_of_weights_says_how_pictures_are_prepared(picture, tmp_path):
    weights = named_network(
        tmp_path / "x.pth", image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0
    )
    found = Predictor(load_weights(weights), device="CPU").read(picture)
    image = Image.open(picture)  # 50 x 40
    square = image.resize((40, 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32))
    expected = (np.asarray(square).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_evaluate_goes_by_the_names_in_the_file(failure, tmp_path, capsys):
    """Classes in alphabetical order, as older versions trained them: 0, 1, 10, 2, …"""
    folder = labeled_folder(tmp_path, ("2", "10"))
    names = tuple(sorted(map(str, range(1, 11))))
    weights, report = (
        named_network(tmp_path / "x.pth", image_size=32, classes=names),
        tmp_path / "j",
    )
    options = ["--weights", str(weights), "--json", str(report)]
    assert main(["evaluate", str(folder), *options]) == 1  # a picture is broken
    figures = json.loads(report.read_text())
    assert set(figures["confusion"]) == {"2", "10"} and figures["classes"] == list(names)
    (folder / "11").mkdir()
    capsys.readouterr()
    line = failure("evaluate", str(folder), *options)
    assert "found '11', no class" in line
    option = tmp_path / "names.txt"
    option.write_text("".join(f"{i}\n" for i in (*range(2, 11), 11)))
    assert main(["evaluate", str(folder), *options, "--classes", str(option)]) == 1
    assert set(json.loads(report.read_text())["confusion"]) == {"2", "10"}


def test_evaluate_measures_on_the_pictures_that_a_data_set_has_to_test_on(tmp_path, capsys):
    rng, cat, ship = (
        np.random.default_rng(0),
        CIFAR_CLASSES.index("cat"),
        CIFAR_CLASSES.index("ship"),
    )
    files = dict.fromkeys((f"data_batch_{i}" for i in range(1, 6)), ship) | {"test_batch": cat}
    for name, label in files.items():
        records = rng.integers(0, 256, (3, 3073), np.uint8)
        records[:, 0] = label
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    names = tuple(sorted(CIFAR_CLASSES, reverse=True))
    weights = named_network(tmp_path / "x.pth", image_size=32, classes=names)
    report = tmp_path / "report.json"
    assert main(["evaluate", str(tmp_path), "--weights", str(weights), "--json", str(report)]) == 0
    assert "of 3 pictures" in capsys.readouterr().out
    assert set(json.loads(report.read_text())["confusion"]) == {"cat"}


def test_nothing_that_can_be_read_is_an_error(failure, tmp_path):
    folder = tmp_path / "val" / "3"
    folder.mkdir(parents=True)
    for i in range(2):
        (folder / f"{i}.png").write_bytes(b"no picture")
    line = failure("evaluate", str(folder.parent), "--weights", NANO, "--size", "32")
    assert "expected pictures to measure on, found none of 2 that can be read" in line


def test_figures_are_printed_before_they_are_saved_and_the_place_is_tried_first(
    failure, tmp_path, capsys, monkeypatch
):
    folder, options = labeled_folder(tmp_path), ["--weights", NANO, "--size", "32"]
    missing = ["--json", str(tmp_path / "no" / "where.json")]
    line = failure("evaluate", str(folder), *options, *missing)
    assert "where.json: cannot be written: No such file or directory" in line
    monkeypatch.setattr("tinygmf.commands.evaluate.require_writable", lambda path: None)
    assert main(["evaluate", str(folder), *options, *missing]) == 2  # the folder went away since
    captured = capsys.readouterr()
    assert "of 2 pictures" in captured.out and "No such file" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out", "{place}"],
        ["explain", "x.png", "--weights", NANO, "--out", "{place}.png"],
        ["convert", NANO, "{place}.pth"],
        ["ablate", "--json", "{place}"],
    ],
)
def test_every_command_tries_its_results_place_first(failure, tmp_path, arguments):
    place = str(tmp_path / "no" / "x")
    line = failure(*(text.format(place=place) for text in arguments))
    assert f"{place}" in line and "cannot be written: No such file or directory" in line


def test_info_shows_the_network_beside_the_published_figures(capsys):
    assert main(["info", "groupmixformer_tiny"]) == 0
    table = capsys.readouterr().out
    assert "10,949,152" in table and "82.6 % ImageNet-1K top-1" in table
    assert main(["info", NANO, "--size", "64"]) == 0
    table = capsys.readouterr().out
    assert "55,602" in table and "16x16" in table


def test_info_tells_of_a_model_that_is_not_there(failure):
    line = failure("info", "groupmixformer_huge")
    assert "groupmixformer_huge" in line and "groupmixformer_tiny" in line


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (NANO, "nano.pth: GroupMixFormer (20, 20, 30, 40) (1, 2, 1, 1), 10 classes\n"),
        ("scenes-segment", "semantic_fpn on groupmixformer_nano, 7 classes\n"),
        ("scenes-instance", "maskrcnn on groupmixformer_nano, 7 classes\n"),
    ],
)
def test_convert_goes_there_and_back_without_a_change(tmp_path, capsys, weights, said):
    there, back = tmp_path / "nano.safetensors", tmp_path / "nano.pth"
    assert main(["convert", weights, str(there)]) == main(["convert", str(there), str(back)]) == 0
    assert capsys.readouterr().out.endswith(said)
    first, last = read_checkpoint(weights), read_checkpoint(back)
    assert list(first.tensors) == list(last.tensors)
    assert all((first.tensors[key] == last.tensors[key]).all() for key in first.tensors)
    assert load_model(back).settings == load_model(weights).settings


def test_convert_tells_of_a_suffix_it_does_not_write(failure, tmp_path):
    line = failure("convert", NANO, str(tmp_path / "nano.onnx"))
    assert "nano.onnx" in line and ".pth or .safetensors" in line


def test_verify_finds_port_and_reference_the_same_network(capsys):
    assert main(["verify", "--weights", NANO, "--size", "32"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[-1] == "the same network" and len(table) == 7


def test_cache_lists_the_compiled_programs_and_clears_them(
    picture, capsys, tmp_path, monkeypatch, cache_home
):
    main(["classify", str(picture), "--weights", NANO, "--size", "32"])
    capsys.readouterr()
    copy = tmp_path / "cache"  # of the programs that all tests share, and others may be writing
    (kept := copy / "tinygmf" / "programs").mkdir(parents=True)
    for program in (cache_home / "tinygmf" / "programs").glob("*.program"):
        shutil.copy(program, kept)
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy))
    assert main(["cache"]) == 0
    assert "widths 20,20,30,40" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert main(["cache"]) == 0
    programs, whole = capsys.readouterr().out.splitlines()[-2:]
    assert programs.startswith("0 programs") and whole.startswith("0.0 MB")


def test_python_m_tinygmf_is_the_command():
    command = [sys.executable, "-m", "tinygmf", "--version"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"tinygmf {__version__}\n", "")


def test_a_mistake_is_one_line_and_no_traceback_for_the_installed_command():
    command = [sys.executable, "-m", "tinygmf", "info", "nothing"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def installed(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """The command in a shell with other variables."""
    shell = {name: value for name, value in environment().items() if name != "DEV"} | variables
    command = [sys.executable, "-m", "tinygmf", *arguments]
    return subprocess.run(command, env=shell, capture_output=True, text=True)


SHELLS = {
    "CUDA": "1",
    "GPU": "1",
    "JIT": "0",
    "DEBUG": "app:*",
    "NO_COLOR": "yes",
    "IMAGE": "name:tag",
    "TRAINING": "1",
    "DEV": "http://host:80/a:b",
}


@pytest.mark.parametrize("name", SHELLS)
def test_others_variables_change_nothing(picture, name):
    arguments = ["classify", str(picture), "--weights", NANO, "--size", "32", "--json"]
    usual = installed(*arguments, DEV="CPU")
    done = installed(*arguments, **{"DEV": "CPU", name: SHELLS[name]})
    assert done.returncode == 0 and json.loads(done.stdout) == json.loads(usual.stdout)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["CUDA", "CPU", "JIT", "DEBUG"])
@pytest.mark.parametrize("command", ["info", "convert"])
def test_what_computes_nothing_opens_no_device(tmp_path, name, command):
    results = [str(tmp_path / "x.pth")] if command == "convert" else []
    for variables in ({name: "1"}, {"DEV": "GPU"}, {"DEV": "CUDA"}):
        done = installed(command, NANO, *results, **variables)
        assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("command", ["classify", "evaluate", "explain", "tune", "verify", "train"])
def test_a_device_that_is_not_there_is_one_line_in_every_command(picture, command):
    arguments = {"train": ["digits"], "verify": []}.get(command, [str(picture.parent)])
    weights = [] if command == "tune" else arguments
    options = [] if command in ("train", "verify") else ["--weights", NANO]
    done = installed(command, *weights, *options, DEV="GPU")
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "device GPU does not open: there is no such device" in line


def test_without_a_home_programs_are_not_kept_and_that_is_one_line(picture, tmp_path):
    (tmp_path / "file").touch()
    arguments = ["classify", str(picture), "--weights", NANO, "--size", "32"]
    done = installed(*arguments, DEV="CPU", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 6
    lines = [line for line in done.stderr.splitlines() if line.startswith("tinygmf: ")]
    assert len(lines) == 1 and "will not be kept" in lines[0] and "XDG_CACHE_HOME" in lines[0]


def test_no_clang_anywhere_is_one_line_that_says_what_to_run(tmp_path):
    """A fresh machine: no clang on PATH, none in CC, no zig in the environment."""
    path = environment()["PYTHONPATH"]
    fresh = {"HOME": str(tmp_path), "PATH": str(tmp_path), "PYTHONPATH": path}
    done = call(
        run_command, "verify", "--weights", NANO, "--device=CPU", hidden="ziglang", env=fresh
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "pip install 'tinygmf[clang]'" in line


def run_command(*arguments: str) -> None:
    sys.exit(main(list(arguments)))
