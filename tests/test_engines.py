"""`passband compare` gives the same rows on two processes and on a cluster of two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import passband
from passband.bench.results import RESULTS, SYSTEM, Result, ResultsFile

SYSTEMS = ("gp-hm", "finite-differences", "chebyshev", "pinn")
# In steps, so that the numbers don't depend on the machine's speed.
COMMAND = (
    sys.executable, "-m", "passband", "compare", *SYSTEMS, "--task", "poisson1d-mix",
    "--seeds", "3", "--budget", "20 steps",
)
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(passband.__file__).parents[1]),
}


def compare(runs: Path, *how: str) -> dict[str, Result]:
    done = subprocess.run(
        [*COMMAND, "--runs", str(runs), *how], capture_output=True, text=True, timeout=900,
        check=False, env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert "\n" not in done.stderr.strip()  # at most one tidy warning
    rows = ResultsFile(runs / RESULTS).read()
    assert len(rows) == 3 * len(SYSTEMS)
    return {row.key: row for row in rows}


def files(runs: Path, row: Result) -> dict[str, bytes]:
    folder = runs / row.folder
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
def test_two_processes_and_a_cluster_of_two_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here = compare(tmp_path / "here", "--processes", "2")
    for name, value in ENVIRONMENT.items():  # what the cluster's workers start with
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        there = compare(tmp_path / "there", "--engine", "ray", "--address", cluster.address)
    finally:
        cluster.shutdown()
    assert here.keys() == there.keys()
    for key, row in here.items():
        assert not row.error
        assert there[key].untimed() == row.untimed()
        mine, other = files(tmp_path / "here", row), files(tmp_path / "there", there[key])
        assert mine.keys() == other.keys()
        assert all(mine[name] == other[name] for name in mine if name.startswith(f"{SYSTEM}/"))
