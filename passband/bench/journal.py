"""Curves of a run: means over windows of steps, rows on the way to the monitor.

>>> journal = Journal(NullMonitor())
>>> journal.record({"loss": torch.tensor(3.0)})
>>> journal.record({"loss": torch.tensor(1.0)})
>>> journal.close(step=2, seconds=0.1, lr=1e-3)
>>> journal.rows
[{'step': 2, 'seconds': 0.1, 'loss': 2.0, 'lr': 0.001}]

Values stay on their device until a window is closed, so that steps need not wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from passband.bench.system import Monitor
from passband.errors import PassbandError

Row = dict[str, float]


class Journal:
    """Rows since the start of the run, and the window that is still open.

    monitor  receives each row; None in all processes but the first
    mean     over processes, of a 1-D tensor
    hint     how to mend a loss that is no finite number
    """

    def __init__(
        self, monitor: Monitor | None, mean: Callable[[Tensor], Tensor] | None = None,
        hint: str = "",
    ) -> None:
        self.monitor, self.mean, self.hint = monitor, mean, hint
        self.rows: list[Row] = []
        self.window: dict[str, Any] = {}
        self.count = 0

    def record(self, values: Mapping[str, Any]) -> None:
        """Add one step's values, floats or 0-d tensors."""
        self.count += 1
        for name, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self.window[name] = self.window.get(name, 0.0) + value

    def close(self, step: int, seconds: float, **more: float) -> None:
        """Make a row of the window's means; raises `PassbandError` when the loss is not finite."""
        if not self.count:
            return
        values = self.check(step)
        self.window, self.count = {}, 0
        self.add(step, seconds, {**values, **more})

    def check(self, step: int) -> Row:
        """Means over the window and all processes; raises when the loss is not finite."""
        if not self.count:
            return {}
        means = torch.tensor([float(v) for v in self.window.values()], dtype=torch.float64)
        means = self.mean(means / self.count) if self.mean else means / self.count
        values = dict(zip(self.window, means.tolist(), strict=True))
        for name in ("loss",) if "loss" in values else values:
            if not math.isfinite(values[name]):
                raise PassbandError(
                    f"{name} = {values[name]} by step {step}", expected="a finite number",
                    mend=self.hint,
                )
        return values

    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self.rows.append({"step": step, "seconds": seconds, **values})
        if self.monitor:
            self.monitor.log(step, seconds, **values)

    @property
    def latest(self) -> Row:
        """The last value of everything that was ever logged."""
        merged = {name: value for row in self.rows for name, value in row.items()}
        return {n: v for n, v in merged.items() if n not in ("step", "seconds")}

    def state(self) -> dict[str, Any]:
        window = {name: float(value) for name, value in self.window.items()}
        return {"rows": self.rows, "window": window, "count": self.count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        # The earlier rows are not sent again: the engine's monitor keeps them over a resume.
        self.rows, self.window, self.count = state["rows"], state["window"], state["count"]
