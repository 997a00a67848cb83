"""Fit noisy points on a line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from passband.bench.task import Artifact, Data, Metric, Task
from passband.errors import DataError


@dataclass(frozen=True)
class Points:
    x: np.ndarray
    y: np.ndarray


class Line(Task):
    name = "fakes-line"
    family = "signals"
    verb = "predict"
    summary = "points on a line with noise"
    metrics = (
        Metric("mse", "", "lower", log=True),
        Metric("r2", "", "higher"),
    )

    def data(self, seed: int = 0, size: str = "small") -> Data[Points]:
        rng = np.random.default_rng(seed)
        slope, shift = 1 + rng.random(2)
        x = rng.uniform(-1, 1, 60)
        y = slope * x + shift + 0.1 * rng.normal(size=60)
        return Data(Points(x[:40], y[:40]), test=Points(x[40:], y[40:]))

    def read(self, path: Path) -> Data[Points]:
        try:
            x, y = np.loadtxt(path, delimiter=",", unpack=True)
        except ValueError as error:
            raise DataError(f"{path}: {error}", expected="two columns of numbers") from None
        return Data(Points(x, y))

    def evaluate(self, system: Any, data: Data[Points]) -> dict[str, float]:
        if data.test is None:
            return {}
        np.random.random(3)  # an evaluation that draws from the global stream
        gap = system.predict(data.test.x) - data.test.y
        mse = float(np.mean(gap**2))
        return {"mse": mse, "r2": 1 - mse / float(np.var(data.test.y))}

    def artifacts(self, system: Any, data: Data[Points], folder: Path) -> list[Artifact]:
        table = {"columns": ["slope", "shift"], "rows": [list(map(float, system.weights))]}
        (folder / "weights.json").write_text(json.dumps(table))
        return [Artifact("table", "weights", "weights.json")]


class Shifted(Line):
    """The user's model is a folder with a number that is added to all points."""

    name = "fakes-shifted"
    summary = "points on a line that a model shifts"
    takes_model = True
    pareto = (("seconds", "mse"), ("r2", "mse"))

    def data(
        self, seed: int = 0, size: str = "small", model: Path | None = None
    ) -> Data[Points]:
        return self._shifted(super().data(seed, size), model)

    def read(self, path: Path, model: Path | None = None) -> Data[Points]:
        return self._shifted(super().read(path), model)

    def _shifted(self, data: Data[Points], model: Path | None) -> Data[Points]:
        if model is None:
            return data
        shift = float((model / "shift.txt").read_text())
        parts = {
            name: Points(part.x, part.y + shift)
            for name, part in (("train", data.train), ("test", data.test)) if part is not None
        }
        return replace(data, **parts)


TASKS = {task.name: task for task in (Line(), Shifted())}
