"""Nothing grows, and the same seed gives the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import long_run
import numpy as np
import pytest
from tinygrad.nn.state import get_state_dict

from tinygmf import GroupMixFormer
from tinygmf.config import VARIANTS
from tinygmf.predictor import Predictor

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("predictions", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_predictions_leave_memory_and_open_files_as_they_were(predictions):
    memory, files = long_run.run(predictions, "CPU")
    assert memory <= long_run.MEGABYTES and files <= 0


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    config = VARIANTS["groupmixformer_nano"]
    first, again, other = (
        {key: tensor.numpy() for key, tensor in get_state_dict(GroupMixFormer(config, s)).items()}
        for s in (0, 0, 1)
    )
    assert all(first[key].tobytes() == again[key].tobytes() for key in first)
    assert any(first[key].tobytes() != other[key].tobytes() for key in first)


def test_another_process_gives_the_same_logits_bit_by_bit(tmp_path):
    code = """
import sys, numpy as np
from test_long_run import logits
sys.stdout.write(logits().tobytes().hex())
"""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]  # compiled anew: its cache is empty
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == logits().tobytes().hex()


def logits() -> np.ndarray:
    picture = np.random.default_rng(0).standard_normal((3, 32, 32), dtype=np.float32)
    model = GroupMixFormer(VARIANTS["groupmixformer_nano"], seed=0)
    return Predictor(model, 32, device="CPU", progress=False)(picture)
