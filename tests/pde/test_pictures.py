"""Pictures of solutions: all are made, whatever the dimension, the truth and the solver's luck."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from passband.bench.report.artifacts import clean_svg
from passband.bench.report.style import CARD, INK
from passband.bench.task import Data
from passband.data.pde import Problem
from passband.pde import pictures
from passband.pde.tasks import Truth

BOX = {"x": (0.0, 1.0), "y": (-1.0, 1.0), "t": (0.0, 2.0)}


def wave(cycles: float) -> Callable[..., Any]:
    """So many oscillations a unit along x, one along the other axes."""
    return lambda x, *rest: np.sin(2 * np.pi * cycles * x) * np.prod(
        [np.cos(2 * np.pi * r) for r in rest], axis=0
    )


class Solver:
    """Stands for a solver: the exact solution plus a known error."""

    def __init__(self, exact: Callable[..., Any], axes: tuple[Any, ...], error: float) -> None:
        self.exact, self.error, self.axes = exact, error, axes
        self.values = self.solution_on(axes)

    def solution_on(self, axes: tuple[Any, ...]) -> Any:
        return self.exact(*np.meshgrid(*axes, indexing="ij")) + self.error


class Learned(Solver):
    def spectrum(self) -> dict[str, tuple[Any, Any, Any]]:
        weights = np.array([1.0, 1e-3, 1e-30])
        return {"x": (weights, np.array([5.0, -7.0, 900.0]), np.full(3, 0.2))}


def case(
    dim: int, cycles: float = 3.0, error: float = 1e-3, *, kind: type[Solver] = Learned,
    known: str = "function",
) -> tuple[Any, Data[Any]]:
    box = dict(list(BOX.items())[:dim])
    exact = wave(cycles)
    axes = tuple(np.linspace(lo, hi, 40) for lo, hi in box.values())
    solver = kind(exact, axes, error)
    truth = Truth(axes, exact(*np.meshgrid(*axes, indexing="ij")), exact)
    test = {"function": truth, "values": Truth(truth.axes, truth.values), "no": None}[known]
    problem = Problem(box, {axis * 2: 1.0 for axis in box}, boundary=0.0)
    return solver, Data(problem, test=test)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("known", ["function", "values", "no"])
def test_every_picture_is_made_and_fits_light_and_dark(
    dim: int, known: str, tmp_path: Path
) -> None:
    solver, data = case(dim, known=known)
    found = pictures.draw(solver, data, tmp_path / "new")
    names = [artifact.file for artifact in found]
    assert names == ["solution.svg", *(["error.svg"] if known != "no" else []), "spectrum.svg"]
    for artifact in found:
        text = (tmp_path / "new" / artifact.file).read_text()
        ElementTree.fromstring(text)
        assert "currentColor" in text and INK not in text
        assert "DejaVu" not in text
        svg, (width, height) = clean_svg(text, "p-", artifact.title)
        assert 0.3 < width / height < 4 and "<text" in svg
        for tag in re.findall(r'(?:href|url)[=(]"?#([^")]+)', svg):
            assert f'id="{tag}"' in svg  # nothing that is referred to was lost
    if known != "no":
        gap = np.linalg.norm(np.full(40**dim, 1e-3)) / np.linalg.norm(data.test.values)
        assert f"relative L2 error {gap:.2e}, largest error 1.00e-03" in found[0].caption


def test_written_solution_can_be_read_again(tmp_path: Path) -> None:
    solver, data = case(2)
    report = {"steps": 3, "residual": np.float64(0.5), "mu": np.arange(2.0), "path": Path("x")}
    files = pictures.write_solution(solver, data, report, tmp_path / "out")
    assert [f.name for f in files] == [
        "solution.npz", "report.json", "solution.png", "error.png", "spectrum.png"
    ]
    with np.load(files[0], allow_pickle=False) as saved:
        assert set(saved.files) == {"x", "y", "u"}
        np.testing.assert_array_equal(saved["u"], solver.values)
        np.testing.assert_array_equal(saved["y"], solver.axes[1])
    assert json.loads(files[1].read_text()) == {
        "steps": 3, "residual": 0.5, "mu": [0.0, 1.0], "path": "x"
    }
    card = [int(CARD[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    np.testing.assert_allclose(imread(files[2])[0, 0], [*card, 1.0], atol=1e-2)  # opaque
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f.name for f in files)


def test_no_spectrum_picture_for_solvers_without_one(tmp_path: Path) -> None:
    solver, data = case(1, kind=Solver)
    assert [a.title for a in pictures.draw(solver, data, tmp_path)] == ["Solution", "Error"]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("error", [np.nan, np.inf, 0.0, 1e30])
def test_broken_and_perfect_solutions_are_drawn_too(
    dim: int, error: float, tmp_path: Path
) -> None:
    solver, data = case(dim, error=error, kind=Solver)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pictures.draw(solver, data, tmp_path)) == 2


def test_the_window_shows_a_few_oscillations_around_the_largest_error() -> None:
    _, data = case(1, cycles=100.0)
    bump = SimpleNamespace(
        solution_on=lambda axes: wave(100.0)(axes[0]) + np.exp(-1e4 * (axes[0] - 0.37) ** 2)
    )
    window = pictures._Fields(bump, data).window
    assert window is not None
    (x,) = window.axes
    assert x[0] < 0.37 < x[-1]
    cycles = 100.0 * (x[-1] - x[0])
    assert cycles == pytest.approx(pictures.CYCLES, rel=0.1)
    few, data = case(1, cycles=5.0)
    assert pictures._Fields(few, data).window is None


def test_true_frequencies_are_found() -> None:
    frequencies = [3.183, 15.9155, 40.25]
    box = Problem({"x": (0, 2 * np.pi)}, {"xx": 1.0}, boundary=0.0)

    def exact(x: Any) -> Any:
        amplitudes = (1.0, 0.1, 0.05)
        return sum(
            a * np.sin(2 * np.pi * f * x + a)
            for a, f in zip(amplitudes, frequencies, strict=True)
        )

    axes = (np.linspace(0, 2 * np.pi, 50),)
    data = Data(box, test=Truth(axes, exact(*axes), exact))
    fields = pictures._Fields(Solver(exact, axes, 0.0), data)
    at, power = pictures.power_spectrum(fields, 0)
    np.testing.assert_allclose(pictures.true_frequencies(at, power), frequencies, atol=5e-3)
    # Amplitudes 1 and 0.1: powers two decades apart, up to the loss between bins.
    levels = [np.log10(power[np.abs(at - f) < 0.3].max()) for f in frequencies]
    assert levels[0] - levels[1] == pytest.approx(2.0, abs=0.3)


def test_spectrum_of_one_axis_ignores_the_others() -> None:
    solver, data = case(2, cycles=20.0)
    at, power = pictures.power_spectrum(pictures._Fields(solver, data), 0)
    assert at[power.argmax()] == pytest.approx(20.0)
    at, power = pictures.power_spectrum(pictures._Fields(solver, data), 1)
    assert at[power.argmax()] == pytest.approx(1.0)
