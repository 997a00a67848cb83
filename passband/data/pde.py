"""A PDE on a box, stated once for every solver.

    L u + N(u) = f  inside,   u = g  on the faces that are given

L is linear with derivatives up to second order and constant or variable coefficients, N acts
pointwise. Axes have one-letter names; an operator maps derivatives to coefficients.

>>> import numpy as np
>>> heat = Problem(
...     box={"x": (0, 1), "t": (0, 0.5)},
...     operator={"t": 1.0, "xx": -0.1},
...     source=0.0,
...     boundary={"x": 0.0, "t-": lambda x, t: np.sin(np.pi * x)},
... )
>>> heat.axes, heat.faces
('xt', ('x-', 'x+', 't-'))
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from passband.errors import ProblemError

Array = np.ndarray
Values = float | Array | Callable[..., Any]  # a number, an array on the grid, or f(x, y, ...)


@dataclass(frozen=True)
class Discrete:
    """A problem on a tensor grid, faces included: what every grid solver works from.

    nodes     one increasing 1-D array per axis
    source    f at the nodes, [M1, ..., Md]
    terms     derivative -> coefficient, a float or an array [M1, ..., Md]
    known     True where u is prescribed, [M1, ..., Md]
    values    the prescribed values there (the mean where faces meet), 0 elsewhere
    """

    nodes: tuple[Array, ...]
    source: Array
    terms: dict[str, float | Array]
    known: Array
    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(x) for x in self.nodes)


@dataclass(frozen=True, eq=False)
class Problem:
    """Raises `ProblemError`, naming the field, for anything that isn't well stated.

    box        axis name -> (lower, upper); 1 to 3 axes, one letter each
    operator   derivative -> coefficient: "xx", "xy", "t", "" (u itself); a number, a callable of
               the coordinates, or an array on `nodes`. Mixed derivatives are allowed.
    source     f: number, callable of the coordinates, or array on `nodes` (faces included)
    boundary   face -> value, a face being "x-" (lower), "x+" (upper) or "x" (both); or one value
               for all faces. None takes `exact` on all faces. Values: number, callable of all
               coordinates, or array over the face's nodes.
    nonlinear  (N, dN): pointwise term and its derivative, both callables of u
    exact      the true solution, if known: for reports only, solvers never see it
    nodes      the grid of the arrays, one 1-D array per axis; needed only when arrays are given
    """

    box: Mapping[str, tuple[float, float]]
    operator: Mapping[str, Values]
    source: Values = 0.0
    boundary: Mapping[str, Values] | Values | None = None
    nonlinear: tuple[Callable[[Array], Array], Callable[[Array], Array]] | None = None
    exact: Callable[..., Any] | None = None
    nodes: Sequence[Array] | None = None
    name: str = "problem"
    _faces: dict[str, Values] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        set_("box", _checked_box(self.box))
        set_("operator", _checked_operator(self.operator, self.axes))
        if self.nodes is not None:
            set_("nodes", _checked_nodes(self.nodes, self.box))
        set_("_faces", _checked_faces(self.boundary, self.exact, self.axes))
        if self.nonlinear is not None and (
            not isinstance(self.nonlinear, Sequence)
            or len(self.nonlinear) != 2
            or not all(map(callable, self.nonlinear))
        ):
            raise ProblemError(
                "nonlinear is not a pair of functions", expected="(N, dN), both callables of u",
                mend="for u^3 - u: nonlinear=(lambda u: u**3 - u, lambda u: 3*u**2 - 1)",
            )
        self._check_conditions()
        self._check_arrays()
        # Every callable is tried once on a coarse grid, so that a mistake shows before long work.
        self.on([np.linspace(lo, hi, 9) for lo, hi in self.box.values()], arrays=False)

    # ---- what it is ----------------------------------------------------------------------

    @property
    def axes(self) -> str:
        return "".join(self.box)

    @property
    def dim(self) -> int:
        return len(self.box)

    @property
    def faces(self) -> tuple[str, ...]:
        """The faces with prescribed values, e.g. ("x-", "x+", "t-")."""
        return tuple(self._faces)

    @property
    def lengths(self) -> tuple[float, ...]:
        return tuple(hi - lo for lo, hi in self.box.values())

    @property
    def has_arrays(self) -> bool:
        """Whether anything is given as an array, so that only `nodes` has exact values."""
        values = [self.source, *self.operator.values(), *self._faces.values()]
        return any(isinstance(v, Array) and v.ndim > 0 for v in values)

    def blind(self) -> Problem:
        """The same problem without its exact solution: what a solver is given."""
        return replace(self, exact=None, boundary=self._faces)

    # ---- on a grid, at points ------------------------------------------------------------

    def grid(self, sizes: int | Sequence[int]) -> tuple[Array, ...]:
        """Uniform nodes, faces included: `sizes` per axis."""
        counts = [sizes] * self.dim if isinstance(sizes, int) else list(sizes)
        if len(counts) != self.dim:
            raise ProblemError(f"{len(counts)} grid sizes", expected=f"{self.dim}, one per axis")
        return tuple(
            np.linspace(lo, hi, m) for (lo, hi), m in zip(self.box.values(), counts, strict=True)
        )

    def on(self, nodes: Sequence[Array], *, arrays: bool = True) -> Discrete:
        """Evaluate everything on a tensor grid that includes the faces.

        Arrays are interpolated by cubic splines where `nodes` are not the problem's own.
        arrays=False leaves them out (used by the first check).
        """
        nodes = tuple(np.asarray(x, dtype=float) for x in nodes)
        shape = tuple(len(x) for x in nodes)
        mesh = np.meshgrid(*nodes, indexing="ij")

        def take(name: str, value: Values) -> Array:
            if isinstance(value, Array) and value.ndim > 0:
                return self._resample(value, nodes) if arrays else np.zeros(shape)
            return _evaluate(name, value, mesh, shape)

        terms: dict[str, float | Array] = {}
        for key, value in self.operator.items():
            constant = np.ndim(value) == 0 and not callable(value)
            terms[key] = float(value) if constant else take(f"operator[{key!r}]", value)  # type: ignore[arg-type]
        known = np.zeros(shape, dtype=bool)
        total, count = np.zeros(shape), np.zeros(shape)
        low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
        for face, value in self._faces.items():
            axis = self.axes.index(face[0])
            index: list[Any] = [slice(None)] * self.dim
            index[axis] = 0 if face[1] == "-" else -1
            at = tuple(index)
            name = f"boundary[{face!r}]"
            if isinstance(value, Array) and value.ndim > 0:
                if not arrays:
                    continue
                rest = [x for i, x in enumerate(nodes) if i != axis]
                g = self._resample(value, rest, skip=axis)
            else:
                points = [np.asarray(c[at]) for c in mesh]
                g = _evaluate(name, value, points, points[0].shape)
            known[at] = True
            total[at] += g
            count[at] += 1
            low[at] = np.minimum(low[at], g)
            high[at] = np.maximum(high[at], g)
        values = np.divide(total, count, out=np.zeros(shape), where=count > 0)
        self._check_corners(np.where(known, high - low, 0.0), np.abs(values).max(initial=0.0))
        return Discrete(nodes, take("source", self.source), terms, known, values)

    def at(self, value: Values, points: Array) -> Array:
        """A coefficient or the source at scattered points [N, d] -> [N]."""
        points = np.asarray(points, dtype=float)
        if isinstance(value, Array) and value.ndim > 0:
            from scipy.interpolate import RegularGridInterpolator

            return RegularGridInterpolator(self.nodes, value, method="cubic")(points)
        return _evaluate("value", value, list(points.T), (len(points),))

    def face_value(self, face: str, points: Array) -> Array:
        """Prescribed values of one face at points [N, d] on it -> [N]."""
        value = self._faces[face]
        if isinstance(value, Array) and value.ndim > 0:
            from scipy.interpolate import RegularGridInterpolator

            axis = self.axes.index(face[0])
            rest = [x for i, x in enumerate(self.nodes or ()) if i != axis]
            kept = np.delete(np.asarray(points, dtype=float), axis, axis=1)
            return RegularGridInterpolator(rest, value, method="cubic")(kept)
        return self.at(value, points)

    def truth(self, points: Array) -> Array:
        """The exact solution at scattered points [N, d] -> [N]."""
        if self.exact is None:
            raise ProblemError("the problem has no exact solution", mend="give exact=...")
        return self.at(self.exact, points)

    def _resample(self, value: Array, nodes: Sequence[Array], skip: int | None = None) -> Array:
        own = [x for i, x in enumerate(self.nodes or ()) if i != skip]
        if all(len(a) == len(b) and np.allclose(a, b) for a, b in zip(own, nodes, strict=True)):
            return np.asarray(value, dtype=float)
        from scipy.interpolate import CubicSpline

        out = np.asarray(value, dtype=float)
        for axis, (a, b) in enumerate(zip(own, nodes, strict=True)):
            out = CubicSpline(a, out, axis=axis)(b)
        return out

    # ---- checks --------------------------------------------------------------------------

    def _check_conditions(self) -> None:
        for axis in self.axes:
            order = max((key.count(axis) for key in self.operator), default=0)
            given = [f for f in self.faces if f[0] == axis]
            if order == 0:
                raise ProblemError(
                    f"operator has no derivative along axis {axis!r}",
                    expected="every axis of the box in some derivative",
                    mend=f"drop {axis!r} from box, or add it to operator",
                )
            if len(given) < order:
                have = ", ".join(given) or "none"
                raise ProblemError(
                    f"boundary gives too little along axis {axis!r}: {have}",
                    expected=f"{order} face{'s' * (order > 1)} for a derivative of order {order}",
                    mend=f"give boundary[{axis!r}] for both faces" if order == 2
                    else f"give boundary['{axis}-'] (an initial value)",
                )

    def _check_arrays(self) -> None:
        named = {"source": self.source, **{f"operator[{k!r}]": v for k, v in self.operator.items()}}
        arrays = {n: v for n, v in named.items() if isinstance(v, Array) and v.ndim > 0}
        faces = {f: v for f, v in self._faces.items() if isinstance(v, Array) and v.ndim > 0}
        if not arrays and not faces:
            return
        if self.nodes is None:
            name = next(iter(arrays), None) or f"boundary[{next(iter(faces))!r}]"
            raise ProblemError(
                f"{name} is an array but nodes is missing", expected="the grid of the array",
                mend="give nodes=[x, y, ...], one increasing 1-D array per axis",
            )
        shape = tuple(len(x) for x in self.nodes)
        wanted = {n: (v, shape) for n, v in arrays.items()}
        for face, v in faces.items():
            axis = self.axes.index(face[0])
            wanted[f"boundary[{face!r}]"] = (v, shape[:axis] + shape[axis + 1 :])
        for name, (value, expected) in wanted.items():
            if value.shape != expected:
                raise ProblemError(
                    f"{name} has shape {value.shape}", expected=f"{expected}, from nodes",
                    mend="arrays cover the grid with its faces included",
                )
            _finite(name, value)

    def _check_corners(self, spread: Array, scale: float) -> None:
        worst = float(spread.max(initial=0.0))
        if worst > 1e-6 * max(scale, 1e-12):
            at = np.unravel_index(int(spread.argmax()), spread.shape)
            raise ProblemError(
                f"boundary values disagree by {worst:.3g} where faces meet (grid index {at})",
                expected="one value at every corner and edge",
                mend="make the faces agree there, or leave one of them out",
            )


# ---- reading users' files --------------------------------------------------------------------


def read_problem(path: str | Path) -> Problem:
    """A problem from a Python file that defines `problem`, or from an .npz file.

    The Python file is run as a script, as your own `python problem.py` would. The .npz holds
    arrays x1 [M1] (x2, x3), f [M1, ...], faces g1_lo, g1_hi, g2_lo, ... and optionally
    `operator` (JSON text such as {"xx": 1, "yy": 1}; default: the Laplacian), `polynomial`
    (coefficients of a pointwise polynomial N(u), lowest power first) and `exact`-free data only.
    """
    path = Path(path)
    if not path.exists():
        raise ProblemError(f"no file {path}", expected="problem.py or problem.npz")
    if path.suffix == ".py":
        return _read_python(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise ProblemError(
        f"{path.name} has the ending {path.suffix!r}", expected=".py or .npz",
        mend="see `passband info gp-hm` for both formats",
    )


def _read_python(path: Path) -> Problem:
    try:
        names = runpy.run_path(str(path))
    except ProblemError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's file may raise anything
        raise ProblemError(
            f"{path.name} stopped with {type(error).__name__}: {error}",
            expected="a script that defines `problem`", mend=f"try it alone: python {path}",
        ) from error
    problem = names.get("problem")
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"{path.name} defines no Problem named `problem`",
            expected="problem = passband.pde.Problem(...)",
        )
    return replace(problem, name=path.stem) if problem.name == "problem" else problem


def _read_npz(path: Path) -> Problem:
    import json
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ProblemError(
            f"{path.name} can't be read: {error}", expected="an .npz of plain arrays",
            mend="write it with numpy.savez, without object arrays",
        ) from None
    dim = next((d for d in (3, 2, 1) if f"x{d}" in data), 0)
    needed = [f"x{i + 1}" for i in range(max(dim, 1))] + ["f"]
    missing = [name for name in needed if name not in data]
    known = {*needed, "operator", "polynomial", "axes"}
    known |= {f"g{i + 1}_{s}" for i in range(dim) for s in ("lo", "hi")}
    unknown = sorted(set(data) - known)
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise ProblemError(
            f"{path.name} {what}", expected=f"arrays named {', '.join(sorted(known))}",
        )
    axes = str(data["axes"]) if "axes" in data else "xyz"[:dim]
    nodes = [np.asarray(data[f"x{i + 1}"], dtype=float).ravel() for i in range(dim)]
    try:
        text = str(data["operator"]) if "operator" in data else ""
        operator = json.loads(text) if text else {a * 2: 1.0 for a in axes}
    except ValueError as error:
        raise ProblemError(f"operator in {path.name} is no JSON: {error}") from None
    boundary = {
        f"{axis}{sign}": np.asarray(data[name], dtype=float)
        for i, axis in enumerate(axes)
        for sign, name in (("-", f"g{i + 1}_lo"), ("+", f"g{i + 1}_hi"))
        if name in data
    }
    boundary = {f: (float(v) if v.ndim == 0 or dim == 1 else v) for f, v in boundary.items()}
    nonlinear = None
    if "polynomial" in data:
        poly = np.polynomial.Polynomial(np.asarray(data["polynomial"], dtype=float).ravel())
        nonlinear = (poly, poly.deriv())
    return Problem(
        box={a: (float(x[0]), float(x[-1])) for a, x in zip(axes, nodes, strict=True)},
        operator=operator, source=np.asarray(data["f"], dtype=float), boundary=boundary,
        nonlinear=nonlinear, nodes=nodes, name=path.stem,
    )


# ---- small checks ----------------------------------------------------------------------------


def _evaluate(name: str, value: Values, mesh: Sequence[Array], shape: tuple[int, ...]) -> Array:
    try:
        raw = value(*mesh) if callable(value) else value
        out = np.broadcast_to(np.asarray(raw), shape)
    except ProblemError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        raise ProblemError(
            f"{name} can't be evaluated on the grid: {type(error).__name__}: {error}",
            expected=f"a vectorised function of {len(mesh)} coordinate arrays, or a number",
            mend="use NumPy functions; a constant may be given as a number",
        ) from None
    if np.iscomplexobj(out):
        raise ProblemError(f"{name} is complex", expected="real values")
    try:
        out = np.array(out, dtype=float)
    except (TypeError, ValueError):
        raise ProblemError(f"{name} has dtype {out.dtype}", expected="real numbers") from None
    _finite(name, out)
    return out


def _finite(name: str, value: Array) -> None:
    bad = ~np.isfinite(value)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ProblemError(
            f"{name} has {int(bad.sum())} NaN or infinite values, the first at index {first}",
            expected="finite numbers", mend="mask or fill them; move a singularity off the box",
        )


def _checked_box(box: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    if not isinstance(box, Mapping) or not 1 <= len(box) <= 3:
        raise ProblemError(
            f"box = {box!r}", expected="a mapping of 1 to 3 axes, e.g. {'x': (0, 1), 'y': (0, 2)}",
            mend="only boxes (products of intervals) are solved",
        )
    out = {}
    for axis, ends in box.items():
        if not (isinstance(axis, str) and len(axis) == 1 and axis.isalpha()):
            raise ProblemError(f"box axis {axis!r}", expected="one letter, e.g. 'x' or 't'")
        try:
            lo, hi = (float(v) for v in ends)
        except (TypeError, ValueError):
            raise ProblemError(f"box[{axis!r}] = {ends!r}", expected="(lower, upper)") from None
        if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
            raise ProblemError(f"box[{axis!r}] = ({lo}, {hi})", expected="finite, lower < upper")
        out[axis] = (lo, hi)
    return out


def _checked_operator(operator: Mapping[str, Values], axes: str) -> dict[str, Values]:
    if not isinstance(operator, Mapping) or not operator:
        raise ProblemError(
            f"operator = {operator!r}", expected="derivative -> coefficient, e.g. {'xx': 1, 'yy': 1}"
        )
    out: dict[str, Values] = {}
    for key, value in operator.items():
        if not isinstance(key, str) or any(c not in axes for c in key):
            raise ProblemError(
                f"operator key {key!r}", expected=f"letters of the box axes {axes!r}, or '' for u"
            )
        if len(key) > 2:
            raise ProblemError(
                f"operator key {key!r} is a derivative of order {len(key)}",
                expected="at most second order: the kernels are twice differentiable",
                mend="write it as a system of lower order",
            )
        name = "".join(sorted(key, key=axes.index))
        if name in out:
            raise ProblemError(f"operator gives {name!r} twice", mend="add the coefficients")
        if isinstance(value, (list, tuple)):
            value = np.asarray(value, dtype=float)
        if not callable(value) and np.ndim(value) == 0:
            if not np.isfinite(float(value)):
                raise ProblemError(f"operator[{key!r}] = {value}", expected="a finite number")
            value = float(value)
        out[name] = value
    return out


def _checked_nodes(nodes: Sequence[Array], box: Mapping[str, tuple[float, float]]) -> tuple[Array, ...]:
    if len(nodes) != len(box):
        raise ProblemError(f"nodes has {len(nodes)} axes", expected=f"{len(box)}, as box")
    out = []
    for (axis, (lo, hi)), x in zip(box.items(), nodes, strict=True):
        x = np.asarray(x, dtype=float)
        good = x.ndim == 1 and len(x) >= 2 and np.isfinite(x).all() and (np.diff(x) > 0).all()
        if not good:
            raise ProblemError(f"nodes of axis {axis!r}", expected="a finite increasing 1-D array")
        if not np.allclose([x[0], x[-1]], [lo, hi], rtol=0, atol=1e-9 * (hi - lo)):
            raise ProblemError(
                f"nodes of axis {axis!r} run from {x[0]} to {x[-1]}", expected=f"{lo} to {hi}, as box"
            )
        out.append(x)
    return tuple(out)


def _checked_faces(
    boundary: Mapping[str, Values] | Values | None, exact: Values | None, axes: str
) -> dict[str, Values]:
    if boundary is None:
        if exact is None:
            raise ProblemError(
                "boundary is missing", expected="values on the faces",
                mend="give boundary={'x': ..., ...}; or exact=..., which is then used on all faces",
            )
        boundary = exact
    if not isinstance(boundary, Mapping):
        boundary = dict.fromkeys(axes, boundary)
    out: dict[str, Values] = {}
    for key, value in boundary.items():
        if not (isinstance(key, str) and key[:1] in tuple(axes) and key[1:] in ("", "-", "+")):
            raise ProblemError(
                f"boundary key {key!r}",
                expected=f"a face: one of {', '.join(a + s for a, s in product(axes, ('-', '+', '')))}",
            )
        if isinstance(value, (list, tuple)):
            value = np.asarray(value, dtype=float)
        for sign in (key[1:],) if key[1:] else ("-", "+"):
            if key[0] + sign in out:
                raise ProblemError(f"boundary gives the face {key[0] + sign!r} twice")
            out[key[0] + sign] = value
    if not out:
        raise ProblemError("boundary is empty", expected="at least one face")
    return {f: out[f] for a in axes for f in (a + "-", a + "+") if f in out}
