"""The Python of the README and of the pages in docs runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if not p.stem.endswith("-claims"))


def blocks_of(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks_of(page):
        exec(block, names)
    assert names


def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = blocks_of(README)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block.replace("range(100)", "range(2)"), names)
    point = np.array([[0.3, 0.7]])
    assert abs(names["u"](point)[0] - names["wave"](0.3, 0.7)) < 1e-6
    assert names["loss"].isfinite()
