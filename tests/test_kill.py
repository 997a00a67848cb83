"""`passband train` killed again and again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import passband
from passband.bench.report.rows import read_runs
from passband.bench.results import CELLS, CHECKPOINT, RESULTS, SYSTEM, Result, ResultsFile

KILLS = 20
COMMAND = (
    sys.executable, "-m", "passband", "train", "pinn", "--task", "poisson1d-mix",
    "--budget", "400 steps", "--resume", "--json",
)
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(passband.__file__).parents[1]),
}


def start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(COMMAND, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)


def finish(folder: Path) -> None:
    assert start(folder).wait(timeout=600) == 0, (folder / "log").read_text()


def readable(folder: Path) -> list[Result]:
    """The rows; nothing is damaged, for the report neither."""
    rows, damage = ResultsFile(folder / "runs" / RESULTS).scan()
    assert not damage
    assert not [p for p in read_runs(folder / "runs").problems if "left out" in p]
    return rows


def weights(folder: Path, row: Result) -> bytes:
    return (folder / "runs" / row.folder / SYSTEM / "state.safetensors").read_bytes()


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    began = time.perf_counter()
    finish(calm)
    whole = time.perf_counter() - began
    rng = random.Random(0)
    resumed = 0
    for _ in range(KILLS):
        running = start(stormy)
        time.sleep(rng.uniform(0.0, 0.7 * whole))
        running.kill()
        # A run that was faster than its killer left its row, and the next ones have to find it.
        assert running.wait() in (-signal.SIGKILL, 0)
        resumed += any((stormy / "runs" / CELLS).glob(f"*/{CHECKPOINT}/*"))
        assert len(readable(stormy)) <= 1
    finish(stormy)
    (expected,), (found,) = readable(calm), readable(stormy)
    assert resumed > 0  # or this test has tested nothing
    assert found.untimed() == expected.untimed()
    assert found.metrics == expected.metrics and not found.error
    assert weights(stormy, found) == weights(calm, expected)
    assert not any((stormy / "runs" / CELLS).glob(f"*/{CHECKPOINT}"))
    assert not any(path.name.startswith(".system") for path in (stormy / "runs").rglob("*"))
