"""Gradient descent with checkpoints, and ways to fail on demand."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor, NullMonitor, System
from passband.errors import DataError, PassbandWarning


class LineConfig(Config):
    steps: int = Field(30, ge=1, description="steps of gradient descent")
    pause: float = Field(0.0, ge=0, description="seconds of sleep per step")
    look: float = Field(0.0, ge=0, description="seconds that predict sleeps")
    memory: int = Field(0, ge=0, description="bytes that fit fills for a moment")
    warn: str = Field("", description="warning to give")
    fail: Literal["", "error", "nan", "singular", "crash"] = Field("", description="how to fail")
    fail_seed: int = Field(-1, description="only with this seed; -1: with every one")


class LineSystem(System):
    Config = LineConfig
    presets: ClassVar = {"paper": {"steps": 300}, "small": {}, "smoke": {"steps": 5}}
    verbs = ("predict",)

    def __init__(self, config: Any = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        # From the global stream on purpose: the engine has to make this deterministic.
        self.weights = np.random.normal(size=2)

    def fit(
        self, data: Any, budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        assert data.test is None, "fit sees the test part"
        monitor = monitor or NullMonitor()
        meter, first = budget.start(), self._restore()
        if self.config.warn:
            warnings.warn(self.config.warn, PassbandWarning, stacklevel=2)
        if self.config.fail and self.config.fail_seed in (-1, self.seed):
            self._fail()
        block = np.ones(self.config.memory, dtype=np.uint8)
        time.sleep(0.05 if len(block) else 0)
        del block
        x, y = data.train.x, data.train.y
        steps = budget.steps or self.config.steps
        for step in range(first + 1, steps + 1):
            gap = self.weights[0] * x + self.weights[1] - y
            self.weights = self.weights - 0.3 * np.array([np.mean(gap * x), np.mean(gap)])
            time.sleep(self.config.pause)
            meter.spend()
            monitor.log(step, meter.seconds, loss=float(np.mean(gap**2)))
            monitor.progress(step / steps, f"step {step}")
            if step % 10 == 0:
                monitor.test_error(self)
            self._checkpoint(step)
        return {"steps": steps, "selected": "last", "residual": np.float64(np.mean(gap**2))}

    def _fail(self) -> None:
        if self.config.fail == "error":
            raise DataError("the data are not to my taste", expected="others")
        if self.config.fail == "singular":
            np.linalg.inv(np.zeros((2, 2)))
        if self.config.fail == "crash":
            raise TypeError("a defect in code")
        self.weights = np.full(2, np.nan)

    def _checkpoint(self, step: int) -> None:
        if self.checkpoints is not None:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            new = self.checkpoints / "new"
            new.write_text(json.dumps([step, *self.weights]))
            new.replace(self.checkpoints / "state.json")

    def _restore(self) -> int:
        path = None if self.checkpoints is None else self.checkpoints / "state.json"
        if path is None or not self.resume or not path.exists():
            return 0
        step, *weights = json.loads(path.read_text())
        self.weights = np.array(weights)
        return int(step)

    def predict(self, x: np.ndarray) -> np.ndarray:
        time.sleep(self.config.look)
        return self.weights[0] * x + self.weights[1]

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)
        np.savetxt(out / "y.txt", self.predict(np.loadtxt(path)))
        return [out / "y.txt"]

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self.weights = np.asarray(state["weights"])
