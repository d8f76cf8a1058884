"""Decoded pictures are kept: the same batches, decoded once, in bounded memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinygmf.data.folders import folder_pictures
from tinygmf.data.kept import Kept, bytes_of, reduced
from tinygmf.image import load_image, preprocess
from tinygmf.training.recipe import Recipe

RECIPE = Recipe(batch_size=4, size=32, crop=0.35)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Two classes of five pictures, larger than the network needs."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            pixels = rng.integers(0, 256, (120, 200, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_a_photograph_is_decoded_once_in_all_epochs_and_the_batches_stay_the_same(photographs):
    decoded: Counter[str] = Counter()

    def load(path: Path) -> Image.Image:
        decoded[str(path)] += 1
        return load_image(path)

    kept, made_anew = (folder_pictures(photographs) for _ in range(2))
    kept.load, made_anew.kept = load, Kept(bytes_of, most=0)
    for epoch in range(3):
        ours = list(kept.batches(RECIPE, epoch)) + list(kept.validation(32, 4))
        theirs = list(made_anew.batches(RECIPE, epoch)) + list(made_anew.validation(32, 4))
        for found, expected in zip(ours, theirs, strict=True):
            for array, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(array, other)
    assert len(decoded) == 10 and set(decoded.values()) == {1}


def test_what_is_validated_on_is_what_classify_sees(photographs):
    data = folder_pictures(photographs)
    [(pictures, _)] = data.validation(32, 4)
    expected = [preprocess(path, 32) for path in data.val]
    np.testing.assert_array_equal(pictures, np.stack(expected))


def test_pictures_are_kept_until_they_fill_the_memory():
    kept, made = Kept(bytes_of, most=2 * 3 * 100), Counter[str]()

    def picture(name: str) -> Image.Image:
        made[name] += 1
        return Image.new("RGB", (10, 10))

    for _ in range(3):
        for name in "abc":
            kept.get(name, lambda name=name: picture(name))
    assert made == {"a": 1, "b": 1, "c": 3} and kept.left == 0


@pytest.mark.parametrize("crop", [0.08, 0.35, 1.0])
@pytest.mark.parametrize("size", [(4000, 3000), (300, 4000), (50, 40)])
def test_a_reduced_picture_has_the_pixels_that_every_crop_of_it_needs(size, crop):
    recipe = Recipe(size=64, crop=crop)
    small = reduced(Image.new("RGB", size), recipe)
    short = min(small.size)
    assert short == min(size) or short * crop**0.5 >= 64 <= short * 0.875
    assert short <= max(64 / crop**0.5, 64 / 0.875) + 1
    assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.02)
