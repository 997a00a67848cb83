"""The physics-informed network as a solver: Adam first, then L-BFGS, both in the common loop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.part import Part
from passband.bench.streams import Streams
from passband.bench.system import Config, Monitor
from passband.data.pde import Problem
from passband.errors import ConfigError
from passband.pde.baselines.pinn.model import (
    ACTIVATIONS,
    Network,
    Points,
    mismatch,
    residual,
    sample,
    to_unit,
)
from passband.pde.tasks import Solver

Array = np.ndarray
LOOKS = 20  # points of the error-against-time curve, over both phases


class PINNConfig(Config):
    """A physics-informed network and its training."""

    width: int = Field(64, gt=0, description="units of a hidden layer")
    depth: int = Field(4, gt=0, description="hidden layers")
    activation: Literal["tanh", "sin"] = Field(
        "tanh", description=f"one of {', '.join(ACTIVATIONS)}"
    )
    fourier_scales: tuple[float, ...] = Field(
        (), description="standard deviations of random Fourier features, cycles across the box"
    )
    fourier_features: int = Field(50, gt=0, description="random frequencies of each scale")
    fourier_merge: Literal["features", "outputs"] = Field(
        "features", description="where scales join: before the first or before the last layer"
    )
    points: int = Field(1000, gt=0, description="points inside at which the equation is demanded")
    face_points: int = Field(200, gt=0, description="points on each face, from two dimensions on")
    boundary_weight: float = Field(1.0, gt=0, description="factor of the boundary loss")
    scale_residual: bool = Field(
        False, description="divide the residual by the size of f, or of the coefficients if f = 0"
    )
    resample: bool = Field(False, description="new points at every Adam step")
    steps: int = Field(5000, gt=0, description="gradients when the budget sets no limit")
    adam_share: float = Field(0.7, ge=0, le=1, description="share of the budget before L-BFGS")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="of Adam's learning rate"
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="of all numbers")


class PINN(Solver):
    """
    >>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
    >>> u = PINN.from_preset("small").solve(problem, budget="10s")
    >>> round(float(u(np.array([0.5]))[0]), 2)
    0.25
    """

    Config = PINNConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"width": 100, "depth": 5, "points": 10_000, "face_points": 1000,
                  "steps": 100_000, "adam_share": 0.8},
        "small": {},
        "smoke": {"width": 16, "depth": 2, "points": 64, "face_points": 32, "steps": 60},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.network: Network | None = None
        self.box: dict[str, tuple[float, float]] = {}

    # ---- solve ---------------------------------------------------------------------------

    def _solve(self, problem: Problem, budget: Budget, monitor: Monitor) -> dict[str, Any]:
        streams = Streams(self.seed)
        self.box = dict(problem.box)
        with streams.initialising():
            self.network = self._build()
        loss = _Loss(problem, self.config, streams)
        outcome = self._train(loss, budget, monitor, streams)
        self.axes = problem.grid({1: 400, 2: 100, 3: 30}[problem.dim])
        self.values = self.solution_on(self.axes)
        return outcome

    def _build(self) -> Network:
        c = self.config
        network = Network(
            len(self.box), c.width, c.depth, activation=c.activation, scales=c.fourier_scales,
            features=c.fourier_features, merge=c.fourier_merge,
        )
        return network.to(getattr(torch, c.dtype))

    def _train(
        self, loss: _Loss, budget: Budget, monitor: Monitor, streams: Streams
    ) -> dict[str, Any]:
        """Adam for its share of the budget, L-BFGS for the rest; each has a checkpoint."""
        c = self.config
        budget = Budget(steps=c.steps) if budget == Budget() else budget
        adam = LoopConfig(optimizer="adam", lr=c.lr, schedule=c.schedule)
        lbfgs = LoopConfig(optimizer="lbfgs", lr=1.0)
        done: list[Outcome] = []
        for name, config, share in (("adam", adam, c.adam_share), ("lbfgs", lbfgs, 1.0)):
            rest = _rest(budget, share, done)
            if rest is None:
                continue
            part = share if not done else 1 - c.adam_share
            done.append(train(
                self.network, loss.fresh if c.resample and name == "adam" else loss.fixed, None,
                rest, config.model_copy(update={"looks": max(1, round(LOOKS * part))}),
                streams=streams, system=self, monitor=_part(monitor, done, part),
                checkpoints=self.checkpoints / name if self.checkpoints else None,
            ))
        report = done[-1].report()
        for spent in ("steps", "seconds", "examples"):
            report[spent] = sum(getattr(outcome, spent) for outcome in done)
        return report

    # ---- the solution ----------------------------------------------------------------------

    def solution(self, points: Array) -> Array:
        network = self._solved()
        place = next(network.parameters())
        parts = []
        for start in range(0, len(points), 65536):  # constant memory
            x = to_unit(self.box, points[start : start + 65536])
            with torch.no_grad():
                u = network(torch.tensor(x, dtype=place.dtype, device=place.device))
            parts.append(u.cpu().numpy().astype(float))
        return np.concatenate(parts) if parts else np.zeros(0)

    def solution_on(self, axes: tuple[Array, ...]) -> Array:
        mesh = np.meshgrid(*axes, indexing="ij")
        return self.solution(np.stack([m.ravel() for m in mesh], axis=1)).reshape(mesh[0].shape)

    def _solved(self) -> Network:
        if self.network is None:
            raise ConfigError(
                f"{self.id or 'PINN'} has solved nothing yet", expected="a solved problem",
                mend="call solve(problem) or fit(data) first, or load a saved solution",
            )
        return self.network

    # ---- state ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return dict(self.network.state_dict()) if self.network is not None else {}

    def extra(self) -> dict[str, Any]:
        return {"box": self.box, "grid": [len(x) for x in self.axes]}

    def load_state(self, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self.box = {axis: (low, high) for axis, (low, high) in extra["box"].items()}
        if not self.box:
            return  # it was saved before it had solved anything
        self.network = self._build()
        self.network.load_state_dict({name: torch.as_tensor(a) for name, a in state.items()})
        self.network.eval()
        self.axes = tuple(
            np.linspace(*ends, n) for ends, n in zip(self.box.values(), extra["grid"], strict=True)
        )
        self.values = self.solution_on(self.axes)

    def parameter_count(self) -> int:
        """Learned scalars; the random frequencies are not learned."""
        return sum(p.numel() for p in self.network.parameters()) if self.network else 0


class _Loss:
    """The loss of one problem, on fixed points or on new ones at every step."""

    def __init__(self, problem: Problem, config: PINNConfig, streams: Streams) -> None:
        self.problem, self.config = problem, config
        self.dtype = getattr(torch, config.dtype)
        self.points = self._sample(streams.data.numpy)
        self.on = cache(self.points.to)
        self.scale = self._scale() if config.scale_residual else 1.0

    def fixed(self, network: Network, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss(network, self.on(next(network.parameters()).device))

    def fresh(
        self, network: Network, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seed = int(torch.randint(2**62, (), generator=generator))
        points = self._sample(np.random.default_rng(seed))
        return self._loss(network, points.to(next(network.parameters()).device))

    def _loss(self, network: Network, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        inner = (residual(network, self.problem, points) / self.scale).square().mean()
        outer = mismatch(network, points).square().mean()
        loss = inner + self.config.boundary_weight * outer
        return loss, {"residual": inner, "boundary": outer}

    def _sample(self, rng: np.random.Generator) -> Points:
        inside, faces = sample(self.problem, self.config.points, self.config.face_points, rng)
        return Points.of(self.problem, inside, faces, self.dtype)

    def _scale(self) -> float:
        """A size of the equation: root mean square of f, or of its coefficients where f is 0."""
        sizes = [float(t.square().mean().sqrt()) for t in (self.points.source, self.points.terms)]
        return next((size for size in sizes if size > 0), 1.0)


def _part(monitor: Monitor, done: list[Outcome], share: float) -> Part:
    return Part(
        monitor, 1.0 - share if done else 0.0, share, steps=sum(o.steps for o in done),
        seconds=sum(o.seconds + o.looked for o in done),
    )


def _rest(budget: Budget, share: float, done: list[Outcome]) -> Budget | None:
    """What a phase may spend: its share of what earlier phases left; None if that is nothing."""
    spent = {n: sum(getattr(o, n) for o in done) for n in ("steps", "seconds", "examples")}
    steps = None if budget.steps is None else round(share * (budget.steps - spent["steps"]))
    seconds = None if budget.seconds is None else share * (budget.seconds - spent["seconds"])
    if (steps is not None and steps <= 0) or (seconds is not None and seconds <= 0):
        return None
    return Budget(steps, seconds, budget.examples)
