"""A run that is killed at random moments, also while saving, ends with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import passband

SCRIPT = Path(__file__).with_name("killed.py")
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(passband.__file__).parents[1]),
}


@pytest.mark.parametrize(
    ("kills", "optimizer"),
    [
        (5, "adamw"),
        (5, "adamw+state"),
        pytest.param(20, "adamw", marks=pytest.mark.slow),
        pytest.param(20, "adamw+state", marks=pytest.mark.slow),
        pytest.param(20, "lbfgs", marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_alike(tmp_path, kills, optimizer):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(kills), optimizer],
        capture_output=True, text=True, timeout=600, check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["equal"] and facts["killed"] == kills and facts["went_on"] > 0
    if kills >= 20:
        assert facts["saving"] > 0  # or the test did not test what it says
