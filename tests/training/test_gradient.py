"""One training step equals the published implementation's: loss, gradients and updated state."""

import numpy as np
import pytest
from parity import DATA, load_npz, parity_input

from tinygmf.data.augment import targets
from tinygmf.training.programs import Programs
from tinygmf.training.state import Devices, Layout, TrainingState
from tinygmf.training.update import update_schedule
from tinygmf.weights.checkpoint import load_model, read_tensors

GRADIENTS = load_npz("nano_train_gradients")
AFTER = load_npz("nano_train_after_one_step")
ROUNDING = 1e-6  # a gradient below it is rounding: the largest is 0.5
AFTER = {name: array for name, array in AFTER.items() if "." in name}  # without the settings


CONFIG = load_model(DATA / "nano.pth").config
LAYOUT = Layout.of(CONFIG)


def measure(device: Devices = "CPU", dtype: str = "float32") -> dict[str, np.ndarray]:
    """Our own loss, norm, gradients (grad/…) and state after the step (after/…)."""
    state = TrainingState(CONFIG, read_tensors(DATA / "nano.pth"), device, weight_decay=0.05)
    programs = Programs(CONFIG, state, 4, 64, device, progress=False, dtype=dtype)
    rows = targets(GRADIENTS["labels"], 10, smoothing=0.1)
    pictures = parity_input(int(GRADIENTS["seed"]), (4, 3, 64, 64))
    factors = np.ones((2 * 5, 4), np.float32)
    scale = 1024 if dtype == "float16" else 1
    result = {"loss": np.array(programs.gradient(1, pictures, rows, factors, scale))}
    gradients = LAYOUT.weights.split(state["gradient"].numpy())
    result |= {f"grad/{name}": array.copy() for name, array in gradients.items()}
    schedule = update_schedule(rate=1e-3, step=0, clip=5.0, ema=0.0)
    result["grad_norm"] = np.array(programs.update(schedule))
    return result | {f"after/{name}": array for name, array in state.network().items()}


def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU device compute as any other does: with tinygrad's own kernels."""
    monkeypatch.setattr("tinygmf.training.programs.runs_in_loops", lambda *_: False)


@pytest.fixture(scope="module")
def measured() -> dict[str, np.ndarray]:
    return measure()


def test_loss_and_gradient_norm_equal_the_published(measured):
    check_loss(measured)


def check_loss(measured: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(measured["loss"], GRADIENTS["loss"], rtol=1e-5)
    np.testing.assert_allclose(measured["grad_norm"], GRADIENTS["grad_norm"], rtol=1e-4)


def test_every_gradient_equals_the_published(measured):
    check_gradients(measured)


def check_gradients(measured: dict[str, np.ndarray]) -> None:
    names = set(GRADIENTS) - {"seed", "labels", "loss", "grad_norm"}
    assert names == {name.removeprefix("grad/") for name in measured if name.startswith("grad/")}
    largest = max(np.abs(GRADIENTS[name]).max() for name in names)
    for name in names:
        expected, found = GRADIENTS[name], measured[f"grad/{name}"]
        # A bias before a BatchNorm has no gradient: what is measured there is rounding.
        bound = max(1e-3 * np.abs(expected).max(), 1e-6 * largest)
        assert np.abs(found - expected).max() <= bound, name


def test_the_whole_state_after_one_step_equals_the_published(measured):
    check_state(measured)


def check_state(measured: dict[str, np.ndarray]) -> None:
    names = {name.removeprefix("after/") for name in measured if name.startswith("after/")}
    assert names == set(AFTER)
    for name in AFTER:
        # AdamW's first step is the learning rate times the gradient's sign, so where the gradient
        # is nothing but rounding the step may be anything up to that.
        gradient = np.abs(GRADIENTS.get(name, np.ones(1)))
        bound = np.where(gradient < ROUNDING, 2.1e-3, 1e-5)
        assert (np.abs(measured[f"after/{name}"] - AFTER[name]) <= bound).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("device", ["CPU", ("CPU:0", "CPU:1")], ids=["one device", "two devices"])
def test_the_form_for_every_device_equals_the_published(device, monkeypatch):
    without_loops(monkeypatch)
    found = measure(device)
    check_loss(found)
    check_gradients(found)
    check_state(found)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("float16", 0.02), pytest.param("bfloat16", 0.15, marks=pytest.mark.slow)],
)
def test_a_lower_precision_gives_nearly_the_same_gradient(dtype, bound):
    check_precision(measure(dtype=dtype), bound)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_a_lower_precision_in_the_form_for_every_device(dtype, bound, monkeypatch):
    without_loops(monkeypatch)
    check_precision(measure(dtype=dtype), bound)


def check_precision(found: dict[str, np.ndarray], bound: float) -> None:
    """The gradient's distance from the published one, as a share of its length; BatchNorm's
    statistics stay as they are in float32, but for their input."""
    names = set(GRADIENTS) - {"seed", "labels", "loss", "grad_norm"}
    wrong = sum(((found[f"grad/{name}"] - GRADIENTS[name]) ** 2).sum() for name in names)
    assert np.sqrt(wrong) <= bound * GRADIENTS["grad_norm"]
    np.testing.assert_allclose(found["loss"], GRADIENTS["loss"], rtol=bound)
    for name, array in found.items():
        if name.endswith(("running_mean", "running_var")):
            expected = AFTER[name.removeprefix("after/")]
            np.testing.assert_allclose(array, expected, rtol=bound, atol=bound, err_msg=name)


def test_a_gradient_that_is_no_number_changes_nothing():
    state = TrainingState(CONFIG, read_tensors(DATA / "nano.pth"), "CPU", weight_decay=0.05)
    programs = Programs(CONFIG, state, 4, 64, "CPU", progress=False)
    before = state.read()
    state.write(before | {"gradient": np.full_like(before["gradient"], np.inf)})
    programs.update(update_schedule(rate=1e-3, step=0, clip=5.0, ema=0.5))
    for name, array in state.read().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
