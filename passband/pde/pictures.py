"""Pictures of solutions: exact beside obtained, the error, the learned spectrum.

    draw(solver, data, folder)                     artifacts for the report (SVG)
    write_solution(solver, data, report, out)      solution.npz, report.json and PNG pictures

High-frequency solutions oscillate hundreds of times across the box, more than a picture has room
for: beside the whole box there is a window of a few oscillations, where the error is largest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passband.bench.report.style import ACCENT, INK, POSITIVE, SECOND, SIGNED, picture, save
from passband.bench.results import write_atomic
from passband.bench.task import Artifact, Data
from passband.data.pde import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from passband.pde.tasks import Solver, Truth

Array = np.ndarray
FLOOR = 1e-17  # errors below are drawn here: logarithms need something above 0
LINE, MAP = 1601, 240  # points a picture samples per axis, in one and in more dimensions
CYCLES = 8  # oscillations a window shows


def draw(system: Solver, data: Data[Problem], folder: Path) -> list[Artifact]:
    """Pictures of one result for the report; those that need the exact solution only with it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = _Fields(system, data)
    artifacts = []
    for name, title, caption, paint in _plan(found):
        with picture(*_size(name, found)) as fig:
            paint(fig)
            save(fig, folder / f"{name}.svg")
        artifacts.append(Artifact("image", title, f"{name}.svg", caption, _group(name, found)))
    return artifacts


def write_solution(
    solver: Solver, data: Data[Problem], report: dict[str, Any], out: Path
) -> list[Path]:
    """Write what `apply` promises; returns the files.

    solution.npz  one array per axis, named by the axis, and u [M1, ..., Md] on them
    report.json   what the solver returned
    *.png         solution, error (exact solution known), spectrum (solver has one)
    """
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    # An axis may be called u as well; the solution keeps the name.
    names = [axis if axis != "u" else "u_axis" for axis in data.train.axes]
    np.savez(buffer, **dict(zip(names, solver.axes, strict=True)), u=solver.values)
    write_atomic(out / "solution.npz", buffer.getvalue())
    text = json.dumps(report, indent=2, default=_plain)
    write_atomic(out / "report.json", text.encode("utf-8"))
    files = [out / "solution.npz", out / "report.json"]
    found = _Fields(solver, data)
    for name, _, _, paint in _plan(found):
        with picture(*_size(name, found)) as fig:
            paint(fig)
            files.append(save(fig, out / f"{name}.png"))
    return files


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _plan(f: _Fields) -> list[tuple[str, str, str, Callable[[Figure], None]]]:
    """(file name, title, caption, painter) of every picture that can be drawn."""
    plan: list[tuple[str, str, str, Callable[[Figure], None]]] = []
    if f.dim == 1:
        plan.append(("solution", "Solution", f.sentence(), lambda fig: _line(fig, f)))
    else:
        plan.append(("solution", "Solution", f.sentence(), lambda fig: _maps(fig, f)))
    if f.truth is not None:
        paint = _line_error if f.dim == 1 else _map_error
        about = "|obtained − exact|, logarithmic"
        plan.append(("error", "Error", about, lambda fig: paint(fig, f)))
    spectrum = getattr(f.solver, "spectrum", None)
    if spectrum is not None:
        learned = spectrum()
        about = "stems: learned components" + (
            "; filled: spectrum of the exact solution" if f.exact_function else "")
        plan.append(("spectrum", "Spectrum", about, lambda fig: _spectrum(fig, f, learned)))
    return plan


def _size(name: str, f: _Fields) -> tuple[float, float]:
    """Width and height in inches; pictures that stand side by side are equally high."""
    if name == "spectrum":
        return (5.2 if f.dim == 1 else 10.4), 2.8
    rows = 2 if f.window else 1
    return {
        ("solution", 1): (10.4, 1.8 + 1.2 * rows),
        ("solution", 2): (6.2, 0.4 + 2.5 * rows),
        ("solution", 3): (7.2, 4.9),
        ("error", 1): (5.2, 2.8),
        ("error", 2): (3.5, 0.4 + 2.5 * rows),
        ("error", 3): (7.2, 2.9),
    }[name, f.dim]


def _group(name: str, f: _Fields) -> str:
    """What stands side by side: the maps in two dimensions, error and spectrum in one."""
    return {(2, "solution"): "maps", (2, "error"): "maps", (1, "error"): "spectrum"}.get(
        (f.dim, name), name
    )


# ---- what is drawn ---------------------------------------------------------------------------


@dataclass
class _Window:
    """A part of the box with a few oscillations, sampled finely."""

    axes: tuple[Array, ...]
    obtained: Array
    exact: Array | None


class _Fields:
    """Obtained and exact solution sampled for drawing."""

    def __init__(self, solver: Solver, data: Data[Problem]) -> None:
        problem, truth = data.train, data.test
        self.solver, self.names, self.dim = solver, problem.axes, problem.dim
        self.box = list(problem.box.values())
        self.truth: Truth | None = truth
        self.exact_function = truth.exact if truth is not None else None
        if truth is not None and self.exact_function is None:
            self.axes = truth.axes  # values are known there only
        else:
            count = {1: LINE, 2: MAP, 3: 2 * (MAP // 3) + 1}[self.dim]
            self.axes = tuple(np.linspace(lo, hi, count) for lo, hi in self.box)

    @cached_property
    def obtained(self) -> Array:
        return self.obtained_on(self.axes)

    @cached_property
    def exact(self) -> Array | None:
        if self.exact_function is not None:
            return self.exact_on(self.axes)
        return self.truth.values if self.truth is not None else None

    def plane(self, axis: int) -> tuple[float, Array | None, Array]:
        """Middle of the box across one of three axes: (its place, exact or None, obtained)."""
        middle = len(self.axes[axis]) // 2
        axes = tuple(x[[middle]] if i == axis else x for i, x in enumerate(self.axes))
        exact = None
        if self.exact_function is not None:
            exact = self.exact_on(axes).squeeze(axis)
        elif self.truth is not None:
            exact = self.truth.values.take(middle, axis)
        return float(axes[axis][0]), exact, self.obtained_on(axes).squeeze(axis)

    def obtained_on(self, axes: tuple[Array, ...]) -> Array:
        """A diverged solver may give infinities: they become holes in the picture."""
        values = np.asarray(self.solver.solution_on(axes), dtype=float)
        return np.where(np.isfinite(values), values, np.nan)

    def exact_on(self, axes: Sequence[Array]) -> Array:
        assert self.exact_function is not None
        mesh = np.meshgrid(*axes, indexing="ij")
        return np.broadcast_to(self.exact_function(*mesh), mesh[0].shape).astype(float)

    @property
    def error(self) -> Array:
        assert self.exact is not None
        return np.maximum(np.abs(self.obtained - self.exact), FLOOR)

    def sentence(self) -> str:
        """Error on the task's own test points, so that captions and table agree."""
        if self.truth is None:
            return "no exact solution is known"
        gap = self.solver.solution_on(self.truth.axes) - self.truth.values
        relative = np.linalg.norm(gap) / np.linalg.norm(self.truth.values)
        return f"relative L2 error {relative:.2e}, largest error {np.abs(gap).max():.2e}"

    @cached_property
    def window(self) -> _Window | None:
        """Some oscillations around the largest error; None where the whole box shows them well."""
        if self.dim == 3 or (self.truth is not None and self.exact_function is None):
            return None
        field = self.exact if self.exact is not None else self.obtained
        spans = []
        for axis, (lo, hi) in enumerate(self.box):
            cycles = _oscillations(field, axis)
            spans.append((hi - lo) * min(1.0, CYCLES / max(cycles, 1e-9)))
        if all(span > 0.3 * (hi - lo) for span, (lo, hi) in zip(spans, self.box, strict=True)):
            return None
        score = self.error if self.exact is not None else np.abs(self.obtained)
        score = np.nan_to_num(score, nan=-1.0)
        centre = np.unravel_index(int(np.argmax(score)), score.shape)
        axes = []
        for x, at, span, (lo, hi) in zip(self.axes, centre, spans, self.box, strict=True):
            start = min(max(x[at] - span / 2, lo), hi - span)
            axes.append(np.linspace(start, start + span, 601 if self.dim == 1 else 161))
        exact = self.exact_on(axes) if self.exact_function is not None else None
        return _Window(tuple(axes), self.obtained_on(tuple(axes)), exact)


def _oscillations(values: Array, axis: int) -> float:
    """Cycles along an axis, counted on slopes so that a slow part can't hide a fast one."""
    slope = np.diff(values, axis=axis)
    size = np.abs(slope)
    slope = np.where(size > 1e-9 * np.nanmax(size, initial=1e-300), slope, np.nan)
    changes = np.diff(np.sign(slope), axis=axis)
    turns = np.sum((changes != 0) & ~np.isnan(changes), axis=axis)
    return float(np.max(turns)) / 2


# ---- one dimension ---------------------------------------------------------------------------


def _line(fig: Figure, f: _Fields) -> None:
    (x,) = f.axes
    window = f.window
    rows = fig.subplots(2 if window else 1, 1, squeeze=False,
                        gridspec_kw={"height_ratios": [1, 1.35]} if window else None)[:, 0]
    whole = rows[0]
    thin = 0.7 if window else 1.4
    if f.exact is not None:
        whole.plot(x, f.exact, color=INK, alpha=0.55, linewidth=thin + 0.6, label="exact")
    whole.plot(x, f.obtained, color=ACCENT, linewidth=thin, label="obtained",
               linestyle="-" if window else "--")
    whole.set(xlim=(x[0], x[-1]), ylabel="u")
    whole.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    if window is None:
        whole.set_xlabel(f.names)
        return
    (w,) = window.axes
    whole.axvspan(w[0], w[-1], color=SECOND, alpha=0.25, linewidth=0)
    close = rows[1]
    if window.exact is not None:
        close.plot(w, window.exact, color=INK, alpha=0.4, linewidth=3.0)
    close.plot(w, window.obtained, color=ACCENT, linewidth=1.5, linestyle=(0, (3, 3)))
    reason = "at the largest error" if f.exact is not None else "at the largest value"
    close.set(xlim=(w[0], w[-1]), xlabel=f"{f.names} (window {reason})", ylabel="u")
    _connect(fig, whole, close, w)


def _connect(fig: Figure, whole: Axes, close: Axes, w: Array) -> None:
    """Lines from the marked window to the panel that shows it."""
    from matplotlib.patches import ConnectionPatch

    for edge, corner in ((w[0], 0.0), (w[-1], 1.0)):
        fig.add_artist(ConnectionPatch(
            xyA=(edge, 0.0), coordsA=whole.get_xaxis_transform(),
            xyB=(corner, 1.0), coordsB=close.transAxes,
            color=SECOND, alpha=0.55, linewidth=0.8,
        ))


def _line_error(fig: Figure, f: _Fields) -> None:
    axes = fig.subplots()
    (x,) = f.axes
    axes.semilogy(x, f.error, color=SECOND, linewidth=0.9)
    axes.fill_between(x, f.error, FLOOR, color=SECOND, alpha=0.14, linewidth=0)
    low, high = _decades(f.error)
    axes.set(xlim=(x[0], x[-1]), ylim=(low, high), xlabel=f.names, ylabel="|error|")


def _decades(error: Array) -> tuple[float, float]:
    """Limits of an error axis or colour bar: whole decades, at most nine of them."""
    top = float(np.nanmax(error, initial=FLOOR))
    low = float(np.nanquantile(error, 0.02)) if np.isfinite(error).any() else FLOOR
    high = 10.0 ** np.ceil(np.log10(top) + 0.05)
    return max(10.0 ** np.floor(np.log10(max(low, FLOOR))), high * 1e-9), high


# ---- two and three dimensions ----------------------------------------------------------------


def _maps(fig: Figure, f: _Fields) -> None:
    """Exact and obtained on one colour scale: the whole box, then the window or the planes."""
    columns = [("Exact", 0), ("Obtained", 1)] if f.truth is not None else [("Obtained", 1)]
    rows = _rows(f)
    top = _largest([fields[columns[0][1]] for _, fields in rows])
    if f.dim == 3:  # planes stand side by side
        grid = fig.subplots(len(columns), len(rows), squeeze=False).T
    else:
        grid = fig.subplots(len(rows), len(columns), squeeze=False)
    for line, (panel, fields) in zip(grid, rows, strict=True):
        for axes, (title, number) in zip(line, columns, strict=True):
            image = _panel(axes, panel, fields[number], SIGNED, (-top, top))
            axes.set_title(f"{title}{panel.note}")
    _mark(grid[0], f)
    fig.colorbar(image, ax=grid.ravel().tolist(), shrink=0.7, aspect=32, pad=0.02,
                 label="u").outline.set_visible(False)


def _map_error(fig: Figure, f: _Fields) -> None:
    from matplotlib.colors import LogNorm

    rows = _rows(f)
    errors = [np.maximum(np.abs(obtained - exact), FLOOR) for _, (exact, obtained) in rows]
    low, high = _decades(np.concatenate([e.ravel() for e in errors]))
    shape = (1, len(rows)) if f.dim == 3 else (len(rows), 1)
    grid = fig.subplots(*shape, squeeze=False)
    for axes, (panel, _), error in zip(grid.ravel(), rows, errors, strict=True):
        image = _panel(axes, panel, error, POSITIVE, LogNorm(low, high))
        axes.set_title(f"Error{panel.note}")
    _mark(grid[0], f)
    fig.colorbar(image, ax=grid.ravel().tolist(), shrink=0.7, aspect=32, pad=0.02,
                 label="|error|").outline.set_visible(False)


@dataclass(frozen=True)
class _Panel:
    """Where a map lies: two axes with their names, and a note for its title."""

    x: Array
    y: Array
    names: tuple[str, str]
    note: str


def _rows(f: _Fields) -> list[tuple[_Panel, tuple[Any, Any]]]:
    """(panel, (exact or None, obtained)): whole box and window in 2-D, three planes in 3-D."""
    if f.dim == 2:
        out: list[tuple[_Panel, tuple[Any, Any]]] = [
            (_Panel(*f.axes, (f.names[0], f.names[1]), ""), (f.exact, f.obtained))
        ]
        if f.window is not None:
            out.append((
                _Panel(*f.window.axes, (f.names[0], f.names[1]), ", window"),
                (f.window.exact, f.window.obtained),
            ))
        return out
    out = []
    for axis in (2, 1, 0):
        kept = [i for i in range(3) if i != axis]
        place, exact, obtained = f.plane(axis)
        panel = _Panel(
            f.axes[kept[0]], f.axes[kept[1]], (f.names[kept[0]], f.names[kept[1]]),
            f", {f.names[axis]} = {place:.3g}",
        )
        out.append((panel, (exact, obtained)))
    return out


def _panel(axes: Axes, panel: _Panel, values: Array, colours: str, scale: Any) -> Any:
    limits = {"vmin": scale[0], "vmax": scale[1]} if isinstance(scale, tuple) else {"norm": scale}
    image = axes.imshow(
        values.T, origin="lower", aspect="auto", cmap=colours, interpolation="antialiased",
        extent=(panel.x[0], panel.x[-1], panel.y[0], panel.y[-1]), **limits,
    )
    axes.set(xlabel=panel.names[0], ylabel=panel.names[1])
    axes.grid(visible=False)
    axes.locator_params(nbins=4)
    return image


def _mark(first: Sequence[Axes], f: _Fields) -> None:
    """Outline the window on the maps of the whole box."""
    from matplotlib.patches import Rectangle

    if f.dim != 2 or f.window is None:
        return
    x, y = f.window.axes
    for axes in first:
        axes.add_patch(Rectangle(
            (x[0], y[0]), x[-1] - x[0], y[-1] - y[0], fill=False, edgecolor=SECOND, linewidth=1.6,
        ))


def _largest(fields: Sequence[Array]) -> float:
    """A symmetric colour limit. It follows the exact fields where they are known, so that a
    diverged solver can't wash them out."""
    top = max(float(np.nanmax(np.abs(field), initial=0.0)) for field in fields)
    return top if top > 0 else 1.0


# ---- spectrum --------------------------------------------------------------------------------

Spectrum = dict[str, tuple[Array, Array, Array]]


def _spectrum(fig: Figure, f: _Fields, learned: Spectrum) -> None:
    """Learned components as stems, their bandwidth as a bar, over the exact solution's spectrum."""
    grid = fig.subplots(1, len(learned), squeeze=False)[0]
    for axes, (name, (weights, frequencies, bandwidths)) in zip(grid, learned.items(), strict=True):
        weights, frequencies, bandwidths = map(np.atleast_1d, (weights, frequencies, bandwidths))
        strength = weights / max(float(weights.max(initial=0.0)), 1e-300)
        frequencies = np.abs(frequencies)
        bottom = 1e-8
        live = strength > bottom
        right = float(frequencies[live].max(initial=0.0))
        if f.exact_function is not None:
            at, power = power_spectrum(f, f.names.index(name))
            peaks = true_frequencies(at, power)
            right = max(right, float(peaks.max(initial=0.0)))
            axes.fill_between(at, np.maximum(power, bottom), bottom, color=INK, alpha=0.16,
                              linewidth=0, label="exact solution")
            for peak in peaks:
                axes.axvline(peak, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 2)))
                decimals = max(0, 1 - int(np.floor(np.log10(at[1]))))  # a tenth of a bin
                text = f"{peak:.{decimals}f}" if peak > 0 else f"< {at[1]:.2g}"
                axes.annotate(text, (peak, 1.0), xytext=(3, 3), fontsize=8,
                              xycoords=("data", "axes fraction"), textcoords="offset points")
        axes.vlines(frequencies[live], bottom, strength[live], color=ACCENT, linewidth=1.3)
        axes.hlines(strength[live], (frequencies - bandwidths)[live],
                    (frequencies + bandwidths)[live], color=ACCENT, alpha=0.45, linewidth=3)
        axes.plot(frequencies[live], strength[live], "o", color=ACCENT, markersize=4.5,
                  label=f"learned ({int(live.sum())} of {len(weights)} kept)")
        axes.set_yscale("log")
        span = 1.12 * right or 1.0
        axes.set(xlim=(-0.02 * span, span), ylim=(bottom, 4.0), ylabel="relative strength",
                 xlabel=f"frequency along {name}, cycles per unit")
        axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.0, 1.07), borderaxespad=0.0)


def power_spectrum(f: _Fields, axis: int, count: int = 4096) -> tuple[Array, Array]:
    """Power of the exact solution along one axis under a Hann window, its largest value 1.

    In more dimensions it is the mean over 16 lines through the box.
    Returns frequencies in cycles per unit [count / 2 + 1] and power, same shape.
    """
    lo, hi = f.box[axis]
    x = np.linspace(lo, hi, count, endpoint=False)
    rng = np.random.default_rng(0)
    lines = 1 if f.dim == 1 else 16
    fixed = [rng.uniform(a, b, (lines, 1)) for a, b in f.box]
    points = [np.broadcast_to(x if i == axis else fixed[i], (lines, count)) for i in range(f.dim)]
    assert f.exact_function is not None
    values = np.broadcast_to(f.exact_function(*points), (lines, count)).astype(float)
    window = np.hanning(count + 1)[:-1]  # periodic, as `true_frequencies` takes for granted
    power = np.mean(np.abs(np.fft.rfft(values * window, axis=1)) ** 2, axis=0)
    return np.fft.rfftfreq(count, (hi - lo) / count), power / max(power.max(), 1e-300)


def true_frequencies(at: Array, power: Array, most: int = 6) -> Array:
    """Peaks of a Hann power spectrum that stand out by a decade: [<= most], ascending.

    Refined between bins by the closed form for one tone under a Hann window. A tone too slow for
    the box (less than one cycle) is given as 0.
    """
    from scipy.signal import find_peaks

    level = np.log10(np.maximum(power, 1e-16))
    # A tone slower than the window peaks in the first bin: a lower bin is put before it.
    padded = np.concatenate([[level.min()], level])
    found, facts = find_peaks(padded, height=-7.0, prominence=1.0)
    order = np.argsort(facts["peak_heights"])[::-1][:most]
    indices = found[order] - 1
    out = []
    for i in indices:
        shift = 0.0
        if 2 < i < len(power) - 1:  # below, the tone's mirror image disturbs the closed form
            side = 1 if power[i + 1] > power[i - 1] else -1
            ratio = float(np.sqrt(power[i + side] / power[i]))
            shift = side * (2 * ratio - 1) / (ratio + 1)
        out.append(at[i] + shift * (at[1] - at[0]))
    return np.sort(np.array(out))
