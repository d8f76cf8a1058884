"""Does the network work on this device? One table, to paste into an issue.

The demo's network is folded, compiled and run on the device, and its outputs are compared with the
pure-Python reference, which computes in float64. Then it is trained for a step: the gradient is
compared with the slope of the loss. The tests run the same suite on every device of a machine.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tinygrad import Device

from tinygmf import __version__
from tinygmf.checks.demo import ASSETS, DIGITS_WEIGHTS, SIZE
from tinygmf.checks.verify import TOLERANCES, relative_difference, run_reference
from tinygmf.data.augment import targets
from tinygmf.engine import program_cache
from tinygmf.engine.devices import device_description, open_device
from tinygmf.engine.predictor import Predictor
from tinygmf.engine.probe import list_devices
from tinygmf.image import load_image, normalize, resize_and_crop
from tinygmf.tensors import DTYPES, write_tensor
from tinygmf.training.programs import Programs
from tinygmf.training.state import TrainingState
from tinygmf.training.update import update_schedule
from tinygmf.weights.checkpoint import load_weights

SUITE_SECONDS = 1800  # for one device
BATCH = 4  # pictures in the training step
SLOPE = 1e-3  # largest relative difference between the slope and the gradient


@dataclass(frozen=True)
class Outcome:
    """One check on one device."""

    check: str
    passed: bool | None  # None: not run, and the note says why
    difference: float | None  # the largest from the reference, relative to its largest value
    seconds: float
    note: str

    def __str__(self) -> str:
        state = {True: "passed", False: "FAILED", None: "not run"}[self.passed]
        ratio = "" if self.difference is None else f"{self.difference:.1e}"
        return f"{self.check:26} {state:8} {ratio:>10} {self.seconds:8.2f} s  {self.note}".rstrip()


class NotRun(Exception):
    """A check that cannot run here; the message says why."""


def run_suite(device: str, training: bool = True) -> Iterator[Outcome]:
    """Run every check on the device in turn, even if some fail. The checks of training, whose
    programs may take minutes to compile, can be left out.

    Raises DeviceError if the device does not open.
    """
    suite = Suite(open_device(device))
    for name, check in (suite.checks() | (suite.training_checks() if training else {})).items():
        start = time.perf_counter()
        difference, passed, note = None, None, ""
        try:
            difference, tolerance = check()
            passed = difference <= tolerance
            note = "" if passed else f"more than {tolerance:g}"
        except NotRun as reason:
            note = str(reason)
        except Exception as error:
            passed = False
            note = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:200]}"
        yield Outcome(name, passed, difference, time.perf_counter() - start, note)


class Suite:
    """The checks. Each returns a difference and its tolerance, or raises."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.weights = load_weights(DIGITS_WEIGHTS)
        self.predict = Predictor(self.weights, SIZE, device=device, progress=False)
        paths = sorted((ASSETS / "digits").glob("*.png"))
        self.pictures = [resize_and_crop(load_image(path), SIZE) for path in paths]
        self.classes = [int(path.name[0]) for path in paths]  # a file is CLASS_NUMBER.png

    def checks(self) -> dict[str, Callable[[], tuple[float, float]]]:
        return {
            "logits, float32": self.logits,
            "feature maps, float32": self.features,
            "the demo's twelve digits": self.digits,
            "the same bits again": self.repeated,
            "the program from the cache": self.cached,
            "logits, float16": self.half,
        }

    def training_checks(self) -> dict[str, Callable[[], tuple[float, float]]]:
        return {
            "a gradient, by the slope": self.slope,
            "the same gradient again": self.same_gradient,
            "the loss after a step": self.step,
        }

    def logits(self) -> tuple[float, float]:
        return relative_difference(self._outputs(0)[-1], self._expected[-1]), TOLERANCES["float32"]

    def features(self) -> tuple[float, float]:
        found = self._outputs(0)[:-1]
        return max(map(relative_difference, found, self._expected[:-1])), TOLERANCES["float32"]

    def digits(self) -> tuple[float, float]:
        """The share of wrong answers."""
        answers = [int(self._outputs(i)[-1].argmax()) for i in range(len(self.pictures))]
        return float(np.mean(np.not_equal(answers, self.classes))), 0

    def repeated(self) -> tuple[float, float]:
        first, second = self._outputs(0), self._outputs(0)
        return max(map(relative_difference, first, second)), 0

    def cached(self) -> tuple[float, float]:
        """The program, loaded again without compiling, returns the same bits."""
        first = self._outputs(0)[-1]
        key, (x, weights) = self.predict.key, self.predict.arguments()
        program = program_cache.load_or_compile(key, _must_not_run, device=self.device)
        write_tensor(x, normalize(self.pictures[0])[None])
        return relative_difference(program(x, weights)[-1].numpy()[0], first), 0

    def half(self) -> tuple[float, float]:
        if DTYPES["float16"] not in Device[self.device].renderer.supported_dtypes():
            raise NotRun("the device has no float16")
        predict = Predictor(self.weights, SIZE, dtype="float16", device=self.device, progress=False)
        return relative_difference(
            predict(normalize(self.pictures[0]))[0], self._expected[-1]
        ), TOLERANCES["float16"]

    def slope(self) -> tuple[float, float]:
        """How far the slope of the loss along the gradient is from the gradient's length."""
        _, gradient = self._gradient(self._flat_weights)
        length = float(np.linalg.norm(gradient))
        way = gradient * np.float32(0.01 / length**2)  # the loss should change by 0.01
        up, down = (self._gradient(self._flat_weights + sign * way)[0] for sign in (1, -1))
        return abs((up - down) / 0.02 - 1), SLOPE

    def same_gradient(self) -> tuple[float, float]:
        first, second = (self._gradient(self._flat_weights)[1] for _ in range(2))
        return relative_difference(first, second), 0

    def step(self) -> tuple[float, float]:
        """The relative change of the loss, which must fall."""
        before, _ = self._gradient(self._flat_weights)
        self._programs.update(update_schedule(rate=1e-4, step=0, clip=1.0, ema=0.0))
        after, _ = self._gradient(self._state["weights"].numpy())
        return after / before - 1, -1e-3

    def _gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss of four digits that are labeled as the next one, and its gradient."""
        self._state.restart(self.weights.arrays)
        write_tensor(self._state["weights"], weights)
        wrong = (np.array(self.classes[:BATCH]) + 1) % 10
        loss = self._programs.gradient(
            1,
            np.stack([normalize(picture) for picture in self.pictures[:BATCH]]),
            targets(wrong, 10, 0.1),
            np.ones((2 * sum(self.weights.config.serial_depths), BATCH), np.float32),
        )
        return loss, self._state["gradient"].numpy().copy()

    @cached_property
    def _state(self) -> TrainingState:
        return TrainingState(self.weights.config, self.weights.arrays, self.device)

    @cached_property
    def _programs(self) -> Programs:
        config = self.weights.config
        return Programs(config, self._state, BATCH, SIZE, self.device, progress=False)

    @property
    def _flat_weights(self) -> np.ndarray:
        return self._state.layout.weights.join(self.weights.arrays)

    @cached_property
    def _expected(self) -> list[np.ndarray]:
        return run_reference(self.weights, self.pictures[0])

    def _outputs(self, picture: int) -> list[np.ndarray]:
        """The four maps and the logits of one of the pictures."""
        found = self.predict.outputs(normalize(self.pictures[picture])[None])
        return [output[0] for output in found]


def _must_not_run(*_: object) -> None:
    raise RuntimeError("it was compiled again")


# The table


def print_suites(names: list[str] | None = None) -> bool:
    """Run the suite in a process for each device (by default all that work here) and print one
    table; True if nothing failed."""
    print(
        f"tinygmf {__version__}, tinygrad {version('tinygrad')}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    reports = list_devices()
    good = True
    for name in names or [report.name for report in reports if report.available]:
        print(f"\n{name}", flush=True)
        good &= _run_in_process(name)
    return good


def _run_in_process(name: str) -> bool:
    """Run one device's suite where a driver that hangs or crashes does no harm."""
    command = [sys.executable, "-P", "-m", "tinygmf.checks.device_suite", name]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=SUITE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            print(f"  no answer in {SUITE_SECONDS} s")
    for line in output.splitlines():
        print(f"  {line}")
    return process.returncode == 0


def main(arguments: list[str]) -> int:
    """Print one device's outcomes; return 1 if any failed."""
    device = open_device(arguments[0])
    print(device_description(device), flush=True)
    failed = False
    for outcome in run_suite(device):
        print(outcome, flush=True)
        failed |= outcome.passed is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
