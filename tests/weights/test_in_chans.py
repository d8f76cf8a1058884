"""Networks for pictures with channels other than three, as their weights say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinygrad import Tensor

from tinygmf import Predictor, create_model, load_model, save_model
from tinygmf.image import preprocess
from tinygmf.study.summary import summarize
from tinygmf.training.recipe import RECIPES
from tinygmf.training.trainer import training_config
from tinygmf.weights.checkpoint import load_weights, read_tensors, write_tensors

DATA = Path(__file__).parent.parent / "data"
STEM = "conv_stem.proj1.weight"


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    """The nano network for grey pictures: its stem adds up what it made of three channels."""
    path = tmp_path_factory.mktemp("grey") / "grey.pth"
    tensors = read_tensors(DATA / "nano.pth")
    write_tensors(tensors | {STEM: tensors[STEM].sum(1, keepdims=True)}, path)
    return path


def test_the_file_says_how_many_there_are(grey, tmp_path):
    model = load_model(grey)
    assert model.config.in_chans == 1
    save_model(model, tmp_path / "again.safetensors")
    assert load_weights(tmp_path / "again.safetensors").config == model.config
    assert load_model(DATA / "nano.pth").config.in_chans == 3
    with pytest.raises(ValueError, match="in_chans"):
        create_model("groupmixformer_nano", in_chans=0)


def test_its_stem_sees_what_its_colour_twin_sees_of_three_equal_channels(grey):
    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32), dtype=np.float32)
    colour, model = load_model(DATA / "nano.pth"), load_model(grey)
    expected = colour.conv_stem(Tensor(x.repeat(3, 1))).numpy()
    np.testing.assert_allclose(model.conv_stem(Tensor(x)).numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"images: expected \(B, 1, H, W\)"):
        model(Tensor(x.repeat(3, 1)))


def test_a_predictor_gives_it_grey_pictures(grey):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8))
    x = preprocess(picture, 32, channels=1)
    assert x.shape == (1, 32, 32) and x.dtype == np.float32
    three = preprocess(picture, 32)  # the same pixels, each channel in its own scale
    np.testing.assert_allclose(x[0] * 0.226 + 0.449, three[0] * 0.229 + 0.485, atol=1e-6)
    colour = Predictor(load_weights(DATA / "nano.pth"), 32, progress=False)
    expected = colour(x.repeat(3, 0))
    predict = Predictor(load_weights(grey), 32, progress=False)
    np.testing.assert_allclose(predict(x), expected, atol=2e-5)
    np.testing.assert_allclose(predict(picture), expected, atol=2e-5)


def test_for_other_numbers_arrays_are_asked_for():
    with pytest.raises(ValueError, match=r"normalized arrays \(4, 32, 32\)"):
        preprocess(Image.new("RGB", (40, 40)), 32, channels=4)


def test_what_makes_pictures_in_colour_says_so():
    config = create_model("groupmixformer_nano", in_chans=4).config
    with pytest.raises(ValueError, match="training: expected a network for pictures with 3"):
        training_config(config, RECIPES["digits"])


def test_the_summary_counts_the_stem_as_it_is(grey):
    model = load_model(grey)
    stem = [
        array.size for name, array in read_tensors(grey).items() if name.startswith("conv_stem")
    ]
    statistics = 2 * (10 + 20) + 2  # running means and variances, counters
    assert summarize(model.config)[0].parameters == sum(stem) - statistics
