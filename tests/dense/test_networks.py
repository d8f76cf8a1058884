"""Dense networks by name and from files: everything is inferred, nothing is lost."""

from dataclasses import replace

import numpy as np
import pytest
from dense_case import network, state_dict
from parity import DATA, dense_manifest, safetensors_bytes
from tinygrad.nn.state import get_state_dict

from tinygmf import GroupMixFormerConfig, create_model, list_models, load_model, save_model
from tinygmf.dense.segmentation import AuxiliaryConfig
from tinygmf.dense.settings import RetinaNetSettings, sizes_of_levels
from tinygmf.weights.checkpoint import CheckpointError, write_tensors

NAMES = ["upernet", "semantic_fpn", "retinanet", "maskrcnn"]
BACKBONE = GroupMixFormerConfig((20, 30, 40, 50), (1, 1, 2, 1), (2, 2, 3, 2), 0)
SMALL = {
    "upernet": {
        "channels": 24,
        "pool_scales": (1, 2, 4),
        "auxiliary": AuxiliaryConfig(12, 2, 1, concat_input=True),
        "min_size": 128,
    },
    "semantic_fpn": {"channels": 20, "neck_channels": 12, "auxiliary": None},
    "retinanet": {
        "channels": 12,
        "num_anchors": 6,
        "num_convs": 2,
        "p6_channels": 50,
        "anchor_sizes": (8, 16, 32, 64, 128),
        "score_thresh": 0.4,
    },
    "maskrcnn": {
        "channels": 14,
        "num_anchors": 2,
        "rpn_convs": 2,
        "box_bins": 5,
        "representation": 18,
        "mask_channels": (10, 12, 16),
        "mask_reduced": 8,
        "aspect_ratios": (0.5, 2.0),
        "box_score_thresh": 0.1,
    },
}


def small(name, classes=7):
    return create_model(name, classes, backbone=BACKBONE, **SMALL[name])


def state(model):
    return {key: tensor.numpy() for key, tensor in get_state_dict(model).items()}


@pytest.mark.parametrize("name", NAMES)
def test_its_tensors_are_those_of_the_library_s_file(name):
    found = get_state_dict(network(name))
    expected = {key: tuple(shape) for key, shape, _ in dense_manifest()[name]["state_dict"]}
    assert {key: tensor.shape for key, tensor in found.items()} == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_saved_network_comes_back_whole(name, suffix, tmp_path):
    model, path = small(name), tmp_path / f"it.{suffix}"
    save_model(model, path)
    again = load_model(path)
    assert again.config == model.config
    assert again.settings == model.settings
    before, after = state(model), state(again)
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)


@pytest.mark.parametrize("name", NAMES)
def test_a_library_s_file_loads_with_the_library_s_defaults(name, tmp_path):
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(safetensors_bytes(state_dict(name)))
    model = load_model(path)
    assert model.config == network(name).config
    assert model.config.num_classes == 5
    assert model.settings == type(model.settings)()
    found = state(model)
    assert all((found[key] == array).all() for key, array in state_dict(name).items())


def test_settings_of_a_file_can_be_replaced_when_it_is_loaded(tmp_path):
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(safetensors_bytes(state_dict("maskrcnn")))
    model = load_model(path, score_thresh=0.7, anchor_sizes=[16, 32, 64, 128, 256])
    assert model.settings.box_score_thresh == 0.7
    assert model.settings.anchor_sizes == (16, 32, 64, 128, 256)


def test_pool_scales_that_no_shape_tells_are_asked_for(tmp_path):
    path, model = tmp_path / "three.safetensors", small("upernet")
    write_tensors(state(model), path)
    with pytest.raises(CheckpointError, match=r"three\.safetensors: pool_scales: the file has 3"):
        load_model(path)
    assert load_model(path, pool_scales=(1, 2, 4)).config.pool_scales == (1, 2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_a_missing_tensor_is_an_error_of_one_line(name, tmp_path):
    path, tensors = tmp_path / "part.safetensors", state_dict(name)
    for key in list(tensors)[:: len(tensors) // 5]:
        path.write_bytes(safetensors_bytes({k: a for k, a in tensors.items() if k != key}))
        with pytest.raises(CheckpointError) as error:
            load_model(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_metadata_of_the_wrong_kind_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "odd.safetensors"
    for odd in ({"score_thresh": "high"}, {"anchor_sizes": [1, "2"]}, {"topk_candidates": -1}):
        write_tensors(state_dict("retinanet"), path, odd)
        with pytest.raises(CheckpointError, match=next(iter(odd))):
            load_model(path)


def test_the_backbone_s_weights_come_from_a_classification_checkpoint():
    model = create_model("semantic_fpn", 3, backbone=DATA / "nano.pth")
    theirs = state(load_model(DATA / "nano.pth"))
    own = state(model)
    for key, array in theirs.items():
        if not key.startswith(("norm4.", "head.")):
            assert (own[f"backbone.{key}"] == array).all(), key
    with_model = create_model("retinanet", 3, backbone=load_model(DATA / "nano.pth"))
    key = "conv_stem.proj1.weight"
    assert (state(with_model)[f"backbone.body.{key}"] == theirs[key]).all()


def test_the_backbone_s_weights_come_from_a_network_of_another_task(tmp_path):
    first = create_model("upernet", 3, seed=1, channels=8)
    save_model(first, path := tmp_path / "upernet.safetensors")
    second = state(create_model("maskrcnn", 5, backbone=path, channels=8, representation=8))
    for key, array in state(first).items():
        if key.startswith("backbone."):
            assert (second[key.replace("backbone.", "backbone.body.", 1)] == array).all(), key
    with pytest.raises(ValueError, match="backbone: expected a network"):
        create_model("upernet", backbone=3)


def test_a_fresh_network_is_the_same_for_the_same_seed_and_has_the_libraries_defaults():
    first, second = (create_model("upernet", 3, seed=1, channels=8) for _ in range(2))
    states = state(first), state(second)
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
    assert first.config.backbone.embedding_dims == (20, 40, 80, 80)
    bias = state(create_model("retinanet", 4, channels=8))[
        "head.classification_head.cls_logits.bias"
    ]
    assert np.allclose(bias, -np.log(99))  # each class has a probability of 0.01


def test_every_listed_name_can_be_created():
    assert list_models()[-4:] == NAMES
    assert create_model("maskrcnn", channels=8, representation=8).config.num_classes == 91


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet50"}, "resnet50"),
        ({"num_classes": 0}, "at least 1"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"score_thresh": "low"}, "score_thresh"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model("retinanet", **arguments)


def test_one_size_a_level_stands_for_its_parts_of_an_octave():
    settings = RetinaNetSettings()
    assert sizes_of_levels(settings, 9)[0] == (32, 40, 50)  # torchvision's
    assert sizes_of_levels(settings, 3)[4] == (512,)
    own = replace(settings, anchor_sizes=((8, 9), (16, 17), (32, 33), (64, 65), (128, 129)))
    assert sizes_of_levels(own, 6)[1] == (16, 17)
    with pytest.raises(ValueError, match="anchors: expected 4"):
        sizes_of_levels(settings, 4)
