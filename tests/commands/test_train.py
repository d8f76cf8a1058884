"""`tinygmf train` as a user calls it: fine-tuning from a folder of pictures, and every mistake."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import process
import pytest
from parity import DATA
from PIL import Image

from tinygmf.commands import train as command
from tinygmf.commands import train_loop
from tinygmf.commands.main import build_parser, main
from tinygmf.commands.run_folder import locked, recall, started_with, usual_folder
from tinygmf.config import VARIANTS
from tinygmf.data.shapes import SHAPES, shape_picture
from tinygmf.engine.predictor import Predictor
from tinygmf.model import create_model
from tinygmf.training.head import HeadPrograms
from tinygmf.training.recipe import RECIPES, recipe_options
from tinygmf.training.run_file import ABOUT, Run, save_run
from tinygmf.training.state import TrainingState
from tinygmf.weights.checkpoint import load_model, read_tensors, save_model

NANO = str(DATA / "nano.pth")
# The network, batch and size of the parity tests: all tests share one compiled program.
SHARED = ["--weights", NANO, "--batch-size", "4", "--size", "64", "--device", "CPU"]


def write_shapes(folder: Path, kinds: range, train: int, val: int) -> Path:
    """`train/SHAPE/*.png` and `val/SHAPE/*.png`."""
    for part, count in (("train", train), ("val", val)):
        for kind in kinds:
            place = folder / part / SHAPES[kind]
            place.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([kind, i, len(part)])
                shape_picture(kind, 72, rng).save(place / f"{i}.png")
    return folder


def fine_tune(capsys, data: Path, out: Path, *options: str) -> tuple[list[str], list[dict]]:
    """What the command prints, and the rows of its log."""
    assert main(["train", str(data), *SHARED, "--out", str(out), *options]) == 0
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return capsys.readouterr().out.splitlines(), rows


def evaluated(capsys, folder: Path, weights: Path) -> str:
    options = ["--batch-size", "4", "--device", "CPU"]  # the file says size and classes
    assert main(["evaluate", str(folder), "--weights", str(weights), *options]) == 0
    return capsys.readouterr().out.split(",")[0]


def test_fine_tuning_a_new_head_alone_leaves_the_rest_bit_for_bit(tmp_path, capsys):
    data, out = write_shapes(tmp_path / "shapes", range(3), train=8, val=4), tmp_path / "run"
    options = ["--num-classes", "3", "--head-only", "--epochs", "4", "--learning-rate", "0.5"]
    lines, rows = fine_tune(capsys, data, out, *options)
    assert [line.split(":")[0] for line in lines[:4]] == [f"epoch   {i}" for i in (1, 2, 3, 4)]
    before, after = read_tensors(NANO), read_tensors(out / command.WEIGHTS)
    assert after["head.weight"].shape == (3, before["head.weight"].shape[1])
    for name in before:
        if not name.startswith("head."):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    settings = load_model(out / command.WEIGHTS).settings
    assert settings.image_size == 64 and settings.classes == SHAPES[:3]
    start = load_model(NANO)
    start.reset_classifier(3, seed=0)
    assert np.abs(after["head.weight"] - start.head.weight.numpy()).max() > 1e-3
    assert rows[-1]["loss"] < rows[0]["loss"]
    with open(out / "by_class.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert [row["class"] for row in classes] == list(SHAPES[:3])
    assert sum(int(row["right"]) for row in classes) == round(12 * rows[-1]["top1"])
    assert lines[-1] == (
        f"{out / command.WEIGHTS}: top-1 {rows[-1]['top1']:.2%} of 12 held-out pictures"
    )
    assert evaluated(capsys, data / "val", out / command.WEIGHTS) == f"top-1 {rows[-1]['top1']:.2%}"


@pytest.mark.parametrize(
    ("epochs", "steps", "lines"), [(100, 1, 100), (400, 1, 41), (200, 2, 41), (300, 2500, 300)]
)
def test_hundreds_of_short_epochs_get_some_forty_lines(epochs, steps, lines):
    trainer = SimpleNamespace(recipe=SimpleNamespace(epochs=epochs), steps_per_epoch=steps)
    told = [epoch for epoch in range(1, epochs + 1) if train_loop.told(epoch, trainer)]
    assert (len(told), told[0], told[-1]) == (lines, 1, epochs)


def test_fine_tuning_moves_the_whole_network_the_first_stage_least(tmp_path, capsys):
    data, out = write_shapes(tmp_path / "shapes", range(10), train=2, val=1), tmp_path / "run"
    options = ["--layer-decay", "0.3", "--epochs", "1", "--warmup-epochs", "0", "--ema", "0"]
    lines, rows = fine_tune(capsys, data, out, *options)
    assert lines[-1].endswith(f"top-1 {rows[-1]['top1']:.2%} of 10 held-out pictures")
    before, after = read_tensors(NANO), read_tensors(out / command.WEIGHTS)
    moved = {name: np.abs(after[name] - before[name]).max() for name in before}
    first, last = moved["conv_stem.proj1.weight"], moved["head.weight"]
    assert 0 < first < 0.3**4 * last
    assert moved["norm4.running_var"] > 0
    assert evaluated(capsys, data / "val", out / command.WEIGHTS) == f"top-1 {rows[-1]['top1']:.2%}"


def test_the_gradient_of_the_head_is_that_of_the_softmax_of_the_networks_features():
    model = load_model(NANO, "CPU")
    arrays = read_tensors(NANO)
    state = TrainingState(model.config, arrays, "CPU", weight_decay=0.05, head_only=True)
    programs = HeadPrograms(model.config, state, 4, 64, "CPU", progress=False)
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((4, 3, 64, 64), np.float32)
    targets = rng.dirichlet(np.ones(10), 4).astype(np.float32)
    loss = programs.gradient(0.5, pictures, targets, np.ones((10, 4), np.float32))
    predict = Predictor(model, 64, batch_size=4, device="CPU", progress=False)
    expected = predict.run(pictures)
    exponentials = np.exp(expected - expected.max(1, keepdims=True))
    softmax = exponentials / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(loss, -(targets * np.log(softmax)).sum(1).mean(), rtol=1e-4)
    found = state.layout.weights.split(state["gradient"].numpy())
    model.reset_classifier(0)
    features = Predictor(model, 64, batch_size=4, device="CPU", progress=False).run(pictures)
    by_hand = {
        "head.weight": 0.5 * (softmax - targets).T @ features / 4,
        "head.bias": 0.5 * (softmax - targets).mean(0),
    }
    for name, array in found.items():
        if name in by_hand:
            np.testing.assert_allclose(array, by_hand[name], atol=1e-5)
        else:
            assert not array.any(), name
    unmoved = state.network()
    assert all((unmoved[name] == arrays[name]).all() for name in arrays)


@pytest.fixture
def pictures(tmp_path) -> Path:
    for name in ("cat", "dog"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (50 * i, 0, 0)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "no.pth"], "no.pth: cannot be read: No such file"),
        (["--weights", __file__], "expected a .pth or .safetensors file"),
        (["--weights", "{data}"], "found a folder or a device: name a file, or the folder of a"),
        (["--resume", "--out", "{out}/new"], "expected a run in {out}/new, found none"),
        (["--resume", "--out", "{out}/a.pth"], "--resume: expected the folder of a run"),
        (["--num-classes", "3"], "--num-classes: expected 2, the classes of {data}, found 3"),
        (["--out", "{data}/cat/0.png/run"], "0.png/run: cannot be written: Not a directory"),
        (["--out", "{data}/cat/0.png"], "0.png: cannot be written: File exists"),
        (["--out", "{data}/cat/0.png/run.pth"], "cannot be written: File exists"),
        (["--out", "{out}/folder.pth"], "expected a file name, found a folder"),
        (["--device", "ABACUS"], "ABACUS does not open: there is no such device"),
        (["--batch-size", "9"], "one batch of 9 pictures to train on, found 8: give a smaller"),
        (["--accumulate", "9"], "one batch of 18 pictures"),
        (["--batch-size", "0"], "--batch-size: expected at least 1, found 0"),
        (["--size", "31"], "--size: expected at least 32 pixels, found 31"),
        (["--size", "100000000"], "--size 100000000: expected pictures that fit in"),
        (["--learning-rate", "nan"], "--learning-rate: expected a finite number, found nan"),
        (["--mixup", "1e400"], "--mixup: expected a finite number, found inf"),
        (["--head-only"], "--head-only: expected a trained network in --weights, found none"),
        (["--recipe", "head"], "--head-only: expected a trained network in --weights"),
        (["--seed", "-1"], "--seed: expected 0 to"),
        (["--warmup-rate", "-1"], "--warmup-rate: expected 0 or more"),
    ],
)
def test_a_mistake_is_one_line_that_comes_before_anything_is_compiled(
    failure, pictures, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("tinygmf.training.trainer.Programs", None)
    (tmp_path / "folder.pth").mkdir()
    names = {"data": pictures, "out": tmp_path}
    usual = ["--batch-size", "2", "--size", "32", "--out", "{out}/run"]
    arguments = [text.format(**names) for text in (*usual, *options)]
    assert message.format(**names) in failure("train", pictures, *arguments)


def test_data_that_is_none_is_one_line(failure, tmp_path):
    line = failure("train", tmp_path / "missing")
    assert (
        "expected digits, shapes, cifar10, fashion-mnist, scenes-photograph, scenes-shape or a "
        in line
    )
    (tmp_path / "empty").mkdir()
    assert "one folder for each class, found none" in failure("train", tmp_path / "empty")


def test_a_picture_is_no_data_and_its_folder_is_to_be_named(failure, pictures):
    line = failure("train", pictures / "cat" / "0.png")
    assert "0.png: expected a folder of pictures, found one picture: name its folder" in line


def test_broken_pictures_alone_are_one_line(failure, pictures):
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"no picture")
    line = failure("train", pictures, "--batch-size", "2")
    assert "found none of 8 that can be read; the last one:" in line


def test_a_data_set_that_cannot_be_fetched_is_one_line(failure, monkeypatch):
    def offline(**_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("tinygrad.nn.datasets.mnist", offline)
    monkeypatch.setattr("tinygrad.nn.datasets.cifar", offline)
    for name in ("fashion-mnist", "cifar10"):
        assert f"{name}: expected to fetch it, found no network" in failure("train", name)


def write_run(folder: Path, **about: object) -> None:
    """The file of a run of which only the metadata matters."""
    folder.mkdir(exist_ok=True)
    recipe = asdict(replace(RECIPES["quick"], batch_size=2))
    usual = dict.fromkeys(ABOUT) | {
        "started": {},
        "reports": [],
        "recipe": recipe,
        "classes": ["cat", "dog"],
        "pictures": 8,
    }
    about = {**usual, "step": 1, "steps": 4, **about}
    save_run(folder / command.RUN, Run({"weights": np.zeros(3, np.float32)}, about))


@pytest.mark.parametrize(
    ("about", "options", "message"),
    [
        ({}, [], "found one that stopped after step 1 of 4: `tinygmf train --resume"),
        (
            {"started": {"model": "groupmixformer_tiny"}},
            ["--resume", "--model", "nano"],
            "resume: --model groupmixformer_tiny: leave it out",
        ),
        ({}, ["--resume", "--epochs", "4"], "at least the epochs that are done, 5, found"),
        ({"classes": ["cat", "cow"]}, ["--resume"], "run to resume, cat, cow, found cat, dog"),
        ({"pictures": 9}, ["--resume"], "the pictures of the run to resume, 9, found 8"),
        ({}, ["--resume", "--seed", "7"], "the options of the run to resume: --seed 0"),
        ({}, ["--resume", "--drop-path", "0.5"], "of the run to resume: no --drop-path"),
    ],
)
def test_another_run_in_the_folder_is_one_line(
    failure, pictures, tmp_path, about, options, message
):
    write_run(tmp_path / "run", **about)
    usual = ["--batch-size", "2", "--out", tmp_path / "run"]
    assert message in failure("train", pictures, *usual, *options)


def test_a_finished_run_is_not_replaced_and_the_message_says_how_to_go_on(
    failure, pictures, tmp_path
):
    folder = tmp_path / "run"
    usual = [pictures, "--batch-size", "2", "--out", folder]
    write_run(folder, step=4)
    kept = [folder / command.WEIGHTS, tmp_path / "alone.pth"]
    for path in kept:
        path.write_bytes(b"trained")
    line = failure("train", *usual)
    assert "expected no finished run, found model.safetensors of one: give another --out" in line
    assert f"`tinygmf train --resume {folder} --epochs N` makes that run longer" in line
    line = failure("train", *usual[:-1], kept[1])
    assert "alone.pth: expected no file, found one" in line
    assert all(path.read_bytes() == b"trained" for path in kept)


def test_a_second_run_goes_beside_one_that_has_ended(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Path("runs/pictures"), Path("runs/pictures-2")
    assert usual_folder(str(pictures)) == first
    first.mkdir(parents=True)
    write_run(first)
    assert usual_folder(str(pictures)) == first  # it can be resumed
    write_run(first, step=4)
    assert usual_folder(str(pictures)) == second
    assert usual_folder(str(pictures), resuming=True) == first
    write_run(second)
    assert usual_folder(str(pictures), resuming=True) == second


def test_a_runs_folder_alone_says_how_to_go_on(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse = build_parser().parse_args
    typed = "--model nano --device CPU --seed 7 --size 32 --batch-size 2 --out run"
    args = parse(["train", "pictures", *typed.split()])
    recipe = command.chosen_recipe(args)
    write_run(tmp_path / "run", recipe=asdict(recipe), started=started_with(args))
    monkeypatch.chdir(pictures)  # the paths are valid from any folder
    again = parse(["train", "--resume", str(tmp_path / "run"), "--epochs", "50"])
    about = recall(again)
    assert about is not None
    assert again.data == str(pictures) and again.device == "CPU"
    assert again.model == "groupmixformer_nano" and again.out == tmp_path / "run"
    assert command.chosen_recipe(again, about["recipe"]) == replace(recipe, epochs=50)


def test_nothing_to_train_on_is_one_line(failure):
    assert "DATA: expected a folder of pictures" in failure("train")
    assert "--resume: expected the folder of a run, found none" in failure("train", "--resume")


def hold(folder: str) -> None:
    """Lock a run's folder until standard input ends."""
    with locked(Path(folder)):
        print("held", flush=True)
        sys.stdin.read()


def test_two_runs_in_one_folder_are_refused_until_the_first_has_ended(failure, pictures, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    held = subprocess.Popen(
        process.command(hold, folder),
        env=process.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert held.stdout is not None and held.stdout.readline() == b"held\n"
    usual = [pictures, "--batch-size", "2", "--size", "32", "--out", folder]
    for resume in ([], ["--resume"]):
        write_run(folder)
        line = failure("train", *usual, *resume)
        assert "expected no run in progress, found one in another process" in line
    held.kill()  # its file stays
    held.communicate()
    with locked(folder):
        assert (folder / ".run.lock").exists()


def test_a_run_in_a_folder_of_pictures_is_refused(failure, pictures):
    line = failure("train", pictures, "--batch-size", "2", "--out", pictures / "cat")
    assert "expected a separate folder for the run, found pictures in it" in line
    assert len(list((pictures / "cat").iterdir())) == 5


def test_a_run_below_its_data_is_no_class_of_it(pictures, capsys):
    """Neither before nor after it has written anything."""
    out = pictures / "run"
    out.mkdir()
    args = build_parser().parse_args(["train", str(pictures), "--out", str(out)])
    recipe = RECIPES["quick"]
    assert command.chosen_data(args, recipe).classes == ["cat", "dog"]
    write_run(out)
    args.out = None
    assert command.chosen_data(args, recipe).classes == ["cat", "dog"]


def named(classes: list[str]) -> SimpleNamespace:
    """What the choice of a network reads of a data set."""
    return SimpleNamespace(classes=classes)


def test_a_trained_head_is_put_in_the_order_of_the_folders(tmp_path):
    """A network whose file has its classes in another order: its rows follow the names."""
    path, names = tmp_path / "named.safetensors", sorted(map(str, range(1, 11)))
    model = load_model(NANO)
    model.settings = replace(model.settings, classes=tuple(names))
    save_model(model, path)
    args = build_parser().parse_args(["train", "x", "--weights", str(path)])
    classes = [str(i) for i in range(1, 11)]
    ordered = command.chosen_network(args, named(classes), RECIPES["finetune"])
    rows = dict(zip(names, read_tensors(NANO)["head.weight"], strict=True))
    expected = np.stack([rows[name] for name in classes])
    np.testing.assert_array_equal(ordered.head.weight.numpy(), expected)
    assert ordered.settings.classes == tuple(classes)
    others = [f"class {i}" for i in range(10)]  # as many, but others: a new head
    fresh = command.chosen_network(args, named(others), RECIPES["finetune"])
    assert not np.isin(fresh.head.weight.numpy(), expected).any()


def test_no_room_for_the_log_is_one_line_that_says_how_to_go_on(tmp_path):
    message = "expected room for the log, found No space left on device: the run is saved"
    with pytest.raises(ValueError, match=message), train_loop.room_for_the_log(tmp_path):
        raise OSError(28, "No space left on device")


def test_every_field_of_the_recipe_is_an_option():
    parser = build_parser()
    for name, kind, *_ in recipe_options():
        value = {"int": 64, "bool": True, "str": "float16"}.get(kind, 0.5)
        text = [] if kind == "bool" else [str(value)]
        option = f"--{name.replace('_', '-')}"
        args = parser.parse_args(["train", "digits", "--weights", NANO, option, *text])
        assert getattr(command.chosen_recipe(args), name) == value


def test_the_recipe_follows_the_data_and_the_options():
    def chosen(*arguments: str):
        return command.chosen_recipe(build_parser().parse_args(["train", *arguments]))

    assert chosen("digits") == RECIPES["digits"]
    assert chosen("shapes") == RECIPES["shapes"]
    assert chosen("cifar10") == RECIPES["quick"]
    assert chosen("fashion-mnist") == RECIPES["fashion-mnist"]
    assert chosen("fashion-mnist", "--weights", NANO) == RECIPES["finetune"]
    assert chosen("x", "--weights", NANO) == RECIPES["finetune"]
    assert chosen("x", "--weights", "digits") == RECIPES["finetune-small"]
    assert chosen("x", "--weights", NANO, "--head-only") == RECIPES["head"]
    assert chosen("x", "--weights", "digits", "--head-only") == RECIPES["head"]
    assert chosen("x", "--recipe", "published", "--mixup", "0") == replace(
        RECIPES["published"], mixup=0
    )


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        (["fashion-mnist"], (30, 60, 120, 120)),
        (["fashion-mnist", "--size", "32"], (30, 60, 120, 120)),
        (["fashion-mnist", "--model", "nano"], (20, 40, 80, 80)),
        (["digits"], (20, 40, 80, 80)),
        (["x"], (20, 40, 80, 80)),
    ],
)
def test_the_network_follows_the_data_unless_one_is_named(arguments, widths):
    args = build_parser().parse_args(["train", *arguments])
    network = command.chosen_network(args, named(["a", "b"]), RECIPES["quick"])
    nano = VARIANTS["groupmixformer_nano"]
    assert network.config == replace(nano, embedding_dims=widths, num_classes=2)


def test_a_trained_network_keeps_its_head_where_the_classes_agree():
    args = build_parser().parse_args(["train", "x", "--weights", NANO])
    before = read_tensors(NANO)["head.weight"]
    recipe = RECIPES["finetune"]
    same = command.chosen_network(args, named([*"abcdefghij"]), recipe)
    other = command.chosen_network(args, named([*"abc"]), recipe)
    np.testing.assert_array_equal(same.head.weight.numpy(), before)
    assert other.head.weight.shape == (3, before.shape[1])
    fresh = create_model("groupmixformer_nano", 3, seed=0)
    assert other.head.weight.numpy().std() == pytest.approx(fresh.head.weight.numpy().std(), rel=1)


def test_help_names_the_data_sets(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "cifar10 or fashion-mnist, which tinygrad fetches" in text
