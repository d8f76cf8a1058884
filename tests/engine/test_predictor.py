"""The engine: any pictures in, the model's own logits out, whatever the batch."""

import numpy as np
import pytest
from parity import DATA, activations_of
from PIL import Image
from strategies import noise, normal

from tinygmf import Predictor, load_model
from tinygmf.checks.verify import relative_difference
from tinygmf.config import VARIANTS
from tinygmf.engine import predictor
from tinygmf.engine.predictor import chunks, probabilities, read_ahead
from tinygmf.image import ImageError, normalize
from tinygmf.weights.checkpoint import load_weights


@pytest.fixture(scope="module")
def model():
    return load_model(DATA / "nano.pth")


@pytest.fixture(scope="module")
def predict(model):
    return Predictor(model, 32, batch_size=2, device="CPU", progress=False)


def test_it_gives_the_measured_logits(model):
    pictures, measured = activations_of()
    found = Predictor(model, 64, progress=False).run(pictures)
    assert abs(found - measured["logits"]).max() < 2e-5 * abs(measured["logits"]).max()


def test_a_batch_of_any_length_gives_what_its_pictures_give_alone(predict):
    pictures = normal(0, 11, 3, 32, 32)
    together = predict(pictures)
    assert together.shape == (11, 10)
    alone = np.concatenate([predict.run(picture[None]) for picture in pictures])
    assert abs(together - alone).max() < 1e-6
    assert predict([]).shape == (0, 10)


def test_a_batch_in_several_runs_gives_what_one_run_gives(predict, model, monkeypatch):
    monkeypatch.setattr(predictor, "LARGEST", 0)
    one_by_one = Predictor(model, 32, batch_size=2, device="CPU", progress=False)
    batch = normal(0, 2, 3, 32, 32)
    for found, expected in zip(one_by_one.outputs(batch), predict.outputs(batch), strict=True):
        assert found.shape == expected.shape
        assert relative_difference(found, expected) < 1e-6
    assert one_by_one.run(batch[:1]).shape == (1, 10)


@pytest.mark.parametrize(
    ("variant", "size", "batch", "device", "at_once"),
    [
        ("miny", 224, 1, "CPU", 1),
        ("miny", 224, 16, "CPU", 2),
        ("miny", 224, 3, "CPU", 2),
        ("base", 224, 16, "CPU", 1),
        ("nano", 64, 64, "CPU", 64),
        ("nano", 32, 10_000, "CPU", 271),  # 37 runs
        ("miny", 224, 16, "CUDA", 16),
    ],
)
def test_on_the_cpu_as_many_run_at_once_as_the_caches_hold(variant, size, batch, device, at_once):
    config = VARIANTS[f"groupmixformer_{variant}"]
    assert predictor.pictures_at_once(batch, size, config, device) == at_once


def test_files_images_and_arrays_are_the_same_picture(predict, tmp_path):
    pixels = noise(0, 36, 36)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "noise.png")
    ready = normalize(image.crop((2, 2, 34, 34)))  # 36 is what 32 is resized to before the crop
    forms = [str(tmp_path / "noise.png"), tmp_path / "noise.png", image, pixels, ready]
    answers = [predict(form) for form in forms]
    assert all(answer.shape == (1, 10) for answer in answers)
    assert all((answer == answers[0]).all() for answer in answers)


def test_a_file_gives_the_same_logits_without_a_module_as_with_one(predict):
    weights = load_weights(DATA / "nano.pth")
    direct = Predictor(weights, 32, batch_size=2, device="CPU", progress=False)
    x = normal(0, 2, 3, 32, 32)
    assert (direct.run(x) == predict.run(x)).all()


def test_a_later_change_of_the_model_does_not_reach_it(model):
    own = load_model(DATA / "nano.pth")
    predict = Predictor(own, 32, batch_size=2, device="CPU", progress=False)
    x = normal(0, 1, 3, 32, 32)
    before = predict.run(x)
    own.head.bias.assign(own.head.bias + 1).realize()
    assert (predict.run(x) == before).all()
    predict.use_weights(own)
    assert np.allclose(predict.run(x), before + 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 31}, "at least 32 pixels"),
        ({"batch_size": 0}, "at least 1"),
        ({"dtype": "int8"}, "float32, float16, bfloat16"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(model, **arguments)


def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(predict):
    with pytest.raises(ImageError, match=r"no such file\.png"):
        predict("no such file.png")


def test_probabilities_are_a_softmax_even_of_large_logits():
    rows = probabilities(np.array([[1000.0, 999.0], [0.0, 0.0]]))
    assert np.allclose(rows, [[0.7310586, 0.2689414], [0.5, 0.5]])


def test_reading_ahead_keeps_the_order():
    assert list(read_ahead(lambda i: i * i, range(100))) == [i * i for i in range(100)]
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
