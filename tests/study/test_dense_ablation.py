"""A segmentation network whose backbone is an ablation: trained as the published form with weights
held, it is the ablated network."""

import argparse
import math
from dataclasses import replace

import numpy as np
import pytest
from dense_case import network
from strategies import normal
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf import create_model
from tinygmf.commands import ablate
from tinygmf.config import VARIANTS, AttentionConfig
from tinygmf.dense.segmenter import Segmenter
from tinygmf.study.ablation import ABLATIONS, TASKS, load_outcomes, save_outcomes, train_ablation
from tinygmf.study.held import held_weights
from tinygmf.study.summary import BUFFERS
from tinygmf.training import dense_networks
from tinygmf.training.dense_gradient import SegmentationGradient
from tinygmf.training.dense_state import DenseState
from tinygmf.weights.checkpoint import load_state_dict, state_arrays

pytest.importorskip("skimage")

TASK = TASKS["scenes-segment"]
TOKENS = ABLATIONS["tokens"]
BACKBONE = VARIANTS["groupmixformer_nano"]
PREFIX = SegmentationGradient.prefix


def test_of_a_dense_network_the_groups_alone_stop_learning():
    model = network("semantic_fpn")
    arrays = state_arrays(model)
    state = DenseState(model, arrays, "CPU", PREFIX)
    held_weights(TOKENS, {name: a.shape for name, a in arrays.items()}).stop(state)
    rates = state.layout.weights.split(state["rates"].numpy())
    groups = {f".agg{i}.{part}." for i in (1, 2, 3) for part in ("conv1", "pointwise_conv")}
    still = {name for name in rates if any(group in name for group in groups)}
    assert len(still) == 6 * sum(model.config.backbone.serial_depths)
    assert all((rate == (name not in still)).all() for name, rate in rates.items())


def test_an_ablation_that_no_held_weights_make_is_refused_before_anything_is_trained():
    parser = argparse.ArgumentParser()
    ablate.add_arguments(parser)
    options = ["published", "softmax", "--data", "scenes-segment"]
    expected = "expected published, tokens, .*, found 'softmax': the others can only be trained to"
    with pytest.raises(ValueError, match=expected) as error:
        ablate.run(parser.parse_args(options))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="published form with weights held"):
        TASK.bench(replace(BACKBONE, attention=AttentionConfig(softmax=True)), TASK.open(), "CPU")


class Known:
    """A task whose networks are already trained."""

    measure, costs = TASK.measure, (1234, 5600)

    def bench(self, *_):
        return self

    def run(self, seed, tick):
        return seed / 10, {"circle": seed / 5, "ring": 0.0}


def test_an_outcome_has_what_is_measured_of_each_class_for_each_seed(tmp_path):
    data = TASK.open()
    outcome = train_ablation(BACKBONE, Known(), data, (1, 2), "CPU", lambda: None, "tokens")
    assert outcome.accuracies == (0.1, 0.2) and outcome.measure == "mean IoU"
    assert outcome.by_class == {"circle": (0.2, 0.4), "ring": (0.0, 0.0)}
    save_outcomes([outcome], tmp_path / "results.json")
    assert load_outcomes(tmp_path / "results.json") == [outcome]


@pytest.mark.slow
def test_a_trained_network_with_weights_held_is_the_ablated_network(monkeypatch):
    monkeypatch.setattr(dense_networks, "NARROW", 10)  # the network of test_dense_trainer
    data, backbone = TASK.open(), replace(BACKBONE, attention=TOKENS)
    data.train, data.val = data.train[:32], data.val[:4]
    recipe = replace(TASK.recipe, size=64, batch_size=4, epochs=1, warmup_steps=4)
    bench = replace(TASK, recipe=recipe).bench(backbone, data, "CPU")
    score, _ = bench.run(1, lambda: None)
    trained, fresh = bench.trainer.arrays(), bench.fresh(1)
    for name, free in bench.held.free.items():
        if not free.all():
            assert not free.any() and np.array_equal(trained[name], bench.held.values[name]), name
        elif name.endswith(".weight"):
            assert not np.array_equal(trained[name], fresh[name]), name
    options = dense_networks.head_options("semantic_fpn", None, small=True)
    ablated = create_model("semantic_fpn", len(data.classes), backbone=backbone, **options)
    own = {name: tuple(map(int, t.shape)) for name, t in get_state_dict(ablated).items()}
    weights = [math.prod(shape) for name, shape in own.items() if not name.endswith(BUFFERS)]
    assert bench.costs[0] == sum(weights)
    load_state_dict(ablated, {name: trained[name] for name in own})
    picture = normal(0, 1, 3, 64, 64)
    measured = Segmenter(bench.trainer.finish(), device="CPU")._run("logits", picture)
    expected = ablated(Tensor(picture)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    assert bench.run(1, lambda: None)[0] == score  # whatever was trained before
