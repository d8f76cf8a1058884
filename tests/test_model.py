"""The network as a user builds it: names, shapes, parameters, initialization, heads."""

import math

import numpy as np
import pytest
from parity import manifest
from strategies import normal
from tinygrad import Context, Tensor
from tinygrad.nn.state import get_state_dict

import tinygmf
from tinygmf import GroupMixAttention, GroupMixFormerConfig, create_model, list_models
from tinygmf.layers import drop_path
from tinygmf.study.summary import PUBLISHED, format_summary, summarize

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
PUBLISHED_NAMES = list(manifest())


def parameters(model) -> dict[str, Tensor]:
    return {k: t for k, t in get_state_dict(model).items() if not k.endswith(BUFFERS)}


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_every_published_variant_has_exactly_the_published_keys_shapes_and_types(name):
    model = tinygmf.GroupMixFormer(tinygmf.config.VARIANTS[f"groupmixformer_{name}"], seed=None)
    state = get_state_dict(model)
    types = {"float": "float32", "long": "int64"}
    found = [[key, list(t.shape), types[t.dtype.name]] for key, t in state.items()]
    assert sorted(found) == sorted(manifest()[name]["state_dict"])
    assert (
        sum(math.prod(t.shape) for t in parameters(model).values())
        == (manifest()[name]["num_parameters"])
    )
    assert model.config.drop_path_rate == manifest()[name]["config"]["drop_path_rate"]


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_the_configuration_is_inferred_from_keys_and_shapes_alone(name):
    shapes = {key: tuple(shape) for key, shape, _ in manifest()[name]["state_dict"]}
    inferred = GroupMixFormerConfig.from_state_dict(shapes)
    assert inferred == tinygmf.config.VARIANTS[f"groupmixformer_{name}"]


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_parameters_and_flops_add_up_to_the_published_figures(name):
    config = tinygmf.config.VARIANTS[f"groupmixformer_{name}"]
    rows = summarize(config)
    assert sum(row.parameters for row in rows) == manifest()[name]["num_parameters"]
    giga = PUBLISHED[f"groupmixformer_{name}"][1]
    assert sum(row.flops for row in rows) / 1e9 == pytest.approx(giga, rel=0.06)
    assert f"{manifest()[name]['num_parameters']:,}" in format_summary(config)


def test_the_teaching_network_is_listed_first_and_small():
    names = ["groupmixformer_nano"] + [f"groupmixformer_{n}" for n in manifest()]
    assert list_models() == [*names, "upernet", "semantic_fpn", "retinanet", "maskrcnn"]
    model = create_model("groupmixformer_nano", num_classes=10)
    assert sum(math.prod(t.shape) for t in parameters(model).values()) < 500_000


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (
        get_state_dict(create_model("groupmixformer_nano", seed=seed)) for seed in (1, 1, 2)
    )
    key = "groupmixformer_backbone.0.gma_stage.0.att.qkv.weight"
    assert all((first[k].numpy() == again[k].numpy()).all() for k in first)
    assert (first[key].numpy() != other[key].numpy()).any()


def test_initialization_is_the_published_one():
    state = get_state_dict(create_model("groupmixformer_miny", num_classes=10))
    block = "groupmixformer_backbone.2.gma_stage.0"
    linear = state[f"{block}.mlp.fc1.weight"].numpy()
    assert linear.std() == pytest.approx(0.02, rel=0.02) and abs(linear.mean()) < 1e-3
    assert (state[f"{block}.mlp.fc1.bias"].numpy() == 0).all()
    depthwise = state[f"{block}.att.aggregator.agg3.conv1.weight"].numpy()
    assert 0.95 / 7 < abs(depthwise).max() <= 1 / 7  # uniform within 1 / sqrt(49)
    dense = state["conv_stem.proj2.weight"].numpy()
    bound = 1 / math.sqrt(20 * 9)
    assert 0.95 * bound < abs(dense).max() <= bound
    assert abs(state["conv_stem.proj2.bias"].numpy()).max() <= bound
    assert (state["norm4.weight"].numpy() == 1).all() and (state["norm4.bias"].numpy() == 0).all()


def test_features_are_four_maps_at_strides_4_8_16_32_rounded_up():
    model = create_model("groupmixformer_nano", num_classes=7)
    maps = model.forward_features(Tensor.empty(2, 3, 33, 100))
    assert [m.shape for m in maps] == [(2, 20, 9, 25), (2, 40, 5, 13), (2, 80, 3, 7), (2, 80, 2, 4)]
    assert model.feature_info == [
        {"num_chs": m.shape[1], "reduction": stride}
        for m, stride in zip(maps, (4, 8, 16, 32), strict=True)
    ]
    assert model.forward_head(maps[-1]).shape == (2, 7)


def test_a_new_head_takes_the_old_ones_place_and_none_gives_pooled_features():
    model, x = create_model("groupmixformer_nano"), Tensor.empty(1, 3, 32, 32)
    assert model(x).shape == (1, 1000)
    model.reset_classifier(5)
    assert model(x).shape == (1, 5) and model.config.num_classes == 5
    model.reset_classifier(0)
    assert model(x).shape == (1, 80) and "head.weight" not in get_state_dict(model)


@pytest.mark.parametrize("shape", [(1, 3, 31, 32), (3, 32, 32), (1, 1, 32, 32)])
def test_pictures_of_a_wrong_shape_are_refused_in_one_line(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        create_model("groupmixformer_nano")(Tensor.empty(*shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dims": (20, 20, 30, 45)}, "multiples of 10"),
        ({"serial_depths": (1, 1, 1)}, "4 positive numbers"),
        ({"num_classes": -1}, "num_classes"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GroupMixFormerConfig(**{"embedding_dims": (20,) * 4, "serial_depths": (1,) * 4, **changes})


def test_an_unknown_model_or_option_is_refused_in_one_line():
    with pytest.raises(ValueError, match="expected one of groupmixformer_nano"):
        create_model("resnet50")
    with pytest.raises(ValueError, match="no_such_option"):
        create_model("groupmixformer_nano", no_such_option=1)


def test_the_attention_stands_on_its_own():
    tokens = Tensor(normal(0, 2, 6, 20))
    assert GroupMixAttention(20)(tokens, (2, 3)).shape == (2, 6, 20)
    with pytest.raises(ValueError, match="multiple of 10"):
        GroupMixAttention(24)
    with pytest.raises(ValueError, match="expected 4 tokens, found 6"):
        GroupMixAttention(20)(tokens, (2, 2))


def test_stochastic_depth_drops_whole_samples_in_training_and_nothing_otherwise():
    x = Tensor.ones(64, 3, 5)
    assert (drop_path(x, 0.5).numpy() == 1).all()
    with Context(TRAINING=1):
        dropped = drop_path(x, 0.5).numpy()
    per_sample = dropped.reshape(64, -1)
    assert set(np.unique(dropped)) == {0, 2}
    assert (per_sample == per_sample[:, :1]).all()


def test_stochastic_depth_rises_linearly_over_all_blocks():
    config = GroupMixFormerConfig((20,) * 4, (1, 2, 1, 1), drop_path_rate=0.4)
    assert np.allclose(sum(config.drop_path_rates(), ()), [0, 0.1, 0.2, 0.3, 0.4])


def test_training_counts_batches_and_moves_the_running_statistics():
    norm = tinygmf.layers.BatchNorm(np.random.default_rng(0), 2)
    x = normal(0, 8, 2, 3, 3)
    with Context(TRAINING=1):
        norm(Tensor(x)).realize()
    state = get_state_dict(norm)
    Tensor.realize(*state.values())
    assert state["num_batches_tracked"].item() == 1
    assert np.allclose(state["running_mean"].numpy(), 0.1 * x.mean((0, 2, 3)), atol=1e-6)
    unbiased = x.transpose(1, 0, 2, 3).reshape(2, -1).var(axis=1, ddof=1)
    assert np.allclose(state["running_var"].numpy(), 0.9 + 0.1 * unbiased, atol=1e-5)
