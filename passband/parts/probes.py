"""Look at a model while it trains: any measurements, every so many steps, kept as rows.

>>> def norm(model, step):
...     return {"norm": model.weight.norm()}
>>> model = nn.Linear(2, 1)
>>> probes = Probes(norm, every=10)
>>> for step in range(30):
...     _ = probes(model, step)                    # one line in any loop
>>> [row["step"] for row in probes.rows], sorted(probes.rows[0])
([0, 10, 20], ['norm', 'step'])
>>> probes.table()["columns"]
['step', 'norm']

A probe is any callable (model, step) -> {name: number or array} over data of its own. It sees the
model in evaluation mode; what it draws at random doesn't move the loop's numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from passband.errors import ConfigError
from passband.parts.modes import evaluating


class Probe(Protocol):
    """One measurement."""

    def __call__(self, model: Any, step: int, /) -> Mapping[str, Any]:
        """Numbers and arrays by name; called in evaluation mode."""


class Probes:
    """Calls probes when their time has come and keeps what they say.

    every  steps between two looks; step 0 is one
    rows   {"step": int, name: float or nested list}, JSON-able; a name that two probes give is a
           `ConfigError`
    """

    def __init__(self, *probes: Probe, every: int = 1) -> None:
        if every < 1:
            raise ConfigError(f"every = {every}", expected="1 step or more")
        self.probes, self.every = probes, every
        self.rows: list[dict[str, Any]] = []

    def __call__(self, model: Any, step: int, *, force: bool = False) -> dict[str, Any] | None:
        """The row of this step, or None where it is not due; `force` looks all the same."""
        if self.rows and self.rows[-1]["step"] == step:
            return None
        if step % self.every and not force:
            return None
        row: dict[str, Any] = {"step": step}
        with torch.random.fork_rng(devices=[]), _evaluating(model):
            for probe in self.probes:
                for name, value in probe(model, step).items():
                    if name in row:
                        raise ConfigError(
                            f"two probes give {name!r}", expected="names of their own",
                            mend="rename one of them",
                        )
                    row[name] = _plain(value)
        self.rows.append(row)
        return row

    def column(self, name: str) -> list[Any]:
        """One name over all rows; None where a row lacks it."""
        return [row.get(name) for row in self.rows]

    def table(self) -> dict[str, list[Any]]:
        """{"columns": names, "rows": values}: what the report shows as a table."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return {"columns": names, "rows": [[row.get(n) for n in names] for row in self.rows]}

    def watching(self, model: Any, monitor: Any = None, inner: Any = None) -> Watching:
        """This as the `state` of `bench.loop.train`; see `Watching`."""
        return Watching(self, model, monitor, inner)


class Watching:
    """Probes inside `bench.loop.train(..., state=probes.watching(model, monitor))`.

    They look before the steps that are due; the rows are part of every checkpoint, so that a
    resumed run has them all.

    monitor  gets the numbers of each row as curves
    inner    another state of the run, which is told and saved as before
    """

    def __init__(self, probes: Probes, model: Any, monitor: Any = None, inner: Any = None) -> None:
        self.probes, self.model, self.monitor, self.inner = probes, model, monitor, inner
        self.steps = 0  # begun so far
        self.began = time.perf_counter()

    def at(self, fraction: float) -> None:
        if self.inner is not None:
            self.inner.at(fraction)
        self._look(self.steps, force=False)
        self.steps += 1

    def finish(self) -> None:
        """A last look, at what the run kept."""
        self._look(self.steps, force=True)

    def _look(self, step: int, force: bool) -> None:
        row = self.probes(self.model, step, force=force)
        if row and self.monitor is not None:
            numbers = {
                n: v for n, v in row.items()
                if n != "step" and isinstance(v, float) and math.isfinite(v)
            }
            self.monitor.log(step, time.perf_counter() - self.began, **numbers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps, "rows": [dict(row) for row in self.probes.rows],
            "inner": self.inner.state_dict() if self.inner is not None else None,
        }

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        if self.inner is not None:
            self.inner.load_state_dict(tree["inner"])
        # The weights of the best validation may be put back at the end of a run: what was seen
        # after them stays seen.
        if not self.steps:
            self.steps, self.probes.rows = tree["steps"], [dict(row) for row in tree["rows"]]


def _evaluating(model: Any) -> Any:
    if isinstance(model, nn.Module):
        return evaluating(model)
    from contextlib import nullcontext

    return nullcontext()


def _plain(value: Any) -> Any:
    """Numbers and nested lists of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
