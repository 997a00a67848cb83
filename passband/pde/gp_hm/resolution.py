"""How fine a grid and how wide a spectrum a problem asks for, read off its data.

The source, the coefficients and the face values are sampled along lines of each axis; the band
limit is the frequency above which their windowed spectrum has next to no energy.

>>> import numpy as np
>>> from passband.pde import Problem
>>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=lambda x: np.sin(100 * x), boundary=0.0)
>>> round(band_limits(problem)[0].limit)                      # 100 / (2 pi) = 15.9, plus the window
20
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import get_window

from passband.data.pde import Problem, Values
from passband.errors import ConfigError

Array = np.ndarray

ENERGY = 1e-7  # share of the energy that may lie above the band limit
ENERGY_OF_JUMPS = 1e-2  # the same for data that no grid resolves
SAMPLES = (1024, 16_384)  # per line, at first and at most
RESOLVED = 0.4  # share of the samples' band that a limit may reach
MAIN_LOBE = 5.0  # half width of the window's own spectrum, in units of 1 / length
LINES = 5  # per transverse axis, and both its ends


class Band(NamedTuple):
    """The highest frequency of the data along one axis, in cycles per unit length.

    resolved is False for jumps and kinks: their limit holds 99 % of the energy only.
    """

    limit: float
    resolved: bool = True


def band_limits(problem: Problem) -> tuple[Band, ...]:
    """The band of the data along each axis."""
    return tuple(_axis_limit(problem, j) for j in range(problem.dim))


def _axis_limit(problem: Problem, axis: int) -> Band:
    lo, hi = problem.box[problem.axes[axis]]
    count = SAMPLES[0]
    while True:
        lines = list(_lines(problem, axis, np.linspace(lo, hi, count)))
        limit = _limit(lines, hi - lo)
        if limit * (hi - lo) * 2 < RESOLVED * count:
            return Band(limit)
        if count >= SAMPLES[1]:
            return Band(_limit(lines, hi - lo, ENERGY_OF_JUMPS), resolved=False)
        count *= 2


def _limit(lines: Sequence[Array], length: float, share: float = ENERGY) -> float:
    """The highest band limit of some sampled lines."""
    return max((_line_limit(line, length, share) for line in lines), default=0.0)


def _line_limit(line: Array, length: float, share: float) -> float:
    ramp = np.linspace(line[0], line[-1], len(line))
    if np.ptp(line - ramp) <= 1e-12 * max(np.abs(line).max(), 1e-300):
        return 0.0
    # The Blackman-Harris window's side lobes lie 92 dB down: no leakage mimics high frequencies.
    tapered = (line - ramp) * get_window("blackmanharris", len(line), fftbins=False)
    energy = np.abs(np.fft.rfft(tapered)) ** 2
    above = np.cumsum(energy[::-1])[::-1]
    last = int(np.searchsorted(-above, -share * above[0]))
    return last / length


def _lines(problem: Problem, axis: int, x: Array) -> Iterator[Array]:
    """Samples of all data along one axis, at a few places of the others."""
    for points in _places(problem, axis, x):
        values: list[Values] = [problem.source, *problem.operator.values()]
        for value in values:
            if callable(value) or np.ndim(value) > 0:
                yield problem.at(value, points)
        for face in problem.faces:
            across = problem.axes.index(face[0])
            end = problem.box[face[0]][face[1] == "+"]
            if across != axis and np.isclose(points[0, across], end):
                yield problem.face_value(face, points)


def _places(problem: Problem, axis: int, x: Array) -> Iterator[Array]:
    # Multiples of the golden ratio: spread evenly, and no node of any symmetry of the problem.
    inner = (np.arange(1, LINES + 1) * 0.6180339887) % 1.0
    others = [i for i in range(problem.dim) if i != axis]
    ends = np.concatenate([inner, [0.0, 1.0]])
    for fractions in product(ends, repeat=len(others)):
        points = np.empty((len(x), problem.dim))
        points[:, axis] = x
        for i, fraction in zip(others, fractions, strict=True):
            lo, hi = problem.box[problem.axes[i]]
            points[:, i] = lo + fraction * (hi - lo)
        yield points


# ---- the plan --------------------------------------------------------------------------------

FEWEST = {1: 301, 2: 301, 3: 41}
MOST = {1: 4001, 2: 1001, 3: 97}  # that are chosen, and the largest that may be given
LARGEST = {1: 10_000, 2: 3000, 3: 300}
OVERSAMPLING = 2.0  # Nyquist frequency of the grid over the highest frequency of the kernel
HOPELESS = 0.5  # a relative residual that a finer grid will not mend
MARGIN = 1.1  # of the kernel's top frequency over the data's band limit


@dataclass(frozen=True)
class Plan:
    """A grid and the highest kernel frequency per axis; `free` when the grid may still grow."""

    nodes: tuple[Array, ...]
    tops: tuple[float, ...]
    free: bool
    notes: tuple[str, ...] = ()
    poor: float = 1e-4  # a first residual above this asks for a finer grid

    def finer(self, values: Array, residual: float) -> Plan | None:
        """A larger plan after a first solution, or None where this one looks fine enough.

        Axes along which u itself fills the band grow; where none does, all do.
        """
        dim = len(self.nodes)
        if residual <= self.poor or residual > HOPELESS:
            return None
        full = []
        for j, x in enumerate(self.nodes):
            lines = np.moveaxis(values, j, 0).reshape(len(x), -1).T
            some = lines[:: max(1, len(lines) // 16)]
            full.append(_limit(some, x[-1] - x[0]) > 0.95 * self.tops[j])
        nodes, tops = [], []
        for x, top, grows in zip(self.nodes, self.tops, full, strict=True):
            factor = 1.5 if grows or not any(full) else 1.0
            count = min(round((len(x) - 1) * factor) + 1, MOST[dim])
            nodes.append(np.linspace(x[0], x[-1], count))
            tops.append(min(top * factor, _highest(count, x[-1] - x[0])))
        if all(len(a) == len(b) for a, b in zip(nodes, self.nodes, strict=True)):
            return None
        return Plan(tuple(nodes), tuple(tops), True, self.notes)


def plan(
    problem: Problem, bands: Sequence[Band], points: int | Sequence[int] | None = None,
    top: float | Sequence[float] | None = None,
) -> Plan:
    """Grid and top frequencies from the data's band limits and what the user fixed.

    Raises `ConfigError` for fewer than 8 points or a wrong number of axes. Frequencies above 0.9
    of the grid's Nyquist frequency would alias: they are lowered, and `notes` says so.
    """
    dim, notes, limits = problem.dim, [], [band.limit for band in bands]
    counts = _per_axis("points", points, dim)
    wanted = _per_axis("max_frequency", top, dim)
    if problem.has_arrays and problem.nodes is not None:
        if counts is not None and [len(x) for x in problem.nodes] != counts:
            notes.append("points was ignored: arrays are solved on their own grid")
        nodes = tuple(np.asarray(x) for x in problem.nodes)
        counts = [len(x) for x in nodes]
    else:
        if counts is None:
            lengths = problem.lengths
            aims = wanted or [_aim(*pair) for pair in zip(limits, lengths, strict=True)]
            needs = [
                math.ceil(2 * length * aim * OVERSAMPLING) + 1
                for length, aim in zip(lengths, aims, strict=True)
            ]
            counts = [min(max(need, FEWEST[dim]), MOST[dim]) for need in needs]
        nodes = problem.grid(counts)
    if not 8 <= min(counts) <= max(counts) <= LARGEST[dim]:
        raise ConfigError(
            f"points gives the grid {' x '.join(map(str, counts))}",
            expected=f"8 to {LARGEST[dim]} on each axis in {dim} dimension{'s' * (dim > 1)}",
            mend="matrices of points x points are held for each axis",
        )
    tops = []
    for j, (length, count, limit) in enumerate(zip(problem.lengths, counts, limits, strict=True)):
        highest = _highest(count, length)
        if limit - MAIN_LOBE / length > highest:
            notes.append(
                f"axis {problem.axes[j]!r}: the data reach {limit:.3g} cycles per unit length, "
                f"{count} points resolve {highest:.3g}; give more points"
            )
        if wanted is not None:
            if wanted[j] > highest:
                notes.append(
                    f"axis {problem.axes[j]!r}: max_frequency {wanted[j]:.3g} would alias on "
                    f"{count} points; lowered to {highest:.3g}"
                )
            tops.append(min(wanted[j], highest))
        else:
            tops.append(min(_aim(limit, length), highest))
    # A finer grid does not help data that no grid resolves.
    free = points is None and not problem.has_arrays and all(band.resolved for band in bands)
    return Plan(nodes, tuple(tops), free, tuple(notes))


def _aim(limit: float, length: float) -> float:
    return MARGIN * limit + 2 / length


def _highest(count: int, length: float) -> float:
    return 0.9 * (count - 1) / (2 * length)


def _per_axis(name: str, value: Any, dim: int) -> list[Any] | None:
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) else [value] * dim
    if len(values) != dim or not all(0 < v < math.inf for v in values):
        raise ConfigError(
            f"{name} = {value!r}", expected=f"a positive number, or {dim} of them, one per axis"
        )
    return values
