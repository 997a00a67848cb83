"""rf-eigen as a system: what more data, more features or less ridge would give a user's task.

>>> x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
>>> system = create("rf-eigen", preset="smoke")
>>> report = system.measure(x, x[:, 0] * x[:, 1])
>>> len(report.sentences()), bool(report.predict(n=1000).test < report.predict(n=100).test)
(6, True)

    passband apply rf-eigen data.npz -o out/              x and y, or kernel and y: report.html
    passband apply rf-eigen data.npz --set kernel=gaussian
    passband train rf-eigen --task digits-risk            its predictions against real regressions
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from passband.bench.budget import Budget
from passband.bench.results import write_atomic
from passband.bench.system import Config, Monitor, NullMonitor, System
from passband.bench.task import Data
from passband.dynamics.random_features import Kernel, kernel, median_distance
from passband.dynamics.rf_eigen.checks import check_kernel
from passband.dynamics.rf_eigen.estimate import Check
from passband.dynamics.rf_eigen.files import Targets, as_inputs, as_targets, read
from passband.dynamics.rf_eigen.report import Report, Row, recommend
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError


class RFEigenConfig(Config):
    """The kernel, how targets are read, and how much is measured."""

    kernel: Literal["arc-cosine", "relu-ntk", "gaussian", "laplace", "linear"] = Field(
        "arc-cosine", description="arc-cosine: random ReLU features; relu-ntk: wide ReLU network"
    )
    depth: int = Field(2, gt=0, le=100, description="hidden layers of relu-ntk")
    length: float | None = Field(
        None, gt=0, description="scale of gaussian and laplace; null: the median distance"
    )
    normalise: Literal["global", "columns", "none"] = Field(
        "global", description="inputs by one mean and deviation of all, or of each column"
    )
    targets: Targets = Field(
        "auto", description="classes become one-hot rows; auto: integers and text are classes"
    )
    most: int = Field(
        2000, ge=60, description="points used at most, drawn at random: time grows as their cube"
    )
    trials: int = Field(4, gt=0, description="random orders in which errors are measured")
    test_share: float = Field(
        0.2, gt=0, le=0.5, description="of the points, held out in each order"
    )
    widths: tuple[int, ...] = Field(
        (64, 512), description="numbers of real random features that are measured"
    )


class RFEigen(System):
    """
    >>> system = RFEigen.from_preset("smoke", kernel="laplace")
    """

    Config: ClassVar[type[Config]] = RFEigenConfig
    verbs: ClassVar[tuple[str, ...]] = ("measure",)
    needs_fit: ClassVar[bool] = False  # it measures what it is given
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"kernel": "relu-ntk", "depth": 10, "most": 50_000, "trials": 5},
        "small": {},
        "smoke": {"most": 200, "trials": 2, "widths": (32,)},
    }
    _report: Report | None = None

    # ---- measure ---------------------------------------------------------------------------

    def measure(
        self, x: Any = None, y: Any = None, *, kernel: Any = None, monitor: Monitor | None = None
    ) -> Report:
        """What is to be expected of a task: `Report` with sentences, rows and `predict`.

        x       [N, ...] inputs, N at least 50;  y [N] or [N, C] targets or classes
        kernel  [N, N] in place of x: a kernel matrix of your own
        Without arguments: the report of what `fit` has seen. Raises `DataError` for NaN, unequal
        lengths, too few points, constant targets, and for what is no kernel matrix.
        """
        if x is None and kernel is None:
            if self._report is None:
                raise DataError("nothing to measure", expected="x and y, or kernel and y",
                                mend="or fit(data) first")
            return self._report
        if y is None or (x is not None and kernel is not None):
            raise DataError(
                "y is missing" if y is None else "both x and kernel are given",
                expected="x and y, or kernel and y",
            )
        monitor = monitor or NullMonitor()
        targets = as_targets(y, self.config.targets)
        inputs = as_inputs(x, self.config.normalise) if x is not None else None
        gram = check_kernel(kernel) if kernel is not None else None
        count = len(inputs) if inputs is not None else len(gram)  # type: ignore[arg-type]
        if len(targets) != count:
            raise DataError(f"{len(targets)} targets for {count} points",
                            expected="one for each point")
        chosen, notes = self._chosen(count)
        monitor.progress(0.05, "kernel")
        if inputs is not None:
            inputs = inputs[chosen]
            family = self.family(inputs)
            gram, features, name = family.gram(inputs, inputs), family.features, self.config.kernel
        else:
            assert gram is not None
            gram, features, name = gram[np.ix_(chosen, chosen)], None, "given"
        monitor.progress(0.1, "regressions")
        c = self.config
        report = recommend(
            gram, targets[chosen], x=inputs, features=features, name=name, trials=c.trials,
            test_share=c.test_share, widths=c.widths, seed=self.seed,
        )
        monitor.progress(1.0)
        return replace(report, notes=(*notes, *report.notes))

    def family(self, inputs: np.ndarray) -> Kernel:
        """The configured kernel; scales that are not set follow from the inputs [N, d]."""
        c = self.config
        needs_length = c.kernel in ("gaussian", "laplace") and c.length is None
        length = median_distance(inputs) if needs_length else (c.length or 1.0)
        return kernel(c.kernel, depth=c.depth, length=length)

    def _chosen(self, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
        most = self.config.most
        if count <= most:
            return np.arange(count), ()
        rng = np.random.default_rng(self.seed)
        note = f"{most:,} of {count:,} points were drawn at random: `most` sets how many are used"
        return np.sort(rng.permutation(count)[:most]), (note,)

    # ---- the engine's verbs ------------------------------------------------------------------

    def fit(
        self, data: Data[Any], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        """Measure `data.train` (fields x and y); `measure()` then gives the report.

        There is nothing to iterate: the budget is not used.
        """
        self._report = self.measure(data.train.x, data.train.y, monitor=monitor)
        return {"steps": 0, "selected": "closed form", "advice": self._report.advice}

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Writes report.html, report.json, pictures and spectrum.npz; of a spectrum surface.csv."""
        from passband.dynamics.rf_eigen.surface import table

        subject = read(path)
        if subject.spectrum is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "surface.csv", table(subject.spectrum).encode())
            return [out / "surface.csv"]
        report = self.measure(subject.x, subject.y, kernel=subject.kernel, monitor=monitor)
        return self.write(report, out, source=path.name)

    def write(self, report: Report, out: Path, source: str = "data") -> list[Path]:
        """The report as a page, as JSON, as pictures and as a spectrum."""
        from passband.dynamics.rf_eigen.page import write_page
        from passband.dynamics.rf_eigen.pictures import draw

        out.mkdir(parents=True, exist_ok=True)
        pictures = draw(report, out)
        page = write_page(out / "report.html", report, pictures, source)
        facts = json.dumps({"source": source, **report.to_json()}, indent=1, allow_nan=False)
        write_atomic(out / "report.json", facts.encode())
        return [page, out / "report.json", *pictures, _write_spectrum(report, out / "spectrum.npz")]

    # ---- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        if self._report is None:
            return {}
        spectrum = self._report.spectrum
        return {name: getattr(spectrum, name) for name in ("eigenvalues", "power", "counts")}

    def extra(self) -> dict[str, Any]:
        if self._report is None:
            return {}
        plain = {n: v for n, v in self._report.__dict__.items()
                 if n not in ("spectrum", "data", "features", "checks")}
        # JSON has no infinity: null is a kernel without a limit of features.
        rows = {
            n: [[None if v == np.inf else v for v in row.__dict__.values()]
                for row in getattr(self._report, n)]
            for n in ("data", "features", "checks")
        }
        return {"report": json.loads(json.dumps(plain | rows))}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        if "report" not in extra:
            return
        facts = dict(extra["report"])
        kinds = {"data": Row, "features": Row, "checks": Check}
        rows = {
            n: tuple(kind(*(np.inf if v is None else v for v in row)) for row in facts.pop(n))
            for n, kind in kinds.items()
        }
        plain = {n: tuple(map(_tuple, v)) if isinstance(v, list) else v for n, v in facts.items()}
        spectrum = Spectrum(
            np.asarray(state["eigenvalues"]), np.asarray(state["power"]), facts["noise"],
            np.asarray(state["counts"]),
        )
        self._report = Report(**plain, **rows, spectrum=spectrum)

    def parameter_count(self) -> int:
        """Nothing is learned but the spectrum's numbers."""
        return sum(int(array.size) for array in self.state().values())


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _write_spectrum(report: Report, path: Path) -> Path:
    import io

    buffer = io.BytesIO()
    spectrum = report.spectrum
    np.savez(buffer, eigenvalues=spectrum.eigenvalues, power=spectrum.power,
             noise=spectrum.noise, counts=spectrum.counts)
    write_atomic(path, buffer.getvalue())
    return path
