"""Recipes of dense networks: their rates, their bounds, and the networks that they begin with."""

from dataclasses import replace

import numpy as np
import pytest

from tinygmf.config import VARIANTS
from tinygmf.dense.networks import create_model
from tinygmf.training.dense_networks import SCENES, head_options, named
from tinygmf.training.dense_recipe import ON_SCENES, RECIPES, DenseRecipe, recipe_options
from tinygmf.training.dense_state import rate_factors
from tinygmf.training.state import Layout

RECIPE = DenseRecipe(epochs=10, warmup_steps=20)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_the_rate_climbs_to_its_peak_and_then_falls_to_zero(schedule):
    recipe = replace(RECIPE, schedule=schedule)
    rates = np.array([recipe.rate(step, 10) for step in range(101)])
    assert rates[19] == rates[20] == rates.max() == recipe.learning_rate
    assert (np.diff(rates[:20]) > 0).all() and (np.diff(rates[20:]) < 0).all()
    assert rates[0] > 0 and rates[100] == pytest.approx(0, abs=1e-12)


def test_a_run_shorter_than_its_warm_up_has_rates_too():
    recipe = replace(RECIPE, epochs=1)
    assert recipe.rate(9, 10) == recipe.learning_rate


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("batch_size", 0), ("size", 16), ("epochs", 0), ("schedule", "step"), ("seed", -1)),
        *(("learning_rate", 0.0), ("clip", -1.0), ("ema", 1.0), ("flip", 2.0), ("scale_max", 0.1)),
        ("grow", 0.0),
    ],
)
def test_an_impossible_value_is_named_with_its_option(field, value):
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')}: expected .*, found"):
        replace(RECIPE, **{field: value})


def test_a_picture_is_shown_whole_no_smaller_than_training_ever_showed_it():
    assert replace(RECIPE, size=128, scale_min=2.0, scale_max=3.0).whole_size == 256
    assert replace(RECIPE, size=128, scale_min=0.5).whole_size == 128


def test_pictures_grow_after_a_third_of_the_epochs():
    recipe = replace(RECIPE, size=128, epochs=5, scale_min=1.0, scale_max=1.5, grow=2.0)
    scales = [recipe.augment(epoch).scale for epoch in range(5)]
    assert scales == [(1.0, 1.5)] * 2 + [(2.0, 3.0)] * 3
    assert recipe.whole_size == 256


def test_every_recipe_can_be_and_every_field_is_an_option():
    assert set(RECIPES) == set(ON_SCENES) == {"segment", "detect", "instance"}
    assert all(text for *_, text in recipe_options())


@pytest.mark.parametrize("head", SCENES)
def test_the_networks_for_scenes_take_less_than_three_megabytes(head):
    network = create_model(head, 7, **head_options(head, None, small=True))
    layout = Layout(network)
    assert 4 * (layout.weights.size + layout.statistics.size) < 3e6
    network = named(network, ["background", *"abcdef"], 128)
    assert (network.settings.min_size, network.settings.max_size) == (128, 213)
    assert network.settings.classes[0] == "background"


def test_widths_follow_the_channels_and_are_the_libraries_own_without():
    options = head_options("maskrcnn", 16, small=False)
    network = create_model("maskrcnn", 5, **options)
    assert network.config.mask_channels == (16,) * 4
    assert head_options("upernet", None, small=False) == {}
    with pytest.raises(ValueError, match="--channels: expected at least 1"):
        head_options("upernet", 0, small=False)


def test_layer_decay_slows_the_backbone_stage_by_stage_and_no_head():
    network = create_model("retinanet", 3, backbone=VARIANTS["groupmixformer_nano"], channels=10)
    weights = Layout(network).weights
    factors = weights.split(rate_factors(weights, "backbone.body.", 0.5))
    assert factors["head.regression_head.bbox_reg.weight"].flat[0] == 1
    assert factors["backbone.fpn.inner_blocks.0.0.weight"].flat[0] == 1
    body = "backbone.body."
    assert factors[body + "conv_stem.proj1.weight"].flat[0] == 0.5**5
    for stage in range(4):
        name = f"{body}patch_embed_layers.{stage}.norm.weight"
        assert factors[name][0] == 0.5 ** (4 - stage)
