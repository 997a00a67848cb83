"""The README's Python runs as it stands."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run_in_order():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block.replace("range(100)", "range(2)"), names)
    point = np.array([[0.3, 0.7]])
    assert abs(names["u"](point)[0] - names["wave"](0.3, 0.7)) < 1e-6
    assert names["loss"].isfinite()
