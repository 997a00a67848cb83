"""Jobs for the verb `measure`: predict the errors of ridge regressions that are then made.

    data     Data of Regression: train is what the system sees, test what the regressions are on
    read     .npz with x and y, as the system reads it itself

A system that enters has `family(x)`, a kernel with its random features, and `measure()`, whose
report predicts errors in shares of the targets' variance for n samples, k features and a ridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passband.bench.system import System
from passband.bench.task import Artifact, Data, Metric, Size, Task

if TYPE_CHECKING:
    import numpy as np

_METRICS = (
    Metric("prediction_error", "%", "lower", about="mean |predicted / measured - 1|, test errors"),
    Metric("worst_error", "%", "lower", about="the largest of them"),
    Metric("regret", "%", "lower", about="error at the predicted best ridge above the least one"),
    Metric("fitting_ratio", "", "lower", about="train / test error at the predicted best ridge"),
)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
TESTS = 600  # images to measure on: of fewer, the mean of squared errors is itself uncertain
DRAWS = {"full": 20, "small": 8, "smoke": 2}  # of training sets and features


@dataclass(frozen=True, eq=False)
class Regression:
    """x [N, ...]; y [N, C] real numbers or [N] classes."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Held:
    """What the regressions are judged on, how many are made, and the seed of their draws."""

    part: Regression
    draws: int
    seed: int


class RiskTask(Task):
    """Digits as +-1 for even and odd, the seed draws 600 to measure on, with noise on all targets.

    noise  its variance; the targets' own is 1
    """

    family, verb, version, metrics = "dynamics", "measure", 1, _METRICS
    pareto = (("prediction_error", "seconds"),)

    def __init__(self, name: str, summary: str, noise: float) -> None:
        self.name, self.summary, self._noise = name, summary, noise

    def data(
        self, seed: int = 0, size: Size = "small", model: Path | None = None
    ) -> Data[Regression]:
        import numpy as np

        from passband.data.digits import digits

        whole = digits()
        parts = (whole.train, whole.valid, whole.test)
        x = np.concatenate([p.images.flatten(1).double().numpy() for p in parts])
        signs = np.concatenate([np.where(p.labels.numpy() % 2, 1.0, -1.0) for p in parts])
        rng = np.random.default_rng([seed, 2311])
        y = (signs + self._noise**0.5 * rng.standard_normal(len(signs)))[:, None]
        order = rng.permutation(len(x))
        kept, held_out = order[TESTS:], order[:TESTS]
        kept = kept[:300] if size == "smoke" else kept
        test = Held(Regression(x[held_out], y[held_out]), DRAWS[size], seed)
        return Data(train=Regression(x[kept], y[kept]), test=test, name=self.name)

    def read(self, path: Path, model: Path | None = None) -> Data[Regression]:
        import numpy as np

        from passband.errors import DataError

        try:
            with np.load(path, allow_pickle=False) as file:
                return Data(train=Regression(file["x"], file["y"]), name=self.name)
        except (ValueError, OSError, KeyError) as error:
            raise DataError(
                f"{path} can't be read: {error}", expected=".npz with x and y",
                mend="np.savez('data.npz', x=x, y=y)",
            ) from None

    def evaluate(self, system: System, data: Data[Regression]) -> dict[str, float]:
        if data.test is None:
            return {}
        import numpy as np

        grid, apart = _compare(system, data)
        best = [_at_ridge(one["predicted"], one["measured"]) for one in grid]
        report: Any = system.measure()  # type: ignore[attr-defined]
        return {
            "prediction_error": 100 * float(np.abs(apart).mean()),
            "worst_error": 100 * float(np.abs(apart).max()),
            "regret": 100 * float(np.mean(best)),
            "fitting_ratio": float(report.fitting_ratio),
        }

    def artifacts(self, system: System, data: Data[Regression], folder: Path) -> list[Artifact]:
        written = system.write(system.measure(), folder, source=self.name)  # type: ignore[attr-defined]
        page = next(path for path in written if path.suffix == ".html")
        return [Artifact("page", "What more data, features or less ridge would give", page.name)]


def _at_ridge(predicted: Any, measured: Any) -> float:
    """How much more than the least measured error the ridge that was predicted to be best gives."""
    return float(measured[predicted.argmin()] / measured.min() - 1)


def _compare(system: Any, data: Data[Regression]) -> tuple[list[dict[str, Any]], Any]:
    """Predicted and measured test errors [R] of every (n, k), and how far they are apart."""
    import numpy as np

    from passband.dynamics.ridge_regression import feature_errors, kernel_errors

    held: Held = data.test
    test = held.part
    # One scale for all: what the system does to its inputs is a matter of its training part.
    x, y = np.asarray(data.train.x), np.asarray(data.train.y)
    mean, spread = x.mean(), x.std()
    inputs, held_out = (x - mean) / spread, (test.x - mean) / spread
    family, report = system.family(inputs), system.measure()
    grid = []
    for n in (len(x) // 16, len(x) // 4):
        for k in (32, 256, 2048, np.inf):
            found = []
            for draw in range(held.draws):
                rng = np.random.default_rng([held.seed, draw])
                chosen = rng.permutation(len(x))[:n]
                centre = y[chosen].mean(0)
                targets, wanted = y[chosen] - centre, test.y - centre
                if np.isinf(k):
                    near, far = inputs[chosen], held_out
                    found.append(kernel_errors(
                        family.gram(near, near), targets, family.gram(far, near), wanted, RIDGES
                    )[0])
                    continue
                drawn = family.features(np.concatenate([inputs[chosen], held_out]), k, rng)
                found.append(feature_errors(drawn[:n], targets, drawn[n:], wanted, RIDGES)[0])
            predicted = report.predict(n, k, RIDGES).test * report.variance
            grid.append({"n": n, "k": k, "predicted": predicted, "measured": np.mean(found, 0)})
    apart = np.array([one["predicted"] / one["measured"] - 1 for one in grid])
    return grid, apart


_ALL = (
    RiskTask("digits-risk", "predict test errors of regressions on even and odd digits", 0.0),
    RiskTask("digits-risk-noisy", "the same with targets of as much noise as signal", 1.0),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
