"""A few of the faults of kill_at_random.py, which injects hundreds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from process import environment

SCRIPT = Path(__file__).with_name("tools") / "kill_at_random.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("kills", "training"), [(4, 0), pytest.param(100, 60, marks=pytest.mark.slow)]
)
def test_nothing_is_lost_when_a_process_dies_or_runs_out(kills, training):
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--training", str(training)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("survived") >= 6
    assert done.stdout.count("nothing lost") == (3 if training else 2)
