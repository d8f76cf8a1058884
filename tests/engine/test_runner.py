"""The native runner: the same answer with any number of threads, and without it."""

import os
import sys

import numpy as np
import pytest
from parity import DATA
from strategies import normal

from tinygmf import Predictor, load_model
from tinygmf.engine import runner
from tinygmf.loops import pieces

PICTURES, OTHERS = normal(0, 1, 3, 64, 64), normal(1, 1, 3, 64, 64)


@pytest.fixture(scope="module")
def predict():
    """Nano, its kernels cut into three pieces each: rows of tiles are no multiple of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "available_cores", lambda: 3)
        predict = Predictor(load_model(DATA / "nano.pth"), 64, device="CPU", progress=False)
        predict.run(PICTURES)
        yield predict


@pytest.fixture(scope="module")
def whole():
    """The logits of kernels that are not cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "available_cores", lambda: 1)
        model = load_model(DATA / "nano.pth")
        return Predictor(model, 64, device="CPU", progress=False).run(PICTURES)


def test_large_kernels_are_cut_and_small_ones_are_not(predict):
    counts = {len(kernel.pieces) for kernel in predict._launcher.kernels}
    assert {1, 3} <= counts <= {1, 2, 3}


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_answer_of_whole_kernels_bit_by_bit(
    predict, whole, threads, monkeypatch
):
    monkeypatch.setattr(runner, "thread_count", lambda: threads)
    for _ in range(15):
        assert not (predict.run(OTHERS) == whole).any()
        assert (predict.run(PICTURES) == whole).all()


def test_a_thread_that_comes_late_to_a_run_takes_no_piece_of_the_next(predict, whole, monkeypatch):
    monkeypatch.setattr(runner, "thread_count", lambda: 1)
    run = predict._launcher.run
    predict.run(PICTURES)
    run.take_part(run.runs, 1, 2)  # as a helper would that slept through the run
    run.take_part(run.runs - 1, 1, 2)
    assert (predict.run(PICTURES) == whole).all()


def test_where_the_runner_cannot_be_compiled_python_calls_every_piece(predict, whole, monkeypatch):
    monkeypatch.setattr(runner, "native", lambda: None)
    launch = predict._launcher
    monkeypatch.setattr(launch, "run", runner.runner_of(launch.kernels))
    assert not isinstance(launch.run, runner.Runner)
    assert (predict.run(PICTURES) == whole).all()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_helpers_of_its_own(predict, whole, monkeypatch):
    monkeypatch.setattr(runner, "thread_count", lambda: 2)
    predict.run(PICTURES)
    if (child := os.fork()) == 0:
        equal = (predict.run(PICTURES) == whole).all()
        os._exit(0 if equal and len(runner.helpers) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.isfinite(predict.run(PICTURES)).all()
