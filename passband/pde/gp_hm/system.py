"""GP-HM as a system: configuration, the two modes, the verb `solve`, the learned spectrum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from passband.bench.budget import Budget, Meter
from passband.bench.system import Config, Monitor
from passband.data.pde import Problem
from passband.errors import CheckpointError, ConfigError, DataError, PassbandWarning
from passband.parts.kernels import KERNELS, Theta
from passband.parts.linalg import along
from passband.pde.gp_hm.fast import FastSolver, Iterate, evaluate
from passband.pde.gp_hm.model import GridGP
from passband.pde.gp_hm.residual import Residual
from passband.pde.gp_hm.resolution import Plan, band_limits, plan
from passband.pde.tasks import Solver

Array = np.ndarray
LOOKS = 20  # evenly spaced looks at a long run
POOR = 1e-2  # relative residual above which a solution comes with a warning


class GPHMConfig(Config):
    """Defaults solve a problem without any setting; `paper` is the paper's own procedure."""

    mode: Literal["fast", "paper"] = Field(
        "fast", description="'fast': solve and learn in turn, seconds; 'paper': joint Adam, hours"
    )
    kernel: Literal["stm", "gm", "matern", "se"] = Field(
        "gm", description="'stm' Student-t mixture, 'gm' Gaussian mixture; 'matern' and 'se' are "
        "the ablations without frequencies",
    )
    components: int = Field(30, ge=1, le=500, description="components Q per axis, 1 to 500")
    points: int | tuple[int, ...] | None = Field(
        None, description="grid points M per axis, faces included, at least 8: one number or one "
        "per axis; None reads the need off the problem's data",
    )
    max_frequency: float | tuple[float, ...] | None = Field(
        None, description="highest starting frequency F in cycles per unit length, > 0: one number "
        "or one per axis; None reads it off the problem's data",
    )
    jitter: float = Field(
        1e-6, gt=0, le=1e-3, description="added to the kernel's diagonal, (0, 1e-3]"
    )
    # fast
    rounds: int = Field(6, ge=0, le=1000, description="fast: most rounds of learning, 0 to 1000")
    learn_steps: int = Field(30, ge=1, le=1000, description="fast: L-BFGS steps a round, 1 to 1000")
    patience: int = Field(2, ge=1, description="fast: rounds without a better residual to the end")
    truncation: float = Field(
        1e-14, ge=1e-16, le=1e-3,
        description="fast: eigenvalues below this share of the largest are dropped, [1e-16, 1e-3]",
    )
    refinements: int = Field(
        4, ge=0, le=10, description="fast: how often a grid found too coarse may grow, 0 to 10, "
        "where points is None",
    )
    krylov_limit: int = Field(200, ge=1, description="fast: most GMRES iterations of a correction")
    newton_limit: int = Field(30, ge=1, description="fast: most Newton steps of a solve")
    # paper
    iterations: int = Field(100_000, ge=1, description="paper: Adam steps")
    learning_rate: float = Field(0.01, gt=0, le=1, description="paper: Adam's step size, (0, 1]")
    boundary_weight: float = Field(200.0, gt=0, description="paper: lam_b of the boundary term")
    boundary: Literal["literal", "mean"] = Field(
        "literal", description="paper: what meets the boundary values, U itself or the "
        "conditional mean (fast mode always takes the mean)",
    )
    equation_rows: Literal["all", "interior"] = Field(
        "all", description="paper: grid points that carry the equation"
    )
    change_point: float | None = Field(
        None, gt=0, lt=1, description="paper: share of the iterations after which a second GP is "
        "added, (0, 1); None: never",
    )
    linear_weights: bool = Field(
        False, description="learn w instead of log w (an ablation)"
    )
    select: Literal["residual", "last"] = Field(
        "residual", description="which iterate is returned: smallest residual at grid midpoints, "
        "or the last",
    )


@dataclass
class GPField:
    """One GP's part of the solution: u(x) = sum_i Z_i prod_j phi_ij(x_j), phi_j = k_j(x, grid) W_j.

    The weights W_j [M_j, r_j] stay apart from Z: in their product, alpha, the small eigenvalues of
    all axes multiply and rounding would show. None stands for the identity (Z is alpha itself).
    """

    kernel: str
    thetas: list[Theta]
    coefficients: Array  # Z [r1, ..., rd]
    weights: list[Array] | None = None

    def basis(self, nodes: Sequence[Array], x: Array, j: int, order: int = 0) -> Array:
        """Functions of axis j, or their derivatives, at points [N] -> [N, r_j]."""
        rows = evaluate(KERNELS[self.kernel], self.thetas[j], x, nodes[j])[order]
        return rows if self.weights is None else rows @ self.weights[j]

    def on(self, nodes: Sequence[Array], axes: Sequence[Array], orders: Sequence[int]) -> Array:
        """The field, or a derivative, on a tensor grid."""
        out = self.coefficients
        for j, (x, order) in enumerate(zip(axes, orders, strict=True)):
            out = along(self.basis(nodes, x, j, order), out, j)
        return out

    def at(self, nodes: Sequence[Array], points: Array, chunk: int = 512) -> Array:
        """The field at scattered points [N, d] -> [N]."""
        out = np.empty(len(points))
        for start in range(0, len(points), chunk):
            x = points[start : start + chunk]
            u = np.tensordot(self.basis(nodes, x[:, 0], 0), self.coefficients, axes=1)
            for j in range(1, len(nodes)):
                u = np.einsum("pj,pj...->p...", self.basis(nodes, x[:, j], j), u)
            out[start : start + chunk] = u
        return out


def _above(share: float, spectrum: Mapping[str, tuple[Array, Array, Array]]) -> dict[str, int]:
    return {axis: int((w > share * w[0]).sum()) for axis, (w, _, _) in spectrum.items()}


class GPHM(Solver):
    """Solve a stated PDE with Gaussian processes that learn its spectrum.

    >>> import numpy as np
    >>> from passband import create
    >>> from passband.pde import Problem
    >>> wave = lambda x: np.sin(100 * x)
    >>> problem = Problem({"x": (0, 6)}, {"xx": 1.0}, lambda x: -1e4 * wave(x), boundary=wave)
    >>> u = create("gp-hm").solve(problem)
    >>> bool(abs(u(np.array([1.234]))[0] - wave(1.234)) < 1e-5)
    True
    """

    Config = GPHMConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"mode": "paper", "kernel": "stm", "points": 400, "max_frequency": 20.0,
                  "select": "last"},
        "small": {},
        "smoke": {"rounds": 1},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.fields: list[GPField] = []
        self.learned: list[Theta] = []  # of the last round; u may come from an earlier one
        self.names = ""

    # ---- solve ---------------------------------------------------------------------------

    def _solve(self, problem: Problem, budget: Budget, monitor: Monitor) -> dict[str, Any]:
        layout = self._plan(problem)
        solve = {"fast": self._fast, "paper": self._paper}[self.config.mode]
        self.names = problem.axes
        report = solve(problem, layout, budget.start(), monitor)
        monitor.progress(1.0)
        spectrum = self.spectrum()
        notes = [*layout.notes, *report.pop("notes", [])]
        if self.config.mode == "fast" and report["residual"] > POOR:
            notes.append(
                f"the equation is met to {report['residual']:.1g} only, relative to its terms: the "
                "solution is not resolved, or the problem has none; compare with another solver"
            )
            warnings.warn(notes[-1], PassbandWarning, stacklevel=3)
        return {
            "highest_frequency": list(layout.tops),
            **report, "kernel": self.config.kernel, "points": [len(x) for x in self.axes],
            "notes": notes,
            # Components above a share of the strongest.
            "components_used": _above(1e-5, spectrum), "components_kept": _above(1e-3, spectrum),
            "strongest": {
                a: [[float(v) for v in row] for row in zip(w[:5], mu[:5], strict=True)]
                for a, (w, mu, _) in spectrum.items()
            },
        }

    def _plan(self, problem: Problem) -> Plan:
        c = self.config
        layout = plan(problem, band_limits(problem), c.points, c.max_frequency)
        for note in layout.notes:
            warnings.warn(note, PassbandWarning, stacklevel=4)
        return layout

    def _fast(
        self, problem: Problem, layout: Plan, meter: Meter, monitor: Monitor
    ) -> dict[str, Any]:
        c = self.config

        def solver_for(plan: Plan) -> FastSolver:
            return FastSolver(
                problem, plan.nodes, plan.tops, c.kernel, components=c.components,
                jitter=c.jitter, tolerance=c.truncation, krylov=c.krylov_limit,
                newton=c.newton_limit, linear_weights=c.linear_weights,
            )

        solver = solver_for(layout)
        first = solver.solve(solver.start)
        for _ in range(c.refinements if layout.free else 0):
            finer = layout.finer(first.values, first.residual)
            if finer is None or meter.exhausted:
                break
            candidate_solver = solver_for(finer)
            candidate = candidate_solver.solve(candidate_solver.start)
            if candidate.residual > 0.7 * first.residual:
                break  # resolution isn't what is missing
            layout, solver, first = finer, candidate_solver, candidate

        returned = first

        def after_round(number: int, latest: Iterate, best: Iterate) -> bool:
            nonlocal returned
            meter.spend()
            returned = latest if c.select == "last" else best
            self._keep(returned)
            self.learned = [a.theta for a in latest.axes]
            monitor.log(number, meter.seconds, residual=latest.residual, best=best.residual)
            monitor.progress(number / max(c.rounds, 1), f"residual {best.residual:.1e}")
            monitor.test_error(self)
            return not meter.exhausted

        _, residuals = solver.run(
            c.rounds, c.learn_steps, c.patience, after_round=after_round, first=first
        )
        return {
            "steps": meter.steps, "selected": c.select, "residual": returned.residual,
            "residuals": residuals, "newton_steps": returned.newton_steps,
            "highest_frequency": list(layout.tops),  # of the grid that refinement ended with
            "faces_left_out": list(solver.outflow),
            "boundary_gap": solver.residual.boundary_gap(self.solution_on(self.axes)),
            "log_joint": self._log_joint_or_none(problem),
        }

    def _keep(self, iterate: Iterate) -> None:
        self.axes = tuple(a.nodes for a in iterate.axes)
        self.values = iterate.values
        self.fields = [
            GPField(
                self.config.kernel, [a.theta for a in iterate.axes], iterate.coefficients,
                [a.weights for a in iterate.axes],
            )
        ]

    def _paper(
        self, problem: Problem, layout: Plan, meter: Meter, monitor: Monitor
    ) -> dict[str, Any]:
        c = self.config
        model = GridGP(
            problem, [len(x) for x in layout.nodes], layout.tops, c.kernel,
            components=c.components, jitter=c.jitter, boundary_weight=c.boundary_weight,
            boundary=c.boundary, rows=c.equation_rows, linear_weights=c.linear_weights,
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate)
        steps = meter.budget.steps or c.iterations
        change = round(c.change_point * steps) if c.change_point else None
        looks = set(np.linspace(0, steps, LOOKS + 1).round().astype(int).tolist())
        residual = Residual(problem, model.nodes)
        best, kept, value = math.inf, None, math.nan
        while meter.steps < steps and not meter.exhausted:
            if meter.steps == change:
                model.add_extra_gp()
                optimizer = torch.optim.Adam(
                    [*model.prior.parameters(), model.log_t], lr=c.learning_rate
                )
            optimizer.zero_grad(set_to_none=True)
            loss = -model.log_joint()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            meter.spend()
            value = -float(loss.detach())
            if meter.steps in looks:
                self._keep_model(model)
                found = self._measure(residual)
                if c.select == "residual" and found < best:
                    best, kept = found, (self.fields, self.values)
                monitor.log(meter.steps, meter.seconds, log_joint=value, residual=found)
                monitor.test_error(self)
            monitor.progress(meter.fraction or meter.steps / steps, f"log joint {value:.4g}")
        self._keep_model(model)
        if kept is not None and best < self._measure(residual):
            self.fields, self.values = kept
        return {
            "steps": meter.steps, "selected": c.select, "log_joint": value,
            "residual": self._measure(residual), "t": model.log_t.exp().tolist(),
            "boundary_gap": residual.boundary_gap(self.solution_on(self.axes)),
            "notes": model.warnings, "jitter": model.jitter,
        }

    def _keep_model(self, model: GridGP) -> None:
        self.axes = tuple(model.nodes)
        self.fields = [GPField(name, list(t), a.numpy()) for name, t, a in model.fields()]
        self.learned = self.fields[0].thetas
        self.values = (model.u.detach() + model.base).numpy().copy()

    # ---- what it says about its solution -------------------------------------------------

    def _measure(self, residual: Residual) -> float:
        """The relative residual of the conditional mean between the grid points."""

        def derivative(key: str) -> Array:
            orders = [key.count(axis) for axis in self.names]
            return self._mean_on(residual.middle, orders)

        return residual.relative(derivative, self._mean_on(self.axes, [0] * len(self.axes)))

    def _mean_on(self, axes: Sequence[Array], orders: Sequence[int]) -> Array:
        return np.asarray(sum(field.on(self.axes, axes, orders) for field in self.fields))

    def spectrum(self) -> dict[str, tuple[Array, Array, Array]]:
        """Per axis: weights, frequencies (cycles per unit length), bandwidths, strongest first.

        Of the last round of learning; the solution itself may come from an earlier one.
        """
        out = {}
        for axis, theta in zip(self.names, self.learned, strict=False):
            kernel = KERNELS[self.fields[0].kernel]
            w, mu = theta.log_w.exp().numpy(), theta.mu.abs().numpy()
            order = np.argsort(-w)
            frequencies = mu if kernel.cosine else np.zeros_like(mu)
            out[axis] = (w[order], frequencies[order], kernel.bandwidth(theta).numpy()[order])
        return out

    def log_joint(self, problem: Problem) -> float:
        """The paper's objective at this solution, with t1 and t2 at their closed-form optimum.

        t is limited to exp(16), as the maximum is unbounded where a gap vanishes. It lets fast and
        paper solutions be compared; the jitter is relative to the scale of u in fast mode.
        """
        c = self.config
        scale = self._scale() ** (1 / problem.dim)
        model = GridGP(
            problem, [len(x) for x in self.axes], [1.0] * problem.dim, c.kernel,
            components=len(self.learned[0].mu), jitter=c.jitter * scale,
            boundary_weight=c.boundary_weight, boundary=c.boundary, rows=c.equation_rows,
        )
        with torch.no_grad():
            model.u.copy_(torch.from_numpy(self.values))
            for target, theta in zip(model.prior.thetas, self.fields[0].thetas, strict=True):
                scaled = theta._replace(log_w=theta.log_w + math.log(scale))
                target.copy_(torch.stack(list(scaled)))
            model.log_t.copy_(model.best_log_t().clamp(max=16.0))
            return float(model.log_joint())

    def _log_joint_or_none(self, problem: Problem) -> float | None:
        """For the report: None where the paper's objective has no value (grid not uniform)."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PassbandWarning)  # a raised jitter is no news here
                return self.log_joint(problem)
        except DataError:
            return None

    def variance(self, points: Array) -> Array:
        """Variance of the prior conditioned on the grid values, at points [N, d] -> [N].

        prod_j k_j(0) - prod_j k_j*' C_j^-1 k_j*, in units of u squared.
        """
        field = self._solved().fields[0]
        kernel = KERNELS[field.kernel]
        points = np.asarray(points, dtype=float).reshape(-1, len(self.axes))
        prior, explained = 1.0, np.ones(len(points))
        for j, (nodes, theta) in enumerate(zip(self.axes, field.thetas, strict=True)):
            k = evaluate(kernel, theta, nodes, nodes)[0] + self.config.jitter * np.eye(len(nodes))
            rows = evaluate(kernel, theta, points[:, j], nodes)[0]
            explained *= np.einsum("pm,pm->p", rows, np.linalg.solve(k, rows.T).T)
            prior *= float(theta.log_w.exp().sum())
        return self._scale() * np.maximum(prior - explained, 0.0)

    def _scale(self) -> float:
        """What the learned variances are relative to: fast mode scales U to unit mean square."""
        if self.config.mode == "paper":
            return 1.0
        return float(np.mean(np.square(self._solved().values))) or 1.0

    def solution_on(self, axes: tuple[Array, ...]) -> Array:
        self._solved()
        return self._mean_on(axes, [0] * len(axes))

    def solution(self, points: Array) -> Array:
        self._solved()
        return np.asarray(sum(field.at(self.axes, points) for field in self.fields))

    def _solved(self) -> GPHM:
        if not self.fields:
            raise ConfigError(
                f"{self.id or 'gp-hm'} holds no solution yet", expected="solve(problem) first"
            )
        return self

    # ---- state ---------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        out = {f"axis_{j}": x for j, x in enumerate(self.axes)}
        if self.fields:
            out["values"] = self.values
        for j, theta in enumerate(self.learned):
            out[f"learned_{j}"] = torch.stack(list(theta)).numpy()
        for i, field in enumerate(self.fields):
            out[f"field_{i}/coefficients"] = field.coefficients
            for j, weights in enumerate(field.weights or ()):
                out[f"field_{i}/weights_{j}"] = weights
            for j, theta in enumerate(field.thetas):
                out[f"field_{i}/theta_{j}"] = torch.stack(list(theta)).numpy()
        return out

    def extra(self) -> dict[str, Any]:
        return {"kernels": [field.kernel for field in self.fields], "axes": self.names}

    def load_state(self, state: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
        kernels, self.names = extra["kernels"], extra["axes"]
        if not kernels:
            return
        try:
            self.axes = tuple(state[f"axis_{j}"] for j in range(len(self.names)))
            self.values = state["values"]
            self.learned = [
                Theta(*torch.from_numpy(state[f"learned_{j}"])) for j in range(len(self.axes))
            ]
            self.fields = [self._field(state, f"field_{i}", name) for i, name in enumerate(kernels)]
        except KeyError as error:
            raise CheckpointError(
                f"the state lacks {error}", expected="axes, values, fields",
                mend="solve and save again",
            ) from None

    def _field(self, state: Mapping[str, Array], name: str, kernel: str) -> GPField:
        axes = range(len(self.axes))
        thetas = [Theta(*torch.from_numpy(state[f"{name}/theta_{j}"])) for j in axes]
        weights = [state[f"{name}/weights_{j}"] for j in axes if f"{name}/weights_{j}" in state]
        return GPField(kernel, thetas, state[f"{name}/coefficients"], weights or None)

    def parameter_count(self) -> int:
        """Unknowns: M1 ... Md values, two log precisions, 3 Q per axis and field.

        Before anything is solved: those of a one-dimensional problem, 0 where points is free.
        """
        if self.fields:
            thetas = sum(3 * len(t.mu) for field in self.fields for t in field.thetas)
            return int(np.prod([len(x) for x in self.axes])) * len(self.fields) + 2 + thetas
        points = self.config.points
        return int(points) + 2 + 3 * self.config.components if isinstance(points, int) else 0
