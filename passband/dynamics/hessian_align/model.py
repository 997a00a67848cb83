"""Aligning gradients and Hessians of the head across domains (arXiv 2308.11778).

    total = mean_e L_e + (1 / E) sum_e [ alpha ||v_e - vbar||^2 + beta ||g_e - gbar||^2 ]

    g_e   gradient of domain e's mean loss in the head's weights and bias together;  gbar its mean
    hgp          v_e = H_e g_e,     vbar = Hbar gbar        which is not the mean of H_e g_e
    diag_exact   v_e = diag(H_e),   vbar = its mean
    hutchinson   the same, each an estimate from random signs z:  mean of z (H_e z)

    features [E, n, d] or E of [n_e, d],  labels [E, n] or E of [n_e]  ->  scalar

For a linear head everything is a closed form (`passband.parts.head_curvature`): a penalty costs a
few products with the features, and ordinary backward goes through it into head and features. No
Hessian is formed.

>>> head, align = nn.Linear(4, 3), HessianAlign(alpha=1.0, beta=1.0)
>>> body = nn.Linear(6, 4)                                     # any featurizer
>>> inputs = [torch.randn(8, 6), torch.randn(5, 6)]            # two domains
>>> labels = [torch.randint(3, (8,)), torch.randint(3, (5,))]
>>> features = [body(x) for x in inputs]
>>> risk = sum(nn.functional.cross_entropy(head(h), y) for h, y in zip(features, labels)) / 2
>>> (risk + align(features, head, labels)).backward()
>>> body.weight.grad.shape
torch.Size([4, 6])

E domains, n examples of each, d features, P parameters of the head.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from passband.errors import ConfigError, PassbandWarning, UnknownNameError
from passband.parts.domain_batches import DomainBatchSampler, PenaltyAnneal
from passband.parts.domain_views import DomainViews
from passband.parts.head_curvature import (
    head_gradient,
    head_hessian,
    head_hessian_diag,
    head_hvp,
    hutchinson_diag,
)
from passband.parts.losses.domains import DomainPenalty

__all__ = [
    "ESTIMATORS", "Aligned", "DomainBatchSampler", "HessianAlign", "PenaltyAnneal",
    "head_gradient", "head_hessian", "head_hessian_diag", "head_hvp",
]

ESTIMATORS = ("hgp", "diag_exact", "hutchinson")


class Aligned(NamedTuple):
    """What is brought together: each domain's own [E, P], and the mean domain's [P]."""

    gradient: Tensor
    gradient_mean: Tensor
    curvature: Tensor
    curvature_mean: Tensor


class HessianAlign(DomainPenalty):
    """The penalty.

    alpha, beta  of the curvature and of the gradient. They are no two scales of one thing: the
                 published ranges of alpha differ by 1e4 and more between hgp and hutchinson
    estimator    see above; all are exact but hutchinson
    probes       signs of hutchinson
    detach_mean  gradients flow through each domain's own term, not through the mean domain's
    reduction    "mean" over domains, or their "sum"
    generator    of hutchinson's signs; None: torch's own
    validate     look at the labels' values each time; False inside `torch.vmap`

    Called with (features, head, labels), the head an nn.Linear, its outputs, or any module. A
    head that is not linear goes through autograd, with a warning: hgp by Hessian-vector products,
    diag_exact by `probes` signs, for it has no closed form.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 1.0, estimator: str = "hgp", probes: int = 300,
        detach_mean: bool = True, reduction: str = "mean",
        generator: torch.Generator | None = None, validate: bool = True,
    ) -> None:
        super().__init__(validate=validate)
        if estimator not in ESTIMATORS:
            raise UnknownNameError("estimator", estimator, ESTIMATORS)
        if alpha < 0 or beta < 0 or probes < 1 or reduction not in ("mean", "sum"):
            raise ConfigError(
                f"alpha = {alpha:g}, beta = {beta:g}, probes = {probes}, reduction {reduction!r}",
                expected="factors from 0 up, a probe or more, 'mean' or 'sum'",
            )
        self.alpha, self.beta, self.estimator, self.probes = alpha, beta, estimator, probes
        self.detach_mean, self.reduction, self.generator = detach_mean, reduction, generator

    def penalty(self, views: DomainViews) -> Tensor:
        found = self.aligned(views)
        total = self.alpha * self._apart(found.curvature, found.curvature_mean)
        total = total + self.beta * self._apart(found.gradient, found.gradient_mean)
        return total / views.count if self.reduction == "mean" else total

    def aligned(self, views: DomainViews) -> Aligned:
        """Gradients and curvatures of the domains and of the mean domain."""
        curvature, estimator = views.curvature(), self.estimator
        if views.head is not None:
            estimator = self._without_closed_forms(views)
        g = curvature.gradient
        mean = g.mean(0)
        if estimator == "hgp":
            # Two products with every H_e: its own gradient's, and the mean domain's for Hbar gbar.
            both = curvature.product(torch.stack([g, mean.expand_as(g)]))
            return Aligned(g, mean, both[0], both[1].mean(0))
        if estimator == "diag_exact":
            diagonal = curvature.diagonal()
            assert diagonal is not None
        else:
            diagonal = hutchinson_diag(
                lambda z: curvature.product(z[:, None]), g.shape[-1], self.probes,
                generator=self.generator, like=g,
            )
        return Aligned(g, mean, diagonal, diagonal.mean(0))

    def _apart(self, values: Tensor, mean: Tensor) -> Tensor:
        """Sum over domains of the squared distance to the mean domain."""
        return (values - (mean.detach() if self.detach_mean else mean)).square().sum()

    def _without_closed_forms(self, views: DomainViews) -> str:
        used = "hutchinson" if self.estimator == "diag_exact" else self.estimator
        how = "Hessian-vector products by autograd" if used == "hgp" else (
            f"{self.probes} random probes and autograd"
        )
        warnings.warn(
            f"the head is a {type(views.head).__name__}, not linear: no closed form of its "
            f"curvature; {how} are used. Give the last linear layer as the head, and what goes "
            "into it as features, for exact ones at a fraction of the time",
            PassbandWarning, stacklevel=5,
        )
        return used
