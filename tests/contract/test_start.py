"""What has to answer at once imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "numpy", "scipy", "pydantic", "matplotlib", "accelerate", "transformers"]
PROBE = """
import json, sys
from passband.cli.app import app
try:
    app(sys.argv[1:], prog_name="passband")
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write("\\n" + json.dumps([m for m in {heavy} if m in sys.modules]))
"""


def loaded(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    assert done.stdout.strip()
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize("arguments", [
    ("list",), ("list", "--json"), ("list", "--baselines", "--family", "pde"), ("--help",),
    ("train", "--help"), ("--version",),
], ids=" ".join)
def test_nothing_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    assert loaded(*arguments) == []


def test_importing_the_library_loads_nothing_heavy() -> None:
    code = "import passband, sys; passband.__dir__(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
