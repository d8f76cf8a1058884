"""The training loop: reproducible, resumable, and clear about what is wrong."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity import DATA
from PIL import Image

from tinygmf.checkpoint import CheckpointError, load_model, read_tensors
from tinygmf.image import ImageError
from tinygmf.training import DataError, Dataset, Recipe, Trainer, TrainingError, command, shapes
from tinygmf.training.checkpoints import load_run, save_run

# The network, batch and size of the parity tests: all tests share one compiled program.
RECIPE = Recipe(
    epochs=2, batch_size=4, size=64, warmup_epochs=0, learning_rate=0.05, crop=1, ema=0.5
)
SCRIPT = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import test_training
test_training.run_in_folder(Path(sys.argv[1]))
"""


def small_shapes() -> Dataset:
    """Twelve pictures to train on, ten to validate on."""
    data = shapes(64)
    return replace(
        data,
        train=data.train[:12],
        train_labels=data.train_labels[:12],
        val=data.val[:10],
        val_labels=data.val_labels[:10],
    )


def trainer(recipe: Recipe = RECIPE, data: Dataset | None = None) -> Trainer:
    model = load_model(DATA / "nano.pth", "CPU")
    return Trainer(model, data or small_shapes(), recipe, "CPU", progress=False)


def run_in_folder(folder: Path) -> None:
    """What `tinygmf train --out FOLDER --resume` does, with the tests' network."""
    running = trainer()
    rows = command.resume(running, folder) if (folder / command.RUN).exists() else []
    with command.stopping(running):
        finished = command.train(running, folder, rows)
    print("finished" if finished else f"stopped {running.step}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_in_folder(folder)
    return folder / command.RUN


def assert_same_run(found: Path, expected: Path) -> None:
    ours, theirs = read_tensors(found), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name != "about":
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_run_interrupted_within_an_epoch_ends_with_the_same_weights(tmp_path, uninterrupted):
    first = trainer()
    first.stop = True
    assert not command.train(first, tmp_path, [])
    assert first.step == 1
    run_in_folder(tmp_path)
    assert_same_run(tmp_path / command.RUN, uninterrupted)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path, uninterrupted):
    chance = random.Random(0)
    for patience in (*(chance.uniform(5, 25) for _ in range(4)), None):  # the last one may finish
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path])
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert_same_run(tmp_path / command.RUN, uninterrupted)


def test_ctrl_c_ends_training_after_the_present_step(tmp_path):
    running = trainer()
    with command.stopping(running):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert not command.train(running, tmp_path, [])
    assert running.step == 1
    assert (tmp_path / command.RUN).exists()


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_checkpoint(tmp_path):
    running = trainer()
    save_run(tmp_path / command.RUN, running.state, 0, {})
    before = (tmp_path / command.RUN).read_bytes()
    running.state["weights"].assign(running.state["weights"] * math.nan).realize()
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        command.train(running, tmp_path, [])
    assert (tmp_path / command.RUN).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    running = trainer()
    save_run(tmp_path / command.RUN, running.state, 0, {})
    before = (tmp_path / command.RUN).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        save_run(tmp_path / command.RUN, running.state, 1, {})
    assert (tmp_path / command.RUN).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [command.RUN]


def test_resuming_with_other_options_names_them(tmp_path):
    running = trainer()
    about = {"recipe": {**vars(RECIPE), "seed": 7}, "rows": []}
    save_run(tmp_path / command.RUN, running.state, 1, about)
    with pytest.raises(ValueError, match="options of the run to resume: --seed 7"):
        command.resume(running, tmp_path)


def test_weights_are_not_a_run(uninterrupted):
    with pytest.raises(CheckpointError, match="expected a run of this very network"):
        load_run(DATA / "nano.pth", trainer().state)


def test_the_average_follows_the_weights(uninterrupted):
    arrays = read_tensors(uninterrupted)
    assert 0 < np.abs(arrays["average"] - arrays["weights"]).max() < 0.1
    assert not arrays["gradient"].any()


def test_accumulating_two_batches_makes_half_the_steps():
    running = trainer(replace(RECIPE, accumulate=2))
    assert running.steps_per_epoch == 1
    assert running.run_epoch().step == 1


def test_the_log_has_a_line_for_each_epoch(uninterrupted):
    lines = (uninterrupted.parent / "log.csv").read_text().splitlines()
    assert len((uninterrupted.parent / "log.jsonl").read_text().splitlines()) == 2
    assert lines[0].startswith("epoch,step,loss,learning_rate,top1,top5")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]


def test_a_broken_picture_is_named_and_passed_over():
    def load(number: int) -> Image.Image:
        if number == 3:
            raise ImageError("3.jpg: broken")
        return Image.new("RGB", (64, 64))

    data = replace(small_shapes(), load=load)
    assert len(list(data.batches(RECIPE, epoch=0))) == 3
    assert data.broken == {"3": "3.jpg: broken"}


def write_pictures(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 10}, "expected at least two classes"),
        ({"cat": 10, "dog": 0}, "found none of 'dog'"),
        ({"cat": 2, "dog": 2}, "at least one batch of 64"),
        ({}, "expected one folder for each class"),
    ],
)
def test_too_little_data_is_one_clear_line(tmp_path, counts, message):
    from tinygmf.training import folder_pictures

    write_pictures(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        folder_pictures(tmp_path).check(batch_size=64)


def test_a_folder_is_split_by_its_seed_class_by_class(tmp_path):
    from tinygmf.training import folder_pictures

    write_pictures(tmp_path, {"cat": 10, "dog": 20})
    data = folder_pictures(tmp_path, seed=1)
    assert data.classes == ["cat", "dog"]
    assert np.bincount(data.val_labels).tolist() == [2, 4]
    assert not set(data.train) & set(data.val)
    assert data.val == folder_pictures(tmp_path, seed=1).val
    assert data.val != folder_pictures(tmp_path, seed=2).val
