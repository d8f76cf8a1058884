"""Training a dense network: it learns, stops and resumes exactly, and its file loads."""

from dataclasses import replace

import numpy as np
import pytest

from tinygmf.data.scenes import scenes
from tinygmf.dense.networks import create_model, load_model
from tinygmf.training.dense_networks import head_options, named
from tinygmf.training.dense_recipe import SCENES
from tinygmf.training.dense_trainer import DenseTrainer
from tinygmf.weights.checkpoint import save_model

TASKS = {"semantic_fpn": "segment", "retinanet": "detect", "maskrcnn": "instance"}
RECIPE = replace(SCENES, size=64, batch_size=4, epochs=4, warmup_steps=4, learning_rate=3e-3)

pytestmark = pytest.mark.slow


def trainer(head: str) -> DenseTrainer:
    data = scenes(TASKS[head])
    data.train, data.val = data.train[:32], data.val[:4]
    model = create_model(head, len(data.classes), **head_options(head, 10, small=True))
    return DenseTrainer(named(model, data.classes, RECIPE.size), data, RECIPE, "CPU", False)


@pytest.mark.parametrize("head", TASKS)
def test_the_loss_falls_and_the_network_can_be_saved_and_measured(head, tmp_path):
    run = trainer(head)
    reports = [run.run_epoch() for _ in range(RECIPE.epochs)]
    assert reports[-1].loss < 0.9 * reports[0].loss
    save_model(run.finish(), tmp_path / "network.safetensors")
    loaded = load_model(tmp_path / "network.safetensors")
    assert loaded.settings == run.model.settings and loaded.config == run.model.config


def test_a_run_goes_on_as_if_it_had_not_stopped():
    whole = trainer("semantic_fpn")
    whole.run_epoch()
    stopped = trainer("semantic_fpn")
    stopped.stop = True
    assert stopped.run_epoch() is None  # after one step
    later = trainer("semantic_fpn")
    later.restore(stopped.state())
    later.run_epoch()
    one, two = (run.numbers.read() for run in (whole, later))
    for name in whole.numbers.CHANGING:
        assert np.array_equal(one[name], two[name]), name
