"""Ablations: each differs from the published network in one thing, and can be trained."""

import argparse
import math
from dataclasses import replace

import numpy as np
import pytest
from parity import DATA, NANO_CONFIG
from strategies import normal
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from tinygmf import GroupMixAttention, GroupMixFormer, GroupMixFormerConfig, load_model
from tinygmf.commands import ablate
from tinygmf.commands.examples import EXAMPLES
from tinygmf.config import AttentionConfig
from tinygmf.engine.folded import FoldedGroupMixFormer
from tinygmf.gma import Pool, softmax_attention
from tinygmf.model import state_shapes
from tinygmf.study import ablation
from tinygmf.study.ablation import (
    ABLATIONS,
    TASKS,
    Outcome,
    chosen_ablations,
    format_outcome,
    load_outcomes,
    save_outcomes,
    side_by_side,
)
from tinygmf.study.held import held_weights
from tinygmf.study.observe import observe
from tinygmf.study.summary import summarize
from tinygmf.weights.checkpoint import load_state_dict, state_arrays

NANO = GroupMixFormerConfig(**NANO_CONFIG)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
each_ablation = pytest.mark.parametrize("name", ABLATIONS)


def network(name: str) -> GroupMixFormer:
    return GroupMixFormer(replace(NANO, attention=ABLATIONS[name]))


def parameters(model) -> dict[str, Tensor]:
    return {k: t for k, t in get_state_dict(model).items() if not k.endswith(STATISTICS)}


@each_ablation
def test_an_ablation_keeps_every_shape_outside(name):
    model = network(name)
    maps = model.forward_features(Tensor.empty(2, 3, 32, 64))
    assert [m.shape for m in maps] == [(2, 20, 8, 16), (2, 20, 4, 8), (2, 30, 2, 4), (2, 40, 1, 2)]
    assert model.forward_head(maps[-1]).shape == (2, 10)


@each_ablation
def test_every_weight_of_an_ablation_has_a_gradient(name):
    attention = GroupMixAttention(20, config=ABLATIONS[name])
    weights = list(parameters(attention).values())
    loss = attention(Tensor.empty(1, 16, 20), (4, 4)).square().sum()
    gradients = loss.gradient(*weights)  # raises for a weight that the loss does not depend on
    assert [g.shape for g in gradients] == [w.shape for w in weights]


@each_ablation
def test_the_summary_counts_the_parameters_of_an_ablation(name):
    model = network(name)
    counted = sum(row.parameters for row in summarize(model.config))
    assert counted == sum(math.prod(t.shape) for t in parameters(model).values())


def test_the_published_network_is_unchanged_by_the_choice():
    keys = list(get_state_dict(network("published")))
    assert sorted(keys) == sorted(get_state_dict(load_model(DATA / "nano.pth")))
    assert NANO.is_published_form
    assert not any(
        replace(NANO, attention=config).is_published_form
        for name, config in ABLATIONS.items()
        if name != "published"
    )


@pytest.mark.parametrize("kind", ["average", "maximum", "minimum"])
def test_a_pool_looks_at_the_places_inside_the_map(kind):
    x = normal(0, 2, 3, 5, 6)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    reduce = {"average": np.nanmean, "maximum": np.nanmax, "minimum": np.nanmin}[kind]
    found = Pool(kind, 3)(Tensor(x)).numpy()
    np.testing.assert_allclose(found, reduce(windows, axis=(4, 5)), rtol=1e-5, atol=1e-6)


def test_softmax_attention_is_the_textbook_one():
    q, k, v = (normal(seed, 1, 2, 9, 4) for seed in range(3))
    weights = np.exp(q @ k.transpose(0, 1, 3, 2) / 2)
    expected = weights / weights.sum(3, keepdims=True) @ v
    found = softmax_attention(Tensor(q), Tensor(k), Tensor(v)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["average", "maximum", "minimum"])
def test_the_gradient_of_a_pool_is_the_slope_of_its_output(kind):
    x, direction, weight = normal(0, 1, 1, 5, 5), 1e-3 * normal(1, 1, 1, 5, 5), normal(2, 5, 5)
    tokens = Tensor(x)
    slope = (Pool(kind, 3)(tokens) * Tensor(weight)).sum().gradient(tokens)[0].numpy()
    moved = Pool(kind, 3)(Tensor(np.concatenate([x - direction, x + direction]))).numpy()
    low, high = (moved[:, 0].astype(np.float64) * weight).sum((1, 2))
    assert (slope * direction).sum() == pytest.approx((high - low) / 2, rel=0.02)


@pytest.mark.slow
def test_the_gradient_of_an_ablation_is_the_slope_of_its_output():
    config = AttentionConfig("minimum", kernels=(1, 3, 3), non_attention=False, softmax=True)
    attention = GroupMixAttention(10, config=config)
    x, direction = normal(0, 1, 9, 10), 1e-2 * normal(1, 1, 9, 10)
    tokens = Tensor(x)
    moved = Tensor(np.concatenate([x - direction, x + direction]))
    slope = (attention(tokens, (3, 3)) * 100).sum().gradient(tokens)[0]
    outputs = 100 * attention(moved, (3, 3)).sum((1, 2))
    Tensor.realize(slope, outputs)
    low, high = outputs.numpy()
    assert (slope.numpy() * direction).sum() == pytest.approx((high - low) / 2, rel=0.02)


def test_plain_attention_of_the_ablation_knows_no_neighbors():
    names = {name for name, _ in GroupMixAttention(10, config=ABLATIONS["plain"]).named_modules()}
    assert not any("conv" in name or "crpe" in name for name in names)
    weights = parameters(GroupMixAttention(10, config=ABLATIONS["plain"]))
    assert sorted(weights) == ["proj.bias", "proj.weight", "qkv.bias", "qkv.weight"]


@pytest.mark.parametrize(
    "changes", [{"aggregator": "median"}, {"kernels": (3, 5)}, {"kernels": (2, 3, 5)}]
)
def test_an_ablation_that_cannot_be_is_a_one_line_error(changes):
    with pytest.raises(ValueError, match="expected") as error:
        AttentionConfig(**changes)
    assert "\n" not in str(error.value)


def test_what_needs_the_published_form_says_so_in_one_line():
    model = network("tokens")
    for call in (
        lambda: FoldedGroupMixFormer(model.config, state_arrays(model)),
        lambda: observe(model, np.zeros((1, 3, 32, 32))),
    ):
        with pytest.raises(ValueError, match="expected the published attention") as error:
            call()
        assert "\n" not in str(error.value)


def test_outcomes_are_saved_and_shown(tmp_path):
    outcome = Outcome("tokens", 1234, 5_600_000, (0.9, 0.94), 12.5)
    save_outcomes([outcome], tmp_path / "results.json")
    assert load_outcomes(tmp_path / "results.json") == [outcome]
    assert format_outcome(outcome).split() == [
        *("tokens", "1,234", "5.60M"),
        *("92.00%", "2.83%", "12.5"),
    ]
    pytest.importorskip("matplotlib")
    figure = ablation.draw_outcomes([outcome])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["tokens"]
    assert figure.axes[0].get_xlabel().startswith("top-1 on held-out pictures")


@pytest.mark.parametrize("options", [["nonsense"], ["--seeds", "0"], ["--chart", "a.gif"]])
def test_the_command_refuses_before_it_trains(options, capsys):
    parser = argparse.ArgumentParser()
    ablate.add_arguments(parser)
    with pytest.raises(ValueError) as error:
        ablate.run(parser.parse_args(options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", EXAMPLES["ablate"])
def test_the_examples_of_the_help_name_what_can_be_trained(words):
    parser = argparse.ArgumentParser()
    ablate.add_arguments(parser)
    args = parser.parse_args(words.split())
    assert set(args.names) <= set(chosen_ablations(TASKS[args.data], args.names))


@pytest.mark.parametrize("name", ["tokens", "kernels-3", "no-crpe"])
def test_an_ablation_by_weights_that_are_held_is_the_published_attention_with_these(name):
    part = "groupmixformer_backbone.0.gma_stage.0.att."
    whole = {part + k: a for k, a in state_arrays(GroupMixAttention(20)).items()}
    held = held_weights(ABLATIONS[name], {k: a.shape for k, a in whole.items()})
    arrays = {k.removeprefix(part): a for k, a in held.apply(whole).items()}
    published, smaller = GroupMixAttention(20), GroupMixAttention(20, config=ABLATIONS[name])
    load_state_dict(published, arrays)
    own = get_state_dict(smaller)
    load_state_dict(smaller, {k: middle(arrays[k], t.shape) for k, t in own.items()})
    x = Tensor(normal(0, 1, 16, 20))
    np.testing.assert_allclose(smaller(x, (4, 4)).numpy(), published(x, (4, 4)).numpy(), atol=1e-5)


def middle(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The middle of a kernel, of this shape."""
    rims = [(size - own) // 2 for size, own in zip(array.shape, shape, strict=True)]
    return array[tuple(slice(rim, rim + own) for rim, own in zip(rims, shape, strict=True))]


def test_what_is_held_is_nothing_else_of_the_network_and_makes_no_other_ablation():
    held = held_weights(ABLATIONS["no-position"], state_shapes(NANO))
    still = {name for name, free in held.free.items() if not free.all()}
    assert still == {n for n in held.free if ".cpe.proj." in n or ".crpe.conv_list." in n}
    assert not any(held.free[name].any() or held.values[name].any() for name in still)
    for name in ("softmax", "maximum", "no-branch", "kernels-5-7-9", "plain"):
        assert held_weights(ABLATIONS[name], state_shapes(NANO)) is None


def test_a_task_is_as_many_pictures_of_each_class_as_of_any_other():
    pytest.importorskip("skimage")
    task = TASKS["scenes-photograph"]
    data = task.open()
    assert data.counts.tolist() == [150] * 13
    assert len(data.train) == len(data.train_labels) == task.pictures
    assert data.load(data.train[0]).size == (96, 96)


def test_ablations_side_by_side_come_in_the_order_of_their_names():
    assert list(side_by_side(str.upper, ["a", "b", "c"], 2)) == ["A", "B", "C"]


@pytest.mark.slow
def test_an_ablation_learns_the_digits(capsys, tmp_path):
    pytest.importorskip("sklearn")
    parser = argparse.ArgumentParser()
    ablate.add_arguments(parser)
    options = ["no-position", "--epochs", "2", "--seeds", "1", "--device", "CPU"]
    path = tmp_path / "results.json"
    assert ablate.run(parser.parse_args([*options, "--json", str(path)])) == 0
    [outcome] = load_outcomes(path)
    assert outcome.accuracy > 0.3  # of ten classes; two epochs are no more than a warm-up
    assert format_outcome(outcome) in capsys.readouterr().out
    two = ["no-position", "no-crpe", *options[1:], "--jobs", "2", "--json", str(path)]
    assert ablate.run(parser.parse_args(two)) == 0
    first, _ = load_outcomes(path)
    assert first.accuracies == outcome.accuracies
