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
    calm = folder_in(tmp_path, 0)
    began = time.perf_counter()
    finish(calm)
    whole = time.perf_counter() - began
    (expected,) = readable(calm)

    def compare(stormy: Path) -> None:
        finish(stormy)
        (found,) = readable(stormy)
        assert found.untimed() == expected.untimed()
        assert weights(stormy, found) == weights(calm, expected)
        assert not any((stormy / "runs" / CELLS).glob(f"*/{CHECKPOINT}"))
        assert not any(path.name.startswith(".system") for path in (stormy / "runs").rglob("*"))

    rng = random.Random(0)
    stormy, killed, resumable = folder_in(tmp_path, 1), 0, 0
    while killed < KILLS:
        running = start(stormy)
        time.sleep(rng.uniform(0.0, 0.8 * whole))
        running.kill()
        killed += running.wait() == -signal.SIGKILL
        resumable += any((stormy / "runs" / CELLS).glob(f"*/{CHECKPOINT}/*"))
        if readable(stormy):  # it was faster than its killer: another one
            compare(stormy)
            stormy = folder_in(tmp_path, killed + 1)
    compare(stormy)
    assert resumable > KILLS // 4  # or this test has tested little


def folder_in(place: Path, number: int) -> Path:
    folder = place / str(number)
    folder.mkdir()
    return folder
