"""One training step equals the published implementation's: loss, gradients, and what it leaves."""

import numpy as np
import pytest
from parity import DATA, load_npz, parity_input

from tinygmf.checkpoint import load_model, read_tensors
from tinygmf.training.augment import targets
from tinygmf.training.programs import Programs
from tinygmf.training.state import Layout, TrainingState, rate_factors, weight_decay
from tinygmf.training.step import update_schedule

GRADIENTS = load_npz("nano_train_gradients")
AFTER = load_npz("nano_train_after_one_step")
ROUNDING = 1e-6  # a gradient below it is rounding: the largest is 0.5
AFTER = {name: array for name, array in AFTER.items() if "." in name}  # without the settings


@pytest.fixture(scope="module")
def measured() -> dict[str, np.ndarray]:
    """Our own loss, norm, gradients (grad/…) and state after the step (after/…)."""
    config = load_model(DATA / "nano.pth").config
    layout = Layout.of(config)
    fixed = weight_decay(layout, 0.05), rate_factors(layout, 1.0, False)
    state = TrainingState(layout, read_tensors(DATA / "nano.pth"), *fixed, "CPU")
    programs = Programs(config, state, batch=4, size=64, device="CPU", progress=False)
    rows = targets(GRADIENTS["labels"], 10, smoothing=0.1)
    pictures = parity_input(int(GRADIENTS["seed"]), (4, 3, 64, 64))
    loss = programs.gradient(1, pictures, rows, np.ones((2 * 5, 4), np.float32))
    result = {"loss": np.array(loss)}
    gradients = layout.weights.split(state["gradient"].numpy())
    result |= {f"grad/{name}": array.copy() for name, array in gradients.items()}
    schedule = update_schedule(rate=1e-3, step=0, clip=5.0, ema=0.0)
    result["grad_norm"] = np.array(programs.update(schedule))
    return result | {f"after/{name}": array for name, array in state.network().items()}


def test_loss_and_gradient_norm_equal_the_published(measured):
    np.testing.assert_allclose(measured["loss"], GRADIENTS["loss"], rtol=1e-5)
    np.testing.assert_allclose(measured["grad_norm"], GRADIENTS["grad_norm"], rtol=1e-4)


def test_every_gradient_equals_the_published(measured):
    names = set(GRADIENTS) - {"seed", "labels", "loss", "grad_norm"}
    assert names == {name.removeprefix("grad/") for name in measured if name.startswith("grad/")}
    largest = max(np.abs(GRADIENTS[name]).max() for name in names)
    for name in names:
        expected, found = GRADIENTS[name], measured[f"grad/{name}"]
        # A bias before a BatchNorm has no gradient: what is measured there is rounding.
        bound = max(1e-3 * np.abs(expected).max(), 1e-6 * largest)
        assert np.abs(found - expected).max() <= bound, name


def test_the_whole_state_after_one_step_equals_the_published(measured):
    names = {name.removeprefix("after/") for name in measured if name.startswith("after/")}
    assert names == set(AFTER)
    for name in AFTER:
        # AdamW's first step is the learning rate times the gradient's sign, so where the gradient
        # is nothing but rounding the step may be anything up to that.
        gradient = np.abs(GRADIENTS.get(name, np.ones(1)))
        bound = np.where(gradient < ROUNDING, 2.1e-3, 1e-5)
        assert (np.abs(measured[f"after/{name}"] - AFTER[name]) <= bound).all(), name
