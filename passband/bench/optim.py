"""Optimisers by name.

>>> optimizer = build_optimizer(model.parameters(), LoopConfig(optimizer="adamw", lr=1e-3))
>>> groups = [{"params": encoder, "lr": 1e-5}, {"params": head}]
>>> optimizer = build_optimizer(groups, LoopConfig(lr=1e-3))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from passband.errors import UnknownNameError

if TYPE_CHECKING:
    from passband.bench.loop_config import LoopConfig


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS with strong Wolfe conditions that gets out of a failed line search.

    When a step moves nothing (in float32 the line search ends that way) the curvature history is
    forgotten, so that the next step starts from the gradient. If even that moves nothing, the
    weights are as good as the arithmetic allows and `converged` is set.
    """

    converged = False

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        fresh = not self.state
        before = [p.detach().clone() for p in self._params]
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        if all(torch.equal(a, b) for a, b in zip(before, self._params, strict=True)):
            self.converged = fresh
            self.state.clear()
        return loss


def warm_up() -> None:
    """Construct an optimiser, so that a later construction takes no time."""
    Adam([torch.zeros(1, requires_grad=True)])


def _lbfgs(parameters: Any, config: LoopConfig) -> Optimizer:
    return LBFGS(
        parameters, lr=config.lr, max_iter=config.lbfgs_iterations,
        history_size=config.lbfgs_history, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )


OPTIMIZERS: dict[str, Callable[[Any, LoopConfig], Optimizer]] = {
    "adamw": lambda p, c: AdamW(p, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay),
    "adam": lambda p, c: Adam(p, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay),
    "sgd": lambda p, c: SGD(p, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay),
    "lbfgs": _lbfgs,
}


def build_optimizer(parameters: Iterable[Any], config: LoopConfig) -> Optimizer:
    """An optimiser over parameters or parameter groups; frozen parameters are left out."""
    if config.optimizer not in OPTIMIZERS:
        raise UnknownNameError("optimizer", config.optimizer, OPTIMIZERS)
    given = list(parameters)
    if given and isinstance(given[0], dict):
        kept: list[Any] = [
            {**g, "params": [p for p in g["params"] if p.requires_grad]} for g in given
        ]
    else:
        kept = [p for p in given if p.requires_grad]
    return OPTIMIZERS[config.optimizer](kept, config)
