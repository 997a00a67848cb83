"""A toy state: halves the hidden layer midway, gathers Adam's moments, and counts what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Halving:
    """Drops half of the hidden units of Sequential(Linear, Tanh, ..., Linear) at `when`.

    Which units go depends on the weights of that moment, and a running mean of the weights, which
    no other part of the run knows, decays what is left at every step.
    """

    def __init__(self, module: nn.Sequential, optimizer: Optimizer, when: float = 0.5) -> None:
        self.first, self.last = module[0], module[-1]
        self.width = self.first.weight.shape[0]
        self.optimizer, self.when = optimizer, when
        self.kept: torch.Tensor | None = None
        self.running = torch.zeros(())
        self.calls: list[float] = []

    @property
    def places(self) -> list[tuple[nn.Parameter, int]]:
        """Parameters with a hidden dimension, and which one it is."""
        return [(self.first.weight, 0), (self.first.bias, 0), (self.last.weight, 1)]

    def state_dict(self) -> Mapping[str, Any]:
        return {"kept": self.kept, "running": self.running, "calls": list(self.calls)}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        self.kept, self.running = tree["kept"], tree["running"].clone()
        self.calls = list(tree["calls"])
        for p, dim in self.places:  # either way: the selected weights may be of before the change
            shape = list(p.shape)
            shape[dim] = self.width if self.kept is None else len(self.kept)
            p.data = p.data.new_zeros(shape)

    @torch.no_grad()
    def at(self, fraction: float) -> None:
        self.calls.append(fraction)
        self.running = 0.9 * self.running + 0.1 * self.first.weight.abs().mean()
        self.last.weight.mul_(1 - 0.01 * self.running)
        if self.kept is not None or fraction < self.when:
            return
        half = self.first.weight.shape[0] // 2
        self.kept = self.first.weight.square().sum(1).topk(half).indices.sort().values
        for p, dim in self.places:
            p.data = p.data.index_select(dim, self.kept)
            state = self.optimizer.state[p]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].index_select(dim, self.kept)
