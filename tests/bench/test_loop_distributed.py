"""Two processes that share a batch give the loss curve of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import passband

SCRIPT = Path(__file__).with_name("distributed.py")
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": str(Path(passband.__file__).parents[1]),
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    # What `accelerate launch` starts on GPUs; on CPUs alone it would want an MPI.
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2",
              "--master_port", str(free_port())]
    for command, name in (([], "one"), (launch, "two")):
        done = subprocess.run(
            [sys.executable, *command, str(SCRIPT), str(tmp_path / name)],
            capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT,
        )
        assert done.returncode == 0, done.stderr
    read = lambda name: json.loads((tmp_path / name).read_text())  # noqa: E731
    one, first, second = read("one.0.json"), read("two.0.json"), read("two.1.json")
    assert first == second  # losses are means over both processes
    assert first["adamw"] == pytest.approx(one["adamw"], rel=1e-9)
    assert first["custom"] == pytest.approx(one["custom"], rel=1e-9)
    assert first["lbfgs"] == pytest.approx(one["lbfgs"], rel=1e-6)
    assert (tmp_path / "two-adamw" / "facts.json").exists()
