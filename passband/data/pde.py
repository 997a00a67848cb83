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

import json
import runpy
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from passband.errors import ProblemError
from passband.parts.spline import spline_at, spline_on

Array = np.ndarray
# Of the splines between array values: at 4 points a wave a cubic is off by 1e-2, degree 7 by 3e-4.
DEGREE = 7
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
        set_("source", _as_values("source", self.source))
        if self.exact is not None and not callable(self.exact):
            raise ProblemError(
                f"exact is a {type(self.exact).__name__}", expected="a callable of the coordinates"
            )
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
        # Everything is evaluated once, so that a mistake shows before long work.
        coarse = self.grid(9)
        tried = self.on(self.nodes if self.has_arrays and self.nodes is not None else coarse)
        mesh = np.meshgrid(*coarse, indexing="ij")
        if self.exact is not None:
            _evaluate("exact", self.exact, mesh, mesh[0].shape)
        for name, function in zip(("N", "dN"), self.nonlinear or (), strict=False):
            # At the known values only: N may be undefined elsewhere (log u, 1 / u).
            u = tried.values[tried.known]
            _evaluate(f"nonlinear, {name}(u),", function, [u], u.shape)

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

    def on(self, nodes: Sequence[Array]) -> Discrete:
        """Evaluate everything on a tensor grid that includes the faces.

        Arrays are interpolated by splines where `nodes` are not the problem's own.
        """
        nodes = tuple(np.asarray(x, dtype=float) for x in nodes)
        shape = tuple(len(x) for x in nodes)
        mesh = np.meshgrid(*nodes, indexing="ij")

        def take(name: str, value: Values) -> Array:
            if isinstance(value, Array) and value.ndim > 0:
                return self._resample(value, nodes)
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
            return spline_at(self.nodes or (), value, points, DEGREE)
        return _evaluate("value", value, list(points.T), (len(points),))

    def face_value(self, face: str, points: Array) -> Array:
        """Prescribed values of one face at points [N, d] on it -> [N]."""
        value = self._faces[face]
        if isinstance(value, Array) and value.ndim > 0:
            axis = self.axes.index(face[0])
            rest = [x for i, x in enumerate(self.nodes or ()) if i != axis]
            kept = np.delete(np.asarray(points, dtype=float), axis, axis=1)
            return spline_at(rest, value, kept, DEGREE)
        return self.at(value, points)

    def truth(self, points: Array) -> Array:
        """The exact solution at scattered points [N, d] -> [N]."""
        if self.exact is None:
            raise ProblemError("the problem has no exact solution", mend="give exact=...")
        return self.at(self.exact, points)

    def _resample(self, value: Array, nodes: Sequence[Array], skip: int | None = None) -> Array:
        own = [x for i, x in enumerate(self.nodes or ()) if i != skip]
        if all(
            len(a) == len(b) and np.abs(a - b).max() <= 1e-9 * (a[-1] - a[0])
            for a, b in zip(own, nodes, strict=True)
        ):
            return value
        return spline_on(own, value, nodes, DEGREE)

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
    (coefficients of a pointwise polynomial N(u), lowest power first) and `axes` (text, "xyz").
    """
    path = Path(path)
    if not path.exists():
        raise ProblemError(f"no file {path}", expected="problem.py or problem.npz")
    if path.suffix == ".py":
        return _read_python(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise ProblemError(
        f"{path} has the ending {path.suffix!r}", expected=".py or .npz",
        mend="a script that defines `problem`, or arrays as `help(passband.pde.read_problem)` says",
    )


def _read_python(path: Path) -> Problem:
    try:
        names = runpy.run_path(str(path))
    except ProblemError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may raise anything
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
    data = _npz_arrays(path)
    dim = next((d for d in (3, 2, 1) if f"x{d}" in data), 1)
    needed = [*(f"x{i + 1}" for i in range(dim)), "f"]
    faces = {
        f"g{i + 1}_{end}": (i, sign)
        for i in range(dim) for end, sign in (("lo", "-"), ("hi", "+"))
    }
    known = {*needed, *faces, "operator", "polynomial", "axes"}
    missing = [name for name in needed if name not in data]
    unknown = sorted(set(data) - known)
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise ProblemError(
            f"{path.name} {what}", expected=f"arrays named {', '.join(sorted(known))}",
        )
    axes = str(data["axes"]) if "axes" in data else "xyz"[:dim]
    if len(set(axes)) != dim or len(axes) != dim:
        raise ProblemError(
            f"axes in {path.name} is {axes!r}", expected=f"{dim} different letters, as x1 to x{dim}"
        )
    text = str(data["operator"]) if "operator" in data else ""
    try:
        operator = json.loads(text) if text else {a * 2: 1.0 for a in axes}
    except ValueError as error:
        raise ProblemError(
            f"operator in {path.name} is no JSON: {error}", expected='such as {"xx": 1, "yy": 1}'
        ) from None
    nodes = [np.atleast_1d(_as_values(f"x{i + 1}", data[f"x{i + 1}"])) for i in range(dim)]
    boundary = {
        f"{axes[i]}{sign}": data[name].reshape(()) if data[name].size == 1 else data[name]
        for name, (i, sign) in faces.items() if name in data
    }
    nonlinear = None
    if "polynomial" in data:
        powers = np.atleast_1d(_as_values("polynomial", data["polynomial"]))
        poly = np.polynomial.Polynomial(powers.ravel())
        nonlinear = (poly, poly.deriv())
    ends = [(x.flat[0], x.flat[-1]) if x.size else () for x in nodes]
    return Problem(
        box=dict(zip(axes, ends, strict=True)),  # type: ignore[arg-type]
        operator=operator, source=data["f"], boundary=boundary, nonlinear=nonlinear, nodes=nodes,
        name=path.stem,
    )


def _npz_arrays(path: Path) -> dict[str, Array]:
    """Plain arrays only: an object array would need unpickling, which runs code."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # A torn or foreign file: TypeError is a single .npy array under the name of an .npz.
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy takes whatever it doesn't know for pickled data and offers to run it.
        why = "it holds no plain arrays" if "pickle" in str(error) else error
        raise ProblemError(
            f"{path.name} can't be read: {why}", expected="an .npz of plain arrays",
            mend="write it with numpy.savez, without object arrays",
        ) from None


# ---- small checks ----------------------------------------------------------------------------


def _as_values(name: str, value: Any) -> Values:
    """A callable as it is, a float, or an array of floats; nothing complex, textual or ragged."""
    if callable(value):
        return value
    try:
        out = np.asarray(value)
    except ValueError:  # a ragged list
        out = np.empty(0, dtype=object)
    if out.dtype.kind not in "biuf":
        raise ProblemError(
            f"{name} is {'complex' if out.dtype.kind == 'c' else f'a {type(value).__name__}'}",
            expected="a real number, an array of real numbers, or a callable of the coordinates",
        )
    _finite(name, out)
    return out.astype(float) if out.ndim else float(out)


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
    if out.dtype.kind not in "biuf":
        raise ProblemError(
            f"{name} gives values of type {out.dtype}", expected="real numbers",
            mend="use NumPy functions, and return the result",
        )
    out = np.array(out, dtype=float)
    _finite(name, out)
    return out


def _finite(name: str, value: Array) -> None:
    bad = ~np.isfinite(value)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f", the first at index {first}" if first else ""
        raise ProblemError(
            f"{name} has {int(bad.sum())} NaN or infinite values{where}",
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
            f"operator = {operator!r}",
            expected="derivative -> coefficient, e.g. {'xx': 1, 'yy': 1}",
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
            raise ProblemError(
                f"operator gives {name!r} twice", expected="every derivative once",
                mend="add the coefficients",
            )
        out[name] = _as_values(f"operator[{key!r}]", value)
    return out


def _checked_nodes(
    nodes: Sequence[Array], box: Mapping[str, tuple[float, float]]
) -> tuple[Array, ...]:
    if isinstance(nodes, Array) and nodes.ndim == 1 and len(box) == 1:
        nodes = [nodes]
    if not isinstance(nodes, Sequence) or len(nodes) != len(box):
        count = len(nodes) if isinstance(nodes, Sequence) else 0
        raise ProblemError(
            f"nodes has {count} axes", expected=f"a list of {len(box)} 1-D arrays, as box"
        )
    out = []
    for (axis, (lo, hi)), given in zip(box.items(), nodes, strict=True):
        x = np.atleast_1d(_as_values(f"nodes of axis {axis!r}", given))
        good = x.ndim == 1 and len(x) >= 2 and np.isfinite(x).all() and (np.diff(x) > 0).all()
        if not good:
            raise ProblemError(f"nodes of axis {axis!r}", expected="a finite increasing 1-D array")
        if not np.allclose([x[0], x[-1]], [lo, hi], rtol=0, atol=1e-9 * (hi - lo)):
            raise ProblemError(
                f"nodes of axis {axis!r} run from {x[0]} to {x[-1]}",
                expected=f"{lo} to {hi}, as box",
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
            faces = ", ".join(a + s for a, s in product(axes, ("-", "+", "")))
            raise ProblemError(f"boundary key {key!r}", expected=f"a face: one of {faces}")
        value = _as_values(f"boundary[{key!r}]", value)
        for sign in (key[1:],) if key[1:] else ("-", "+"):
            if key[0] + sign in out:
                raise ProblemError(
                    f"boundary gives the face {key[0] + sign!r} twice", expected="every face once"
                )
            out[key[0] + sign] = value
    if not out:
        raise ProblemError("boundary is empty", expected="at least one face")
    return {f: out[f] for a in axes for f in (a + "-", a + "+") if f in out}
