"""The transfer measure itself, to hold its bound against.

    gap(theta) = [L_T(theta) - L_T(theta*)] - [L_S(theta) - L_S(theta*)]
    sup of |gap| over ||theta - theta*|| <= delta   <=   delta^2 / 2 ||H_T - H_S||_2 + o(delta^2)

where both gradients are the same at theta*. `shared_optimum` makes such pairs of domains: features
of any kind, with soft labels that are the head's own probabilities, so that theta* is the optimum
of both.

>>> pair = shared_optimum(domains=2, n=40, d=3, classes=3, seed=0)
>>> measured, bound = transfer_gap(*pair, delta=0.01), pair_bound(*pair, delta=0.01)
>>> 0.9 < measured / bound < 1.05
True
"""

from __future__ import annotations

import torch
from torch import Tensor

from passband.dynamics.alignment import transfer_bound
from passband.parts.head_curvature import (
    head_gradient,
    head_hessian,
    head_loss,
    probabilities,
)

Domain = tuple[Tensor, Tensor]  # features [n, d], soft labels [n, C]


def shared_optimum(
    domains: int, n: int, d: int, classes: int, seed: int
) -> tuple[Tensor, tuple[Domain, ...]]:
    """A random head theta [P] and domains whose risk it minimises; float64.

    Each domain's features have a mean and a covariance of their own.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    theta = normal(classes * (d + 1))
    found = []
    for _ in range(domains):
        h = normal(n, d) @ normal(d, d) / d**0.5 + normal(d)
        found.append((h, probabilities(outputs(theta, h, classes))))
    return theta, tuple(found)


def outputs(theta: Tensor, h: Tensor, classes: int) -> Tensor:
    """[..., n, C] of heads theta [..., P] = (W, b)."""
    d = h.shape[1]
    weight = theta[..., : classes * d].reshape(*theta.shape[:-1], classes, d)
    return h @ weight.mT + theta[..., None, classes * d :]


def transfer_gap(
    theta: Tensor, domains: tuple[Domain, ...], delta: float, steps: int = 200
) -> float:
    """sup |gap| over the ball of radius delta, by projected ascent from several starts at once.

    The starts are the eigenvectors of H_T - H_S at both ends, both ways, and random directions;
    each climbs to the top and to the bottom. The next point of the sphere is where the gradient,
    with a shift, points to: for a quadratic gap that is power iteration, which ends at the largest
    eigenvalue.
    """
    hessians = [head_hessian(h, y) for h, y in domains]
    shift = sum(float(torch.linalg.eigvalsh(hessian)[-1]) for hessian in hessians)
    ends = torch.linalg.eigh(hessians[1] - hessians[0]).eigenvectors[:, [0, -1]].T
    generator = torch.Generator().manual_seed(0)
    more = torch.randn(4, len(theta), generator=generator, dtype=theta.dtype)
    starts = torch.cat([ends, -ends, more])
    way = torch.cat([starts, starts])  # [K, P]
    sign = torch.ones(len(way), dtype=theta.dtype)
    sign[len(starts) :] = -1
    way, last = delta * way / way.norm(dim=1, keepdim=True), torch.zeros(len(way))
    for _ in range(steps):
        moved = (theta + way).requires_grad_()
        values = sign * _gap(moved, theta, domains)
        if bool(((values - last).abs() <= 1e-7 * values.abs()).all()):
            break
        last = values.detach()
        (slope,) = torch.autograd.grad(values.sum(), moved)
        way = slope + shift * way
        way = delta * way / way.norm(dim=1, keepdim=True)
    return float(last.max())


def _gap(moved: Tensor, theta: Tensor, domains: tuple[Domain, ...]) -> Tensor:
    """[K] excess of the target less that of the source, at points [K, P]."""
    excess = []
    for h, y in domains:
        here, there = (head_loss(outputs(t, h, y.shape[1]), y) for t in (moved, theta[None]))
        excess.append(here - there)
    return excess[1] - excess[0]


def pair_bound(theta: Tensor, domains: tuple[Domain, ...], delta: float) -> float:
    """delta^2 / 2 ||H_T - H_S||_2 at theta, where the soft labels are the probabilities."""
    (source_h, source_p), (target_h, target_p) = domains
    one, two = head_hessian(source_h, source_p), head_hessian(target_h, target_p)
    return transfer_bound(one, two, delta)


def gradients_agree(theta: Tensor, domains: tuple[Domain, ...]) -> float:
    """Largest entry of any domain's gradient at theta: 0 for a shared optimum."""
    worst = 0.0
    for h, y in domains:
        p = probabilities(outputs(theta, h, y.shape[1]))
        worst = max(worst, float(head_gradient(h, p, y).abs().max()))
    return worst
