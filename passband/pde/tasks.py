"""Jobs of the PDE family: solve a stated problem, be measured at points never used in solving.

The cases of the paper's table are deterministic: every seed gives the same problem. The tasks
named `*-random` draw a new multi-scale solution per seed, so that claims can be judged on
equations nobody looked at.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from passband.bench.budget import Budget
from passband.bench.system import Monitor, NullMonitor, System
from passband.bench.task import Artifact, Data, Metric, Size, Task
from passband.data.pde import Problem, read_problem
from passband.errors import DataError

Array = np.ndarray


@dataclass(frozen=True)
class Truth:
    """Uniform test axes (never the solver's grid) and the exact solution on them.

    `exact` is the same as a function, where it is known: for pictures that look closer.
    """

    axes: tuple[Array, ...]
    values: Array
    exact: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Solution:
    """What `solve` returns: u on the solver's grid, and anywhere else by calling it.

    >>> solution(np.array([[0.1], [0.2]])).shape
    (2,)
    """

    axes: tuple[Array, ...]
    values: Array
    report: dict[str, Any]
    solver: Solver

    def __call__(self, points: Array) -> Array:
        """u at scattered points [N, d] (or [N] in one dimension) -> [N]."""
        return self.solver.solution(_points(points, self.axes))


class Solver(System):
    """Base of every system with the verb `solve`.

    A subclass gives `_solve`, `axes`, `values` (its grid and u on it), `solution_on`, `solution`.
    """

    verbs = ("solve",)
    needs_fit = False
    axes: tuple[Array, ...] = ()
    values: Array

    @abstractmethod
    def _solve(self, problem: Problem, budget: Budget, monitor: Monitor) -> dict[str, Any]:
        """Solve and keep the solution; returns the report of `fit`."""

    @abstractmethod
    def solution_on(self, axes: tuple[Array, ...]) -> Array:
        """u on a tensor grid -> [n1, ..., nd]."""

    @abstractmethod
    def solution(self, points: Array) -> Array:
        """u at scattered points [N, d] -> [N]."""

    def fit(
        self, data: Data[Problem], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        return self._solve(data.train.blind(), budget, monitor or NullMonitor())

    def solve(
        self, problem: Problem, budget: Budget | str | None = None, monitor: Monitor | None = None
    ) -> Solution:
        """
        >>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
        >>> u = create("gp-hm").solve(problem)
        >>> float(u(np.array([0.5]))[0])        # x (1 - x) at the middle
        0.25
        """
        report = self._solve(problem.blind(), Budget.parse(budget), monitor or NullMonitor())
        # A copy: solving again with the same system must not change this solution.
        return Solution(self.axes, self.values, report, copy.copy(self))

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Solve `problem.py` or `problem.npz`; write solution.npz, report.json and pictures."""
        from passband.pde.pictures import write_solution

        data = _data(read_problem(path))
        report = self.fit(data.for_fit(), monitor=monitor)
        return write_solution(self, data, report, out)


def _points(points: Array, axes: tuple[Array, ...]) -> Array:
    dim = len(axes)
    x = np.asarray(points, dtype=float)
    x = x[:, None] if x.ndim == 1 and dim == 1 else x
    if x.ndim != 2 or x.shape[1] != dim:
        raise DataError(f"points have shape {np.shape(points)}", expected=f"[N, {dim}]")
    low, high = (np.array([axis[end] for axis in axes]) for end in (0, -1))
    slack = 1e-9 * (high - low)
    inside = (x >= low - slack) & (x <= high + slack)
    if not inside.all():
        row = int(np.argmin(inside.all(axis=1)))
        raise DataError(
            f"point {row} is {x[row]}, not in the box", expected=f"between {low} and {high}",
            mend="a solution says nothing outside its box",
        )
    return x


class Solve(Task):
    """One problem, or one family of problems drawn by seed."""

    family = "pde"
    verb = "solve"
    version = 1
    metrics = (
        Metric("relative_l2", "", "lower", log=True, about="|u - exact| / |exact| on test points"),
        Metric("max_error", "", "lower", log=True, about="largest |u - exact| on test points"),
    )

    def __init__(self, name: str, summary: str, make: Callable[[int], Problem]) -> None:
        self.name, self.summary, self.make = name, summary, make

    def data(self, seed: int = 0, size: Size = "small") -> Data[Problem]:
        return _data(self.make(seed))

    def read(self, path: Path) -> Data[Problem]:
        return _data(read_problem(path))

    def evaluate(self, system: System, data: Data[Problem]) -> dict[str, float]:
        truth: Truth | None = data.test
        if truth is None:
            return {}
        assert isinstance(system, Solver), "the verb `solve` is the base class Solver"
        gap = system.solution_on(truth.axes) - truth.values
        return {
            "relative_l2": float(np.linalg.norm(gap) / np.linalg.norm(truth.values)),
            "max_error": float(np.abs(gap).max()),
        }

    def artifacts(self, system: System, data: Data[Problem], folder: Path) -> list[Artifact]:
        from passband.pde.pictures import draw

        return draw(system, data, folder)


def _data(problem: Problem) -> Data[Problem]:
    axes = problem.grid({1: 307, 2: 307, 3: 61}[problem.dim])  # primes: no solver's grid
    truth = None
    if problem.exact is not None:
        mesh = np.meshgrid(*axes, indexing="ij")
        values = np.broadcast_to(problem.exact(*mesh), mesh[0].shape).astype(float)
        truth = Truth(axes, values, problem.exact)
    return Data(train=problem.blind(), test=truth, name=problem.name)


# ---- problems in closed form -----------------------------------------------------------------

TWO_PI = 2 * np.pi
ALLEN_CAHN = (lambda u: u * (u * u - 1), lambda u: 3 * u * u - 1)


@dataclass(frozen=True)
class Wave:
    """A sum of polynomial times cosine terms with closed-form second derivative.

    Each term is (amplitude, power, omega, phase): amplitude * x^power * cos(omega x + phase),
    power 0 or 1. sin(w x) is (1, 0, w, -pi/2).
    """

    terms: tuple[tuple[float, int, float, float], ...]

    def __call__(self, x: Array) -> Array:
        return sum(a * x**p * np.cos(w * x + c) for a, p, w, c in self.terms)  # type: ignore[return-value]

    def second(self, x: Array) -> Array:
        # (x cos)'' = -2 w sin - w^2 x cos
        return sum(  # type: ignore[return-value]
            a * (-(w**2) * x**p * np.cos(w * x + c) - 2 * p * w * np.sin(w * x + c))
            for a, p, w, c in self.terms
        )


def sine(omega: float, amplitude: float = 1.0, power: int = 0) -> tuple[float, int, float, float]:
    return (amplitude, power, omega, -np.pi / 2)


def cosine(omega: float, amplitude: float = 1.0) -> tuple[float, int, float, float]:
    return (amplitude, 0, omega, 0.0)


# sin(6x) cos(100x) = (sin 106x - sin 94x) / 2, and sin(6x) cos(20x) likewise.
SINGLE = Wave((sine(100),))
SIN_COS = Wave((sine(106, 0.5), sine(94, -0.5)))
X_SIN = Wave((sine(200, 1.0, 1),))
MIX = Wave((sine(1), sine(20, 0.1), sine(100, 0.05)))
SIN_ADD = Wave((sine(26, 0.5), sine(14, -0.5)))
MIX2 = Wave((sine(1), sine(20, 0.1), cosine(100)))


def _line(wave: Any, end: float, name: str, nonlinear: Any = None) -> Problem:
    def source(x: Array) -> Array:
        return wave.second(x) + (nonlinear[0](wave(x)) if nonlinear else 0.0)

    return Problem({"x": (0, end)}, {"xx": 1.0}, source, exact=wave, nonlinear=nonlinear, name=name)


class _SinMinusParabola:
    """sin(500 x) - 2 (x - 0.5)^2"""

    def __call__(self, x: Array) -> Array:
        return np.sin(500 * x) - 2 * (x - 0.5) ** 2

    def second(self, x: Array) -> Array:
        return -250_000 * np.sin(500 * x) - 4.0


def _square(
    exact: Callable[..., Array], laplacian: Callable[..., Array], end: float, name: str,
    nonlinear: Any = None,
) -> Problem:
    def source(x: Array, y: Array) -> Array:
        return laplacian(x, y) + (nonlinear[0](exact(x, y)) if nonlinear else 0.0)

    return Problem(
        {"x": (0, end), "y": (0, end)}, {"xx": 1.0, "yy": 1.0}, source,
        exact=exact, nonlinear=nonlinear, name=name,
    )


def _product(p: Wave) -> tuple[Callable[..., Array], Callable[..., Array]]:
    return (
        lambda x, y: p(x) * p(y),
        lambda x, y: p.second(x) * p(y) + p(x) * p.second(y),
    )


def _sum(p: Wave) -> tuple[Callable[..., Array], Callable[..., Array]]:
    return lambda x, y: p(x) + p(y), lambda x, y: p.second(x) + p.second(y)


def _advection() -> Problem:
    return Problem(
        {"x": (0, 1), "t": (0, 1)}, {"x": 200.0, "t": 1.0}, 0.0,
        exact=lambda x, t: np.sin(x - 200 * t), name="advection",
    )


def _random_wave(rng: np.random.Generator, top: float) -> Wave:
    """Two to four tones, one of them high, with amplitudes over two decades."""
    count = int(rng.integers(2, 5))
    omegas = np.append(rng.uniform(1, 0.3 * top, count - 1), rng.uniform(0.7, 1.0) * top)
    amplitudes = 10 ** rng.uniform(-1.5, 0.0, count)
    phases = rng.uniform(-np.pi, np.pi, count)
    return Wave(tuple(
        (float(a), 0, float(w), float(c))
        for a, w, c in zip(amplitudes, omegas, phases, strict=True)
    ))


def _random1d(seed: int) -> Problem:
    return _line(_random_wave(np.random.default_rng([seed, 1]), 120.0), TWO_PI, "poisson1d-random")


def _tone(seed: int) -> Problem:
    rng = np.random.default_rng([seed, 3])
    wave = Wave(((1.0, 0, float(rng.uniform(60, 120)), float(rng.uniform(-np.pi, np.pi))),))
    return _line(wave, TWO_PI, "poisson1d-tone")


def _random2d(seed: int) -> Problem:
    rng = np.random.default_rng([seed, 2])
    p, q = _random_wave(rng, 60.0), _random_wave(rng, 60.0)
    return _square(
        lambda x, y: p(x) * q(y), lambda x, y: p.second(x) * q(y) + p(x) * q.second(y),
        3.0, "poisson2d-random",
    )


_CASES: tuple[tuple[str, str, Callable[[int], Problem]], ...] = (
    ("poisson1d-single", "u'' = f, u = sin(100x) on [0, 2pi]",
     lambda _: _line(SINGLE, TWO_PI, "poisson1d-single")),
    ("poisson1d-sin-cos", "u'' = f, u = sin(6x) cos(100x) on [0, 2pi]",
     lambda _: _line(SIN_COS, TWO_PI, "poisson1d-sin-cos")),
    ("poisson1d-x-sin", "u'' = f, u = x sin(200x) on [0, 2pi]",
     lambda _: _line(X_SIN, TWO_PI, "poisson1d-x-sin")),
    ("poisson1d-mix", "u'' = f, u = sin x + 0.1 sin 20x + 0.05 sin 100x on [0, 1]",
     lambda _: _line(MIX, 1.0, "poisson1d-mix")),
    ("poisson1d-x2", "u'' = f, u = sin(500x) - 2(x - 0.5)^2 on [0, 1]",
     lambda _: _line(_SinMinusParabola(), 1.0, "poisson1d-x2")),
    ("allencahn1d-single", "u'' + u(u^2 - 1) = f, u = sin(100x) on [0, 2pi]",
     lambda _: _line(SINGLE, TWO_PI, "allencahn1d-single", ALLEN_CAHN)),
    ("allencahn1d-sin-cos", "u'' + u(u^2 - 1) = f, u = sin(6x) cos(100x) on [0, 2pi]",
     lambda _: _line(SIN_COS, TWO_PI, "allencahn1d-sin-cos", ALLEN_CAHN)),
    ("poisson2d-sin-sin", "u_xx + u_yy = f, u = sin(100x) sin(100y) on [0, 2pi]^2",
     lambda _: _square(*_product(SINGLE), TWO_PI, "poisson2d-sin-sin")),
    ("poisson2d-sin-add-cos", "u_xx + u_yy = f, u = sin 6x cos 20x + sin 6y cos 20y on [0, 2pi]^2",
     lambda _: _square(*_sum(SIN_ADD), TWO_PI, "poisson2d-sin-add-cos")),
    ("allencahn2d-mix", "u_xx + u_yy + u(u^2 - 1) = f, u = p(x) p(y), "
     "p = sin x + 0.1 sin 20x + cos 100x on [0, 1]^2",
     lambda _: _square(*_product(MIX2), 1.0, "allencahn2d-mix", ALLEN_CAHN)),
    ("advection", "200 u_x + u_t = 0, u = sin(x - 200t) on [0, 1]^2", lambda _: _advection()),
    ("poisson1d-tone", "u'' = f, one random tone of 60 to 120 rad on [0, 2pi], by seed", _tone),
    ("poisson1d-random", "u'' = f, two to four random tones up to 120 rad on [0, 2pi], by seed",
     _random1d),
    ("poisson2d-random", "u_xx + u_yy = f, random tones up to 60 rad on [0, 3]^2, by seed",
     _random2d),
)

TASKS: dict[str, Task] = {name: Solve(name, summary, make) for name, summary, make in _CASES}
