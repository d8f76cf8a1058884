"""Nothing grows, and the same seed gives the same bits."""

import hashlib
import subprocess
import sys
from pathlib import Path

import long_run
import numpy as np
import pytest
from process import call, environment
from tinygrad.nn.state import get_state_dict

from tinygmf import GroupMixFormer
from tinygmf.config import VARIANTS
from tinygmf.engine.predictor import Predictor
from tinygmf.model import create_model
from tinygmf.training.recipe import Recipe
from tinygmf.training.trainer import Trainer

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def growth(**counts: int) -> subprocess.CompletedProcess[str]:
    """The tool in its own process: this one holds what other tests left."""
    options = [f"--{name}={count}" for name, count in counts.items()]
    command = [sys.executable, long_run.__file__, *options, "--device=CPU"]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@needs_proc
@pytest.mark.parametrize("predictions", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_predictions_leave_memory_and_open_files_as_they_were(predictions):
    done = growth(predictions=predictions, steps=0)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_proc
def test_training_leaves_memory_and_open_files_as_they_were():
    done = growth(predictions=500, steps=2000)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_runs_of_one_seed_end_with_the_same_weights_bit_by_bit(tmp_path):
    """One of them in another process, which compiles everything anew."""
    done = call(print_trained, env=environment(XDG_CACHE_HOME=str(tmp_path)))
    assert done.stdout == trained(), done.stderr


def print_trained() -> None:
    sys.stdout.write(trained())


def trained() -> str:
    """A digest of the network after three steps with everything that is random in the recipe."""
    data = long_run.small_shapes(32, 12)
    recipe = Recipe(epochs=1, batch_size=4, size=32, warmup_epochs=0, learning_rate=0.05, seed=3)
    model = create_model("groupmixformer_nano", len(data.classes), seed=3)
    trainer = Trainer(model, data, recipe, "CPU", progress=False)
    trainer.run_epoch()
    state = trainer.finish()
    digest = hashlib.sha256()
    for tensor in get_state_dict(state).values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    config = VARIANTS["groupmixformer_nano"]
    first, again, other = (
        {key: tensor.numpy() for key, tensor in get_state_dict(GroupMixFormer(config, s)).items()}
        for s in (0, 0, 1)
    )
    assert all(first[key].tobytes() == again[key].tobytes() for key in first)
    assert any(first[key].tobytes() != other[key].tobytes() for key in first)


def test_another_process_gives_the_same_logits_bit_by_bit(tmp_path):
    """It compiles anew: its cache is empty."""
    done = call(print_logits, env=environment(XDG_CACHE_HOME=str(tmp_path)))
    assert done.stdout == logits().tobytes().hex(), done.stderr


def print_logits() -> None:
    sys.stdout.write(logits().tobytes().hex())


def logits() -> np.ndarray:
    picture = np.random.default_rng(0).standard_normal((3, 32, 32), dtype=np.float32)
    model = GroupMixFormer(VARIANTS["groupmixformer_nano"], seed=0)
    return Predictor(model, 32, device="CPU", progress=False)(picture)
