"""What `tinygmf train` says before it begins, and the settings it fits to the pictures."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from parity import DATA
from PIL import Image

from tinygmf.commands import train as command
from tinygmf.commands.main import build_parser
from tinygmf.commands.train_plan import fitted, tell_classes, tell_plan
from tinygmf.data.folders import folder_pictures
from tinygmf.model import create_model
from tinygmf.training.recipe import RECIPES
from tinygmf.weights.checkpoint import load_model, save_model


def write(folder: Path, side: int = 70, **counts: int) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (2 * side, side), (9 * i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


def chosen(data: Path, *options: str):
    args = build_parser().parse_args(["train", str(data), *options])
    return fitted(args, command.chosen_recipe(args), folder_pictures(data))


@pytest.mark.parametrize(("side", "size"), [(300, 64), (64, 64), (63, 32), (20, 32)])
def test_the_size_of_fresh_networks_follows_the_pictures(tmp_path, side, size):
    data = write(tmp_path / "data", side, cat=6, dog=6)
    assert chosen(data).size == size
    assert chosen(data, "--size", "96").size == 96
    assert chosen(data, "--recipe", "quick").size == RECIPES["quick"].size


@pytest.mark.parametrize("name", ["digits", "shapes", "fashion-mnist"])
def test_a_data_set_with_a_recipe_of_its_own_has_its_size(tmp_path, name):
    pictures = folder_pictures(write(tmp_path / "data", side=28, cat=80, dog=80))
    args = build_parser().parse_args(["train", name])
    assert fitted(args, command.chosen_recipe(args), pictures) == RECIPES[name]


def test_trained_weights_go_on_with_the_size_that_they_were_trained_on(tmp_path):
    data, named = write(tmp_path / "data", cat=6, dog=6), tmp_path / "named.safetensors"
    model = load_model(DATA / "nano.pth")
    model.settings = model.settings.__class__(image_size=48)
    save_model(model, named)
    assert chosen(data, "--weights", str(named)).size == 48
    assert chosen(data, "--weights", str(DATA / "nano.pth")).size == RECIPES["finetune"].size
    assert chosen(data, "--weights", "digits").size == 64


def test_fewer_pictures_than_a_batch_make_smaller_batches_and_it_is_said(tmp_path, capsys):
    data = write(tmp_path / "data", cat=10, dog=10)
    assert chosen(data).batch_size == 8
    assert (
        "16 pictures to train on, fewer than a batch of 64: batches of 8" in capsys.readouterr().err
    )
    assert chosen(data, "--batch-size", "64").batch_size == 64  # which is then refused
    assert chosen(data, "--batch-size", "4").batch_size == 4
    assert not capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--weights", str(DATA / "nano.pth")]])
def test_few_pictures_are_seen_so_often_that_there_are_steps_enough(tmp_path, options):
    few = chosen(write(tmp_path / "few", cat=10, dog=10), *options)
    assert few.epochs * (16 // few.batch_size) == 400
    many = chosen(write(tmp_path / "many", side=4, cat=900, dog=900), *options)
    assert many.epochs == RECIPES["finetune" if options else "quick"].epochs
    assert chosen(tmp_path / "few", *options, "--epochs", "3").epochs == 3


def test_a_class_of_one_picture_is_trained_on_and_named(tmp_path, capsys):
    data = folder_pictures(write(tmp_path / "data", cat=5, dog=20, zebra=1))
    data.check(8)
    assert data.counts.tolist() == [4, 16, 1]
    tell_classes(data)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "no picture is held out of zebra: accuracy does not cover them"
    assert said[1].startswith("classes are unbalanced: 1 of zebra to train on, 16 of dog")


def test_classes_of_like_numbers_are_not_remarked_on(tmp_path, capsys):
    tell_classes(folder_pictures(write(tmp_path / "data", cat=10, dog=20)))
    assert not capsys.readouterr().err


def test_one_line_says_what_is_about_to_happen(tmp_path, capsys, monkeypatch):
    folder = write(tmp_path / "data", cat=10, dog=10)
    monkeypatch.setattr("tinygmf.data.pictures.picture_suffixes", lambda: {".png"})  # no HEIC
    for i in range(3):
        (folder / "cat" / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypxxxx")
    data, model = folder_pictures(folder), create_model("nano", 2)
    assert "in HEIC, readable after pip install pillow-heif (3: IMG_0.HEIC" in str(data.skipped)
    tell_plan(model, data, RECIPES["quick"], ("CUDA:0", "CUDA:1"), Path("runs/data"))
    assert capsys.readouterr().err == (
        "2 classes, 16 pictures to train on, 4 held out, 3 skipped (.heic); nano, 32x32, "
        "20 epochs in batches of 64, CUDA:0, CUDA:1; to runs/data\n"
    )


def test_the_plan_of_a_dense_network_names_its_backbone(capsys):
    backbone = create_model("miny", 3).config
    model = SimpleNamespace(config=SimpleNamespace(backbone=backbone))
    data = SimpleNamespace(classes=["a", "b"], train=np.zeros(7), val=np.zeros(2))
    tell_plan(model, data, RECIPES["quick"], "CPU", Path("out"))
    assert "7 pictures to train on, 2 held out; miny, 32x32" in capsys.readouterr().err
