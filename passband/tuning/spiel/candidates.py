"""Positions that may grow in one weight, and what their gradients have been.

    positions  the c largest |dW| of the first backward pass of a phase
    total      sum of g,  squares  sum of g^2,  steps  their number: g is the gradient of a whole
               optimiser step, all its micro-batches together

>>> found = Candidates.choose(torch.tensor([0.1, -3.0, 0.0, 2.0]), 2)
>>> found.positions.tolist()
[1, 3]
>>> found.add(torch.tensor([0.0, -3.0, 0.0, 2.0]), active=torch.tensor([0, 1]), anew=True)
>>> found.settle(torch.tensor([0.0, -1.5]))      # the step's gradient, halved by clipping
>>> found.fold()
>>> found.total.tolist(), found.squares.tolist(), found.steps
([-1.5, 1.0], [2.25, 1.0], 1)

Clipping and loss scaling multiply a step's gradient by one factor after it was seen here. It is
read off the trained entries, so that what the optimiser is seeded with is in its own units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passband.tuning.replicas import average
from passband.tuning.spiel.growth import largest


@dataclass
class Candidates:
    positions: Tensor  # [c] flat, ascending
    total: Tensor  # [c]
    squares: Tensor  # [c]
    steps: int = 0
    current: Tensor | None = None  # [c] of the step under way, so far
    # The trained entry that shows the factor, and its gradient so far.
    probe: int = 0
    seen: float = 0.0

    @classmethod
    def choose(cls, gradient: Tensor, count: int) -> Candidates | None:
        """The `count` entries of largest absolute value; None when some are not finite.

        gradient  [numel]
        """
        sizes = gradient.abs()
        if not bool(torch.isfinite(sizes.max())):
            return None
        at = largest(sizes, count)
        zeros = torch.zeros(len(at), device=at.device)
        return cls(at, zeros, zeros.clone())

    def add(self, gradient: Tensor, active: Tensor, *, anew: bool) -> None:
        """The dense gradient [numel] of a micro-batch; anew: of a step's first one."""
        found = gradient.index_select(0, self.positions).float()
        if anew or self.current is None:
            trained = gradient.index_select(0, active)
            self.probe = int(trained.abs().argmax())
            self.current, self.seen = found, float(trained[self.probe])
        else:
            self.current += found
            self.seen += float(gradient[active[self.probe]])

    def settle(self, gradient: Tensor) -> None:
        """The step's gradient of the trained entries [k], as it was clipped and unscaled here."""
        if self.current is not None:
            factor = float(gradient[self.probe]) / self.seen if self.seen else 1.0
            average(self.current.mul_(factor))

    def fold(self) -> None:
        """The step is taken: it counts, unless some of its gradients here are not finite."""
        g, self.current = self.current, None
        if g is not None and bool(torch.isfinite(g).all()):
            self.total += g
            self.squares.addcmul_(g, g)
            self.steps += 1

    def forget(self) -> None:
        """Drop what was seen of a step that is skipped."""
        self.current = None

    def moments(self, chosen: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
        """What Adam's m and v [n] would be after `steps` steps of the mean gradient."""
        m = self.total[chosen] / self.steps * (1 - beta1**self.steps)
        v = self.squares[chosen] / self.steps * (1 - beta2**self.steps)
        return m, v

    def state(self) -> dict[str, Any]:
        return {
            "positions": self.positions, "total": self.total, "squares": self.squares,
            "steps": self.steps,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Candidates:
        tensors = (state[name].to(device, copy=True) for name in ("positions", "total", "squares"))
        return cls(*tensors, steps=state["steps"])
