"""The training loop: reproducible, resumable, and clear about what is wrong."""

import contextlib
import math
import os
import random
import signal
import subprocess
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import process
import pytest
from parity import DATA
from tinygrad import Context, Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from tinygmf.commands import train as command
from tinygmf.commands import train_loop
from tinygmf.commands.run_folder import BEST
from tinygmf.data.dataset import Dataset
from tinygmf.data.shapes import shapes
from tinygmf.gma import Aggregator, NonAttentionBranch
from tinygmf.layers import Module, record_statistics
from tinygmf.model import PatchEmbedLayer, create_model
from tinygmf.study.lowering import kernels
from tinygmf.training import run_file
from tinygmf.training.gradient import compile_part
from tinygmf.training.recipe import Recipe
from tinygmf.training.run_file import (
    PATIENT,
    Run,
    best_epoch,
    has_ended,
    load_run,
    read_about,
    save_run,
)
from tinygmf.training.state import Devices, place
from tinygmf.training.trainer import Trainer, TrainingError
from tinygmf.weights import checkpoint
from tinygmf.weights.checkpoint import (
    CheckpointError,
    load_model,
    load_weights,
    read_tensors,
    state_arrays,
)

# The network, batch and size of the parity tests: all tests share one compiled program.
RECIPE = Recipe(
    epochs=2, batch_size=4, size=64, warmup_epochs=0, learning_rate=0.05, crop=1, ema=0.5
)

needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


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


def run_in_folder(folder: Path, recipe: Recipe = RECIPE, pause: float = math.inf) -> None:
    """What `tinygmf train --out FOLDER --resume` does, with the tests' network."""
    running = trainer(recipe)
    running.pause = pause
    if (folder / command.RUN).exists():
        running.restore(load_run(folder / command.RUN))
    with train_loop.stopping(running):
        assert train_loop.train(running, folder) or running.stop


def watched_run(folder: str, epochs: str, die: str = "0") -> None:
    """`run_in_folder`, saving after every step. Prints a line at the beginning of each step and in
    the middle of each write of the run; in the middle of write number `die` it kills itself."""
    step, whole, writes = Trainer.run_step, checkpoint.replacing, count(1)

    def telling_step(*arguments):
        print("step", flush=True)
        return step(*arguments)

    @contextlib.contextmanager
    def telling_write(path):
        with whole(path) as file:
            middle = MiddleOfWriting(file, kill=next(writes) == int(die))
            yield middle

    Trainer.run_step, checkpoint.replacing = telling_step, telling_write
    run_in_folder(Path(folder), replace(RECIPE, epochs=int(epochs)), pause=0)


class MiddleOfWriting:
    """A file that tells, or kills the process, when something has been written but not all."""

    def __init__(self, file, kill: bool) -> None:
        self.file, self.kill, self.calls = file, kill, count(1)

    def write(self, content) -> None:
        if next(self.calls) == 3:
            self.file.flush()
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            print("write", flush=True)
        self.file.write(content)


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    line = process.command(watched_run, folder, *arguments)
    return subprocess.Popen(line, env=process.environment(), stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_in_folder(folder)
    return folder / command.RUN


def assert_same_run(found: Path, expected: Path) -> None:
    ours, theirs = read_tensors(found), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    mine, other = (read_about(path)["reports"] for path in (found, expected))
    assert [row[:6] for row in mine] == [row[:6] for row in other]  # all but speed and time


def test_a_run_interrupted_within_an_epoch_ends_with_the_same_weights(tmp_path, uninterrupted):
    first = trainer()
    first.stop = True
    assert not train_loop.train(first, tmp_path)
    assert first.step == 1
    run_in_folder(tmp_path)
    assert_same_run(tmp_path / command.RUN, uninterrupted)


@needs_sigkill
def test_a_run_killed_in_the_middle_of_writing_ends_with_the_same_weights(tmp_path, uninterrupted):
    assert start(tmp_path, RECIPE.epochs, 4).wait() == -signal.SIGKILL  # of network, run, …
    assert len(list(tmp_path.glob(".*.tmp"))) == 1  # half of the second checkpoint
    assert read_about(tmp_path / command.RUN)["step"] == 1
    run_in_folder(tmp_path)
    assert_same_run(tmp_path / command.RUN, uninterrupted)
    assert not list(tmp_path.glob(".*.tmp"))


@needs_sigkill
@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    epochs, chance = 12, random.Random(0)
    for life in range(10):
        running = start(tmp_path / "killed", epochs)
        event, wanted = ("step", "write")[life % 2], chance.randint(1, 3)
        assert running.stdout is not None
        told = (line for line in running.stdout if line.strip() == event)
        assert len(list(islice(told, wanted))) == wanted  # it trains, or writes, at this moment
        running.kill()
        assert running.wait() == -signal.SIGKILL
    run_in_folder(tmp_path / "killed", replace(RECIPE, epochs=epochs))
    run_in_folder(tmp_path / "whole", replace(RECIPE, epochs=epochs))
    assert_same_run(tmp_path / "killed" / command.RUN, tmp_path / "whole" / command.RUN)


@pytest.mark.parametrize("head_only", [False, True])
def test_pauses_change_nothing_but_how_often_the_run_is_saved(tmp_path, monkeypatch, head_only):
    recipe, saved = replace(RECIPE, head_only=head_only), []
    monkeypatch.setattr(train_loop, "save", lambda trainer, *_, **__: saved.append(trainer.step))
    ends = []
    for pause in (math.inf, 0):
        running = trainer(recipe)
        running.pause = pause
        assert train_loop.train(running, tmp_path)
        ends.append((running.numbers.network(), [report.loss for report in running.reports]))
    assert saved == [3, 6, 1, 2, 3, 4, 5, 6]
    (whole, losses), (paused, again) = ends
    assert losses == again
    for name in whole:
        np.testing.assert_array_equal(whole[name], paused[name], err_msg=name)


def test_the_head_alone_moves_nothing_else_whatever_is_averaged():
    running = trainer(replace(RECIPE, head_only=True, ema=0.9, epochs=1))
    before = {name: array.copy() for name, array in state_arrays(running.model).items()}
    running.run_epoch()
    after = state_arrays(running.finish())
    changed = {name for name in before if (after[name] != before[name]).any()}
    assert changed == {"head.weight", "head.bias"}


def test_ctrl_c_ends_training_after_the_present_step(tmp_path):
    running = trainer()
    with train_loop.stopping(running):
        signal.raise_signal(signal.SIGINT)  # its handler has run when this returns
        assert not train_loop.train(running, tmp_path)
    assert running.step == 1
    assert (tmp_path / command.RUN).exists()


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_checkpoint(tmp_path):
    running = trainer()
    save_run(tmp_path / command.RUN, running.state())
    before = (tmp_path / command.RUN).read_bytes()
    running.numbers["weights"].assign(running.numbers["weights"] * math.nan).realize()
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        train_loop.train(running, tmp_path)
    assert (tmp_path / command.RUN).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    running = trainer()
    save_run(tmp_path / command.RUN, running.state())
    before = (tmp_path / command.RUN).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        save_run(tmp_path / command.RUN, running.state())
    assert (tmp_path / command.RUN).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [command.RUN]


def rows(*figures: float, steps: int = PATIENT) -> list[list[float]]:
    """The reports of epochs of so many steps with these figures."""
    return [[epoch, steps * epoch, 0, 0, figure] for epoch, figure in enumerate(figures, 1)]


def test_the_best_epoch_is_the_last_that_no_other_exceeds():
    assert [best_epoch(rows(*figures)) for figures in ((), (0.5,), (0.5, 0.9, 0.7, 0.9, 0.1))] == [
        *(0, 1, 4)
    ]


def test_a_run_ends_with_its_steps_or_its_patience():
    def ended(step: int, patience: int | None, *figures: float) -> bool:
        recipe = {} if patience is None else {"patience": patience}
        return has_ended({"recipe": recipe, "step": step, "steps": 9, "reports": rows(*figures)})

    assert ended(9, None) and not ended(8, None)
    assert ended(4, 2, 0.5, 0.9, 0.9, 0.9) and not ended(4, 2, 0.5, 0.9, 0.9)
    assert not ended(4, 0, 0.9, 0.1, 0.1, 0.1)


def test_patience_waits_a_hundred_steps_however_short_the_epochs_are():
    def ended(epochs: int) -> bool:
        reports = rows(0.2, *[0.1] * epochs, steps=2)
        return has_ended({"recipe": {"patience": 3}, "step": 4, "steps": 900, "reports": reports})

    assert not ended(49) and ended(50)


def test_patience_ends_a_run_before_its_last_epoch_and_the_best_network_is_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run_file, "PATIENT", 1)
    running = trainer(replace(RECIPE, epochs=9, patience=2, head_only=True))
    figures, seen = iter([0.2, 0.5, 0.4, 0.5, 0.1]), []

    def evaluate() -> tuple[float, float]:
        seen.append(running.arrays()["head.weight"])
        return next(figures), 1.0

    monkeypatch.setattr(running, "evaluate", evaluate)
    assert train_loop.train(running, tmp_path)
    assert len(seen) == 4
    best, last = (read_tensors(tmp_path / name) for name in (BEST, command.WEIGHTS))
    np.testing.assert_array_equal(best["head.weight"], seen[3])
    assert (best["head.weight"] == last["head.weight"]).all() and next(figures) == 0.1


def test_a_run_that_was_stopped_has_the_network_of_its_last_step(tmp_path):
    running = trainer(replace(RECIPE, head_only=True, centre=0.9))
    running.stop = True
    assert not train_loop.train(running, tmp_path)
    expected = running.arrays()["head.weight"]
    for named in (tmp_path, tmp_path / command.RUN, tmp_path / command.WEIGHTS):
        found = load_weights(named)
        np.testing.assert_array_equal(found.arrays["head.weight"], expected)
        assert (found.settings.image_size, found.settings.crop) == (RECIPE.size, 0.9)
    assert not (tmp_path / BEST).exists()  # nothing was measured yet


def test_a_finished_run_made_longer_goes_on_by_the_longer_schedule(tmp_path):
    short, long = (replace(RECIPE, epochs=n, head_only=True) for n in (1, 2))
    running = trainer(short)
    assert train_loop.train(running, tmp_path)
    longer = trainer(long)
    longer.restore(load_run(tmp_path / command.RUN))
    assert running.ended and not longer.ended and longer.step == running.step
    assert train_loop.train(longer, tmp_path)
    assert [row["epoch"] for row in train_loop.rows(longer)] == [1, 2]
    rate = long.rate(longer.steps - 1, longer.steps_per_epoch)
    assert longer.reports[-1].learning_rate == rate


def test_resuming_with_other_options_names_them():
    other = trainer().state()
    other.about["recipe"]["seed"] = 7
    with pytest.raises(ValueError, match="options of the run to resume: --seed 7"):
        trainer().restore(other)


def test_a_run_of_another_network_changes_nothing():
    running, before = trainer(), trainer().numbers.read()
    other = Run({**before, "weights": before["weights"][:16]}, running.state().about)
    with pytest.raises(ValueError, match="the run: expected a run of this network"):
        running.restore(other)
    for name, array in running.numbers.read().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_weights_are_not_a_run():
    with pytest.raises(CheckpointError, match="expected a run, found only weights"):
        load_run(DATA / "nano.pth")


def test_the_averages_follow_the_weights_and_the_statistics(uninterrupted):
    arrays = read_tensors(uninterrupted)
    assert 0 < np.abs(arrays["average"] - arrays["weights"]).max() < 0.1
    assert 0 < np.abs(arrays["average_statistics"] - arrays["statistics"]).max() < 1
    assert not arrays["gradient"].any()


def test_the_result_is_the_averaged_weights_with_the_averaged_statistics():
    running = trainer(replace(RECIPE, ema=0.9, epochs=1))
    running.run_epoch()
    numbers, result = running.numbers, running.arrays()
    for name in ("average", "average_statistics"):
        pieces = numbers.layout.weights if name == "average" else numbers.layout.statistics
        for entry, array in pieces.split(numbers[name].numpy()).items():
            np.testing.assert_array_equal(result[entry], array, err_msg=entry)
    running = trainer(replace(RECIPE, ema=0.0, epochs=1))
    running.run_epoch()
    result = running.arrays()
    for entry, array in running.numbers.network().items():
        np.testing.assert_array_equal(result[entry], array, err_msg=entry)


def test_accumulating_two_batches_makes_half_the_steps():
    running = trainer(replace(RECIPE, accumulate=2))
    assert running.steps_per_epoch == 1
    assert running.run_epoch().step == 1


def test_the_log_has_a_line_for_each_epoch(uninterrupted):
    lines = (uninterrupted.parent / "log.csv").read_text().splitlines()
    assert len((uninterrupted.parent / "log.jsonl").read_text().splitlines()) == 2
    assert lines[0].startswith("epoch,step,loss,learning_rate,top1,top5")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]


def test_a_step_that_float16_cannot_hold_is_left_out_and_the_next_scaled_lower():
    running = trainer(replace(RECIPE, dtype="float16"))
    before, scale = running.numbers["weights"].numpy().copy(), running.scale
    running.numbers["gradient"].assign(running.numbers["gradient"] + math.inf).realize()
    batches = running.data.batches(running.recipe, 0)
    running.run_step(batches, rate=1e-3)
    np.testing.assert_array_equal(running.numbers["weights"].numpy(), before)
    assert running.scale == scale / 2
    running.run_step(batches, rate=1e-3)
    assert (running.numbers["weights"].numpy() != before).any()
    assert running.scale == scale / 2


@pytest.mark.slow
def test_two_devices_train_like_one(tmp_path):
    one, two = (
        Trainer(load_model(DATA / "nano.pth", "CPU"), small_shapes(), RECIPE, device, False)
        for device in ("CPU", ("CPU:0", "CPU:1"))
    )
    for _ in range(2):  # the weights may differ where a gradient is only rounding
        assert one.run_epoch().loss == pytest.approx(two.run_epoch().loss, rel=1e-3)
    save_run(tmp_path / "run.safetensors", two.state())
    one.restore(load_run(tmp_path / "run.safetensors"))
    assert one.step == two.step


def test_dropout_is_refused_before_anything_is_compiled():
    model = create_model("groupmixformer_nano", 10, drop_rate=0.1)
    with pytest.raises(ValueError, match=r"drop_rate: expected 0 in training, found 0.1"):
        Trainer(model, small_shapes(), RECIPE, "CPU", progress=False)


def test_devices_share_a_batch_evenly():
    recipe = replace(RECIPE, batch_size=3)
    with pytest.raises(ValueError, match=r"--batch-size: expected a multiple of 2, .* found 3"):
        Trainer(load_model(DATA / "nano.pth"), small_shapes(), recipe, ("CPU:0", "CPU:1"), False)


def test_a_part_in_float16_reads_its_kept_values_as_float16():
    """Four channels in a row are a picture to tinygrad, and pictures are float32."""
    branch = NonAttentionBranch(None, 4)
    for conv in (branch.conv.conv1, branch.conv.pointwise_conv):
        conv.weight.replace(conv.weight.cast(dtypes.half))
    x = Tensor.empty(2, 12, 4, 4, dtype=dtypes.half)
    with Context(TRAINING=1, SPEC=1):  # tinygrad's own check of every type
        output, _ = compile_part(lambda x: branch(x).flatten(1), [branch], x)
        [gradient] = output.float().square().sum().gradient(branch.norm.weight)
        calls = kernels(output, gradient)
    assert any(node.dtype == dtypes.half for call in calls for node in call.src[0].toposort())


def embedding_and_gradients(devices: Devices) -> dict[str, np.ndarray]:
    """What a patch embedding makes of four maps, the gradient of its weights, its statistics."""
    embed = PatchEmbedLayer(np.random.default_rng(0), 4, 6, stride=2)
    weights = {n: t for n, t in get_state_dict(embed).items() if t.ndim and "running" not in n}
    share(embed, devices)
    x = np.random.default_rng(1).standard_normal((4, 4, 6, 6)).astype(np.float32)
    with Context(TRAINING=1):
        y, [statistics] = compile_part(lambda x: embed(x)[0], [embed], place(x, devices, axis=0))
        gradients = y.square().sum().gradient(*weights.values())
    found = dict(zip(weights, gradients, strict=True)) | {"output": y}
    return numbers(found | {"mean": statistics[1], "variance": statistics[2]})


def aggregated(devices: Devices) -> dict[str, np.ndarray]:
    """Groups of query, key and value, which lie in front of the batch."""
    aggregator = Aggregator(np.random.default_rng(0), 10)
    share(aggregator, devices)
    qkv = np.random.default_rng(1).standard_normal((3, 4, 9, 10)).astype(np.float32)
    with Context(TRAINING=1), record_statistics():
        mixed, untouched = aggregator(place(qkv, devices, axis=1), (3, 3))
    return numbers({"mixed": mixed, "untouched": untouched})


def share(module: Module, devices: Devices) -> None:
    if isinstance(devices, tuple):
        for tensor in get_state_dict(module).values():
            tensor.shard_(devices)


def numbers(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    Tensor.realize(*tensors.values())
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("compute", [embedding_and_gradients, aggregated])
def test_two_devices_compute_what_one_does_and_batchnorm_sees_the_whole_batch(compute):
    one, two = compute("CPU"), compute(("CPU:0", "CPU:1"))
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, atol=2e-5 * np.abs(array).max(), err_msg=name)
