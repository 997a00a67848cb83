"""The penalty that keeps what is learned low-rank: the nuclear norm of the trained entries.

    P_M [m, n]: the trained entries of a weight, zero elsewhere;  P_M = U S V^T
    |P_M|_* = sum of S,    its gradient at the entries: (U V^T) (.) M

U V^T comes from the smaller Gram matrix. Source: SaRA, arXiv 2409.06633, section 3.

>>> model = torch.nn.Linear(3, 2, bias=False)
>>> with torch.no_grad():
...     _ = model.weight.copy_(torch.tensor([[3.0, 0.0, 9.0], [0.0, -1.0, 9.0]]))
>>> selected = Selected(model, {"weight": torch.tensor([0, 4])})
>>> NuclearNorm(selected, min_dim=1)(step=0)          # 3 + 1
tensor(4., grad_fn=...)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError
from passband.parts.selective import Selected
from passband.parts.spectral import nuclear_gradient

Sampling = int | Literal["one", "all"]


class NuclearNorm:
    """Mean of |P_M|_* over matrices, or an estimate from some of them.

    sampling  how many are drawn at each step, all different: "one" (as the authors do), a number,
              or "all"; the mean over those drawn estimates the mean over all
    min_dim   only matrices whose smaller side is larger take part; kernels, vectors and embeddings
              of other dimensions never do
    """

    def __init__(
        self, selected: Selected, *, sampling: Sampling = "one", min_dim: int = 64, seed: int = 0
    ) -> None:
        if isinstance(sampling, int) and sampling < 1:
            raise ConfigError(f"rank_sampling = {sampling}", expected="'one', 'all', or 1 and up")
        weights = dict(selected.model.named_parameters())
        self.selected, self.seed = selected, seed
        self.shapes = {
            n: tuple(weights[n].shape) for n in selected.values
            if weights[n].ndim == 2 and min(weights[n].shape) > min_dim
        }
        wanted = {"one": 1, "all": len(self.shapes)}.get(sampling, sampling)  # type: ignore[call-overload]
        self.draws = min(int(wanted), len(self.shapes))

    def drawn(self, step: int) -> list[str]:
        """Names of the matrices of a step; they depend on seed and step alone."""
        names = list(self.shapes)
        if self.draws == len(names):
            return names
        rng = np.random.default_rng([self.seed, step])
        return [names[i] for i in sorted(rng.choice(len(names), self.draws, replace=False))]

    def __call__(self, step: int) -> Tensor | None:
        """The mean, a scalar with its gradient; None when no matrix is large enough."""
        terms = [self.norm(name) for name in self.drawn(step)]
        return torch.stack(terms).mean() if terms else None

    def norm(self, name: str) -> Tensor:
        """|P_M|_* of one matrix: <U V^T, P_M>, linear in the values once U V^T is there."""
        values = self.selected.values[name]
        return (values * self.gradient(name)).sum()

    @torch.no_grad()
    def gradient(self, name: str) -> Tensor:
        """(U V^T) (.) M at the trained entries [k]."""
        values, at = self.selected.values[name], self.selected.indices[name]
        return nuclear_gradient(dense(values, at, self.shapes[name])).flatten()[at]


def dense(values: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values [k] at flat indices [k], zero elsewhere."""
    flat = values.new_zeros(int(np.prod(shape)))
    return flat.index_copy_(0, indices, values.detach()).reshape(shape)
