"""The mean of the training values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor, System
from passband_fakes.line.system import LineSystem


class AverageSystem(System):
    Config = Config
    presets: ClassVar = {"paper": {}, "small": {}, "smoke": {}}
    verbs = ("predict",)
    needs_fit = False
    weights = np.zeros(2)
    apply_file = LineSystem.apply_file

    def fit(
        self, data: Any, budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        self.weights = np.array([0.0, data.train.y.mean()])
        return {"steps": 1, "selected": "closed form"}

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.full_like(x, self.weights[1])

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self.weights = np.asarray(state["weights"])
