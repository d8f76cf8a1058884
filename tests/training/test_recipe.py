"""The recipe: its schedule and its mixing equal cases worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from tinygmf.config import Settings
from tinygmf.data.augment import blend, cut_box, erase, mix, targets, training_picture
from tinygmf.image import preprocess
from tinygmf.training.recipe import RECIPES, Recipe


def test_the_published_schedule_climbs_for_20_epochs_and_falls_along_a_cosine():
    recipe = Recipe(batch_size=512)
    assert recipe.rate(0, 10) == pytest.approx(5e-7)
    assert recipe.rate(100, 10) == pytest.approx((5e-7 + 5e-4) / 2)
    assert recipe.rate(1500, 10) == pytest.approx((5e-6 + 5e-4) / 2)  # half of 300 epochs
    assert recipe.rate(3000, 10) == pytest.approx(5e-6)


def test_rates_are_scaled_with_the_batch():
    assert Recipe(batch_size=64, accumulate=4).rate(0, 10) == pytest.approx(5e-7 / 2)


def test_the_average_soon_forgets_the_first_weights():
    recipe = Recipe(ema=0.99)
    assert recipe.ema_decay(0) == pytest.approx(0.1)
    assert np.prod([recipe.ema_decay(step) for step in range(24)]) < 1e-6  # what is left of them
    assert recipe.ema_decay(10_000) == 0.99 and Recipe().ema_decay(0) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 10_001),
        ("label_smoothing", 1.5),
        ("crop", 0),
        ("centre", 1.1),
    ],
)
def test_a_value_that_cannot_be_is_named(field, value):
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')}: expected .*, found"):
        Recipe(**{field: value})


def test_fashion_is_trained_on_whole_pictures_mirrored_or_not_as_it_is_measured(rng):
    recipe = RECIPES["fashion-mnist"]
    settings = Settings(crop=recipe.centre)
    picture = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
    plain = picture.resize((recipe.size, recipe.size), Image.Resampling.BICUBIC)
    wanted = [np.asarray(plain), np.asarray(plain)[:, ::-1]]
    seen = set()
    for _ in range(16):
        array = training_picture(picture, recipe, rng, settings).transpose(1, 2, 0)
        found = 255 * (array * settings.std + settings.mean)
        seen.add(next(i for i in (0, 1) if np.abs(found - wanted[i]).max() < 1.01))
    assert seen == {0, 1}
    np.testing.assert_allclose(
        preprocess(picture, recipe.size, settings).transpose(1, 2, 0) * settings.std
        + settings.mean,
        wanted[0] / 255,
        atol=1e-6,
    )


def test_smoothing_spreads_its_share_over_all_classes():
    rows = targets(np.array([2]), classes=4, smoothing=0.2)
    np.testing.assert_allclose(rows, [[0.05, 0.05, 0.85, 0.05]], rtol=1e-6)


def test_mixup_is_a_weighted_sum_with_the_reversed_batch():
    values = np.array([[1.0], [2.0], [4.0]], np.float32)
    np.testing.assert_allclose(blend(values, 0.75), [[1.75], [2.0], [3.25]])


def test_a_cut_box_has_the_area_that_is_not_kept_and_is_cut_at_the_edges():
    assert cut_box(8, 8, share=0.75, centre=(4, 4)) == (2, 6, 2, 6)
    assert cut_box(8, 8, share=0.75, centre=(0, 7)) == (0, 2, 5, 8)


def test_cutmix_weighs_the_targets_by_the_areas_that_remain():
    pictures = np.stack([np.zeros((3, 8, 8)), np.ones((3, 8, 8))]).astype(np.float32)
    rows = np.eye(2, dtype=np.float32)
    mixed, weights = mix(pictures, rows, Recipe(mixup=0), np.random.default_rng(0))
    share = float((mixed[0] == 0).mean())
    np.testing.assert_allclose(weights, [[share, 1 - share], [1 - share, share]], rtol=1e-5)
    assert 0 < share < 1


def test_no_mixing_leaves_the_batch_alone():
    pictures, rows = np.zeros((2, 3, 8, 8), np.float32), np.eye(2, dtype=np.float32)
    assert mix(pictures, rows, RECIPES["finetune"], np.random.default_rng(0))[0] is pictures


def test_every_batch_is_mixed_and_half_of_them_are_cut():
    pictures = np.stack([np.zeros((3, 64, 64)), np.ones((3, 64, 64))]).astype(np.float32)
    rows = targets(np.array([0, 1]), classes=2, smoothing=0.1)
    rng, cut, shares = np.random.default_rng(0), [], []
    for _ in range(600):
        mixed, weights = mix(pictures, rows, Recipe(), rng)
        cut.append(set(np.unique(mixed)) <= {0.0, 1.0})
        share = float((mixed[0] == 0).mean()) if cut[-1] else 1 - float(mixed[0, 0, 0, 0])
        np.testing.assert_allclose(weights, blend(rows, share), atol=1e-5)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
        shares.append(share)
    assert 0.45 < np.mean(cut) < 0.55
    mixup = np.array(shares)[~np.array(cut)]
    assert np.mean(mixup) == pytest.approx(0.5, abs=0.05)
    assert np.var(mixup) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)  # of Beta(0.8, 0.8)


def test_how_often_a_batch_is_mixed_is_the_recipes():
    pictures, rows = np.ones((2, 3, 8, 8), np.float32), np.eye(2, dtype=np.float32)
    rng, recipe = np.random.default_rng(0), Recipe(mix_probability=0.25, cutmix=0)
    left_alone = [mix(pictures, rows, recipe, rng)[0] is pictures for _ in range(400)]
    assert np.mean(left_alone) == pytest.approx(0.75, abs=0.07)


def test_erasing_puts_normal_noise_into_one_rectangle():
    rng, areas, noise = np.random.default_rng(0), [], []
    for _ in range(50):
        erased = erase(np.zeros((3, 64, 64), np.float32), rng)
        rows, columns = np.nonzero(erased[0])
        box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box != 0).all() and np.count_nonzero(erased) == box.size
        areas.append(box[0].size / 64**2)
        noise.append(box.ravel())
    assert min(areas) > 0.015 and max(areas) < 0.36  # 2 to 33 %, and whole pixels
    assert np.std(np.concatenate(noise)) == pytest.approx(1, abs=0.02)
