"""Trained weights by name, channels other than three, and maps alone, as timm has them."""

import hashlib

import numpy as np
import pytest
from tinygrad import Tensor

import tinygmf
from tinygmf.engine.pretrained import STEM, adapted_stem, published_file
from tinygmf.engine.user_cache import cache_directory
from tinygmf.model import FeatureNetwork
from tinygmf.weights.checkpoint import read_tensors, save_model
from tinygmf.weights.reading import find_weights

DIGITS = find_weights("digits")  # a groupmixformer_nano of ten classes


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The file of nano, in its place in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    place = cache_directory() / "weights" / "groupmixformer_nano.pth"
    place.parent.mkdir()
    save_model(tinygmf.load_model(DIGITS), place)
    return place


def test_without_the_file_its_place_is_named(published):
    published.unlink()
    with pytest.raises(ValueError, match=r"nano\.pth: expected the published weights"):
        tinygmf.create_model("nano", pretrained=True)


def test_the_file_in_its_place_is_taken_by_name_and_a_new_head_where_the_classes_differ(published):
    arrays = read_tensors(DIGITS)
    same = tinygmf.create_model("nano", pretrained=True)
    other = tinygmf.create_model("groupmixformer_nano", 3, pretrained=str(published))
    for model, classes in ((same, 10), (other, 3)):
        assert model.config.num_classes == classes
        for name, tensor in model.state_dict().items():
            if not name.startswith("head") or model is same:
                np.testing.assert_array_equal(tensor.numpy(), arrays[name], err_msg=name)


def test_the_digest_is_noted_once_and_a_changed_file_refused(published):
    assert published_file("groupmixformer_nano") == published
    note = published.with_name(published.name + ".sha256")
    expected = hashlib.sha256(published.read_bytes()).hexdigest()
    assert note.read_text() == f"{expected}  {published.name}\n"
    assert published_file("groupmixformer_nano") == published
    published.write_bytes(published.read_bytes() + b"x")
    with pytest.raises(ValueError, match=f"expected the SHA-256 {expected}, as in .* found"):
        tinygmf.create_model("nano", pretrained=True)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="expected weights of groupmixformer_tiny, found groupm"):
        tinygmf.create_model("tiny", pretrained=DIGITS)
    with pytest.raises(ValueError, match="unexpected keyword argument 'colour'"):
        tinygmf.create_model("nano", pretrained=DIGITS, colour=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_equal_channels_are_seen_alike_however_many_there_are(channels):
    weight = read_tensors(DIGITS)[STEM]
    adapted = adapted_stem(weight, channels)
    assert adapted.shape == (weight.shape[0], channels, 3, 3)
    if channels % 3 == 0 or channels == 1:
        np.testing.assert_allclose(adapted.sum(1), weight.sum(1), atol=1e-6)
    expected = [weight[:, i % 3] * 3 / channels for i in range(channels)]
    if channels > 1:
        np.testing.assert_allclose(adapted, np.stack(expected, 1), atol=1e-7)


def test_a_pretrained_network_of_grey_pictures_has_one_channel():
    model = tinygmf.create_model("nano", pretrained=DIGITS, in_chans=1)
    assert model.config.in_chans == 1
    stem = read_tensors(DIGITS)[STEM].sum(1, keepdims=True)
    np.testing.assert_allclose(model.state_dict()[STEM].numpy(), stem, atol=1e-6)


def test_features_only_gives_the_maps_of_the_stages_asked_for():
    model = tinygmf.create_model("nano", pretrained=DIGITS, features_only=True, out_indices=(1, 3))
    whole = tinygmf.load_model(DIGITS)
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32))
    maps, expected = model(x), whole.forward_features(x)[1::2]
    Tensor.realize(*maps, *expected)
    for found, own in zip(maps, expected, strict=True):
        np.testing.assert_allclose(found.numpy(), own.numpy(), atol=1e-6)
    assert model.feature_info.channels() == [40, 80] and model.feature_info.reduction() == [8, 32]
    assert whole.feature_info.channels() == [20, 40, 80, 80]


def test_stages_that_are_not_there_and_dense_networks_are_refused():
    with pytest.raises(ValueError, match=r"out_indices: expected stages from 0 to 3, found \(4,\)"):
        FeatureNetwork(tinygmf.create_model("nano"), (4,))
    with pytest.raises(ValueError, match="model 'upernet': expected a classification network"):
        tinygmf.create_model("upernet", features_only=True)
