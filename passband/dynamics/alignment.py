"""How far domains are apart in a linear head: gradients, Hessians, features; and a transfer bound.

    risk of T above its least - that of S, within delta of a shared optimum
        <= delta^2 / 2 ||H_T - H_S||_2 + o(delta^2)

where the gradients of both in the head agree there. H_e: Hessian of domain e's mean loss in the
head's parameters, P = C (d + 1) of them.

>>> head = nn.Linear(4, 3)
>>> domains = {name: (torch.randn(30, 4), torch.randint(3, (30,))) for name in ("a", "b")}
>>> report = alignment_report(head, domains)
>>> report.hessian_spectral.shape, report.bound(0.1).shape
(torch.Size([2, 2]), torch.Size([2, 2]))

What the pieces compare: g_b the mean error of each class; g_W errors against features; H_bb
confidence; H_Wb means of features weighted by it; H_WW their second moments.
Source: Hemati et al., arXiv 2308.11778.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.parts.head_curvature import (
    head_gradient,
    head_loss,
    hessian_distance,
    hessian_spectral,
    probabilities,
)

Domains = Mapping[str, tuple[Tensor, Tensor]] | Sequence[tuple[Tensor, Tensor]]
# matrix of the report -> what it says
MATRICES = {
    "gradient": "||g_e - g_f||", "gradient_weight": "||g_e - g_f||, weights",
    "gradient_bias": "||g_e - g_f||, biases", "hessian_frobenius": "||H_e - H_f||_F",
    "hessian_spectral": "||H_e - H_f||_2", "hessian_bias": "||H_e - H_f||_F, biases",
    "hessian_weight": "||H_e - H_f||_F, weights", "feature_mean": "gap of feature means",
    "feature_covariance": "gap of feature covariances, Frobenius",
}


@dataclass(frozen=True, eq=False)
class AlignmentReport:
    """Distances of E domains, each a matrix [E, E] float64 of 0 on the diagonal.

    risks     [E] mean losses
    accuracy  [E] in %
    Every other field is a name of `MATRICES`.
    """

    names: tuple[str, ...]
    risks: Tensor
    accuracy: Tensor
    gradient: Tensor
    gradient_weight: Tensor
    gradient_bias: Tensor
    hessian_frobenius: Tensor
    hessian_spectral: Tensor
    hessian_bias: Tensor
    hessian_weight: Tensor
    feature_mean: Tensor
    feature_covariance: Tensor

    def mean(self, matrix: str) -> float:
        """Mean over pairs of domains of a matrix, by its name."""
        values, count = getattr(self, matrix), len(self.names)
        return float(values.sum()) / max(1, count * (count - 1))

    def bound(self, delta: float) -> Tensor:
        """[E, E] bounds of the transfer measure at radius delta, to second order."""
        return 0.5 * delta**2 * self.hessian_spectral

    def table(self) -> dict[str, list[Any]]:
        """Pairs of domains with what lies between them: what the report shows as a table."""
        rows = [
            [self.names[e], self.names[f], *(f"{getattr(self, m)[e, f]:.3g}" for m in MATRICES)]
            for e, f in combinations(range(len(self.names)), 2)
        ]
        return {"columns": ["domain", "other", *MATRICES.values()], "rows": rows}

    def to_json(self) -> dict[str, Any]:
        fields = ("risks", "accuracy", *MATRICES)
        return {"names": list(self.names)} | {n: getattr(self, n).tolist() for n in fields}


@torch.no_grad()
def alignment_report(head: nn.Linear, domains: Domains) -> AlignmentReport:
    """
    head     linear, of C outputs or a single one
    domains  name -> (features [n, d], labels [n]), or a list of such pairs

    Raises `DataError` for fewer than two domains and for a head that is not linear.
    """
    named = domains if isinstance(domains, Mapping) else {
        str(e): pair for e, pair in enumerate(domains)
    }
    if len(named) < 2:
        raise DataError(f"{len(named)} domains", expected="needs >= 2 domains")
    if not isinstance(head, nn.Linear):
        raise DataError(
            f"a head that is a {type(head).__name__}", expected="an nn.Linear",
            mend="give the last layer, and what goes into it as features",
        )
    bias, parts = head.bias is not None, []
    weight = head.weight.double()
    for h, y in named.values():
        h = h.double()
        z = h @ weight.T + (head.bias.double() if bias else 0.0)
        parts.append((h, z, probabilities(z), y))
    g = [head_gradient(h, p, y, bias=bias) for h, _, p, y in parts]
    size = weight.numel()

    def between(distance: Callable[[Any, Any], Any], things: Sequence[Any]) -> Tensor:
        found = torch.zeros(len(things), len(things), dtype=torch.float64)
        for e, f in combinations(range(len(things)), 2):
            found[e, f] = found[f, e] = float(distance(things[e], things[f]))
        return found

    curved = [(h, p) for h, _, p, _ in parts]
    confident = [(h[:, :0], p) for h, p in curved]  # no features but the constant: H_bb alone
    norm = [h.mean(0) for h, _ in curved]
    covariance = [h.T.cov(correction=min(1, len(h) - 1)).reshape(-1) for h, _ in curved]
    return AlignmentReport(
        tuple(named), torch.stack([head_loss(z, y) for _, z, _, y in parts]),
        torch.stack([_accuracy(z, y) for _, z, _, y in parts]),
        gradient=between(_gap, g), gradient_weight=between(_gap, [v[:size] for v in g]),
        gradient_bias=between(_gap, [v[size:] for v in g]),
        hessian_frobenius=between(lambda a, b: hessian_distance(*a, *b, bias=bias), curved),
        hessian_spectral=between(lambda a, b: hessian_spectral(*a, *b, bias=bias), curved),
        hessian_bias=between(lambda a, b: hessian_distance(*a, *b, bias=bias), confident),
        hessian_weight=between(lambda a, b: hessian_distance(*a, *b, bias=False), curved),
        feature_mean=between(_gap, norm), feature_covariance=between(_gap, covariance),
    )


def transfer_bound(source: Tensor, target: Tensor, delta: float) -> float:
    """delta^2 / 2 ||H_T - H_S||_2 of two Hessians [P, P] in one head.

    >>> transfer_bound(torch.diag(torch.tensor([1.0, 2.0])), torch.zeros(2, 2), delta=0.1)
    0.01...
    """
    if source.shape != target.shape or source.dim() != 2 or delta < 0:
        raise DataError(
            f"Hessians of shapes {list(source.shape)}, {list(target.shape)}, delta = {delta:g}",
            expected="two matrices [P, P] and a radius from 0 up",
        )
    return float(0.5 * delta**2 * torch.linalg.eigvalsh((target - source).double()).abs().max())


def _gap(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).norm()


def _accuracy(z: Tensor, y: Tensor) -> Tensor:
    found = (z[:, 0] > 0).long() if z.shape[1] == 1 else z.argmax(1)
    return 100 * (found == y).double().mean()
