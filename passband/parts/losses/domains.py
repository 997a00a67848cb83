"""Penalties that make a model the same across domains: IRM, V-REx, CORAL, Fish, IGA, Fishr.

    total = mean_e L_e + weight * penalty(features, head, labels)

    IRM     mean_e (d L_e(w z) / d w at w = 1)^2            z: outputs         arXiv 1907.02893
    V-REx   mean_e (L_e - mean L)^2                                            arXiv 2003.00688
    CORAL   mean over pairs of the mean squared gaps of means and covariances  arXiv 1607.01719
    Fish    - mean over pairs of g_e . g_f                                     arXiv 2104.09937
    IGA     mean_e ||g_e - mean g||^2                                          arXiv 2008.01883
    Fishr   mean_e ||v_e - mean v||^2, v_e: variance of the examples' gradients in the head,
            averaged over steps                                                arXiv 2109.02934

>>> head = nn.Linear(4, 3)
>>> features, labels = [torch.randn(8, 4) for _ in range(2)], [torch.randint(3, (8,))] * 2
>>> for penalty in (IRM(), VREx(), CORAL(), Fish(), IGA(), Fishr()):
...     assert penalty(features, head, labels).dim() == 0

All take the same three things (see `passband.parts.domain_views`): E tensors of features, the head
or its outputs, E tensors of labels. For a linear head they are closed forms, without graphs of
gradients. Fish and IGA compare gradients of the head, or of any parameters that are named.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from passband.errors import ConfigError
from passband.parts.domain_views import DomainViews, Stack
from passband.parts.head_curvature import probabilities, targets


class DomainPenalty(nn.Module):
    """Base: a scalar from features, head and labels of E domains.

    validate  look at the labels' values each time; False inside `torch.vmap`
    """

    def __init__(self, *, validate: bool = True) -> None:
        super().__init__()
        self.validate = validate

    def forward(self, features: Stack, head: Stack | nn.Module, labels: Stack) -> Tensor:
        return self.penalty(DomainViews.of(features, head, labels, validate=self.validate))

    def penalty(self, views: DomainViews) -> Tensor:
        raise NotImplementedError


class NoPenalty(DomainPenalty):
    """Nothing: empirical risk minimisation."""

    def penalty(self, views: DomainViews) -> Tensor:
        return views.risks.new_zeros(())


class IRM(DomainPenalty):
    """Invariant risk minimisation (IRMv1): no domain may gain by scaling the outputs."""

    def penalty(self, views: DomainViews) -> Tensor:
        def slope(h: Tensor, z: Tensor, y: Tensor) -> Tensor:
            p = probabilities(z)
            residual = p - targets(y, p.shape[-1]).to(p.dtype)
            return (residual * z).sum(-1).mean(-1)

        return views.each(slope).square().mean()


class VREx(DomainPenalty):
    """Variance of the domains' risks."""

    def penalty(self, views: DomainViews) -> Tensor:
        return apart(views.risks[:, None])


class CORAL(DomainPenalty):
    """Means and covariances of the features; the head plays no part.

    Gaps are averaged over the d entries of a mean and the d^2 of a covariance (divided by n - 1).
    """

    def penalty(self, views: DomainViews) -> Tensor:
        def means(h: Tensor, z: Tensor, y: Tensor) -> Tensor:
            return h.mean(-2)

        def covariances(h: Tensor, z: Tensor, y: Tensor) -> Tensor:
            centred = h - h.mean(-2, keepdim=True)
            return (centred.mT @ centred / max(1, h.shape[-2] - 1)).flatten(-2)

        count = views.count
        # The mean over pairs is the spread around the common mean, E / (E - 1) times two.
        pairs = 2 * count / (count - 1)
        found = torch.zeros((), dtype=views.features[0].dtype, device=views.features[0].device)
        for moments in (means, covariances):
            values = views.each(moments)
            found = found + pairs * apart(values) / values.shape[-1]
        return found


class Fish(DomainPenalty):
    """Gradients of any two domains are to point the same way.

    parameters  whose gradients; None: the head's, in closed form. The published method reaches the
                same aim by a first-order update over inner steps, one domain after the other.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | None = None, *, validate: bool = True
    ) -> None:
        super().__init__(validate=validate)
        self.of_parameters = None if parameters is None else tuple(parameters)

    def penalty(self, views: DomainViews) -> Tensor:
        g, count = domain_gradients(views, self.of_parameters), views.count
        pairs = g.sum(0).square().sum() - g.square().sum()
        return -pairs / (count * (count - 1))


class IGA(DomainPenalty):
    """Variance of the domains' gradients.

    parameters  whose gradients; None: the head's, in closed form
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | None = None, *, validate: bool = True
    ) -> None:
        super().__init__(validate=validate)
        self.of_parameters = None if parameters is None else tuple(parameters)

    def penalty(self, views: DomainViews) -> Tensor:
        return apart(domain_gradients(views, self.of_parameters))


class Fishr(DomainPenalty):
    """Variances of the examples' gradients in the linear head.

    ema   decay of the running average over steps that small batches need; 0: none
    size  (E, P): the average becomes a buffer that is saved with the module. None: it is made in
          the first call

    >>> fishr = Fishr(ema=0.95, size=(2, 9))
    >>> fishr.state_dict()["average"].shape
    torch.Size([2, 9])
    """

    average: Tensor
    seen: Tensor

    def __init__(
        self, ema: float = 0.95, size: tuple[int, int] | None = None, *, validate: bool = True
    ) -> None:
        super().__init__(validate=validate)
        if not 0 <= ema < 1:
            raise ConfigError(f"ema = {ema}", expected="from 0 to below 1")
        self.ema = ema
        self.register_buffer("average", torch.zeros(size or (0, 0)))
        self.register_buffer("seen", torch.zeros(()))

    def penalty(self, views: DomainViews) -> Tensor:
        if views.head is not None:
            raise ConfigError(
                f"Fishr with a head that is a {type(views.head).__name__}", expected="a linear one",
                mend="give its last layer, and what goes into it as features",
            )
        variances = gradient_variances(views)
        return apart(variances if not self.ema else self._averaged(variances))

    def _averaged(self, variances: Tensor) -> Tensor:
        """Past steps count, without gradients; the first step has none."""
        if not len(self.average):
            self.average = torch.zeros_like(variances)
        if self.average.shape != variances.shape:
            raise ConfigError(
                f"an average of shape {list(self.average.shape)} for variances of "
                f"{list(variances.shape)}", expected="the same domains and head in every step",
            )
        decay = self.ema * (self.seen > 0).to(variances)
        found = decay * self.average + (1 - decay) * variances
        with torch.no_grad():
            self.average.copy_(found)
            self.seen += 1
        return found


def gradient_variances(views: DomainViews) -> Tensor:
    """[E, P] variance over its examples of each domain's gradient in a linear head.

    The gradient of an example is r (x) (h, 1) with r = p - Y, so its square is r^2 (x) (h^2, 1):
    two products, and no example's gradient is formed.
    """
    def variances(h: Tensor, z: Tensor, y: Tensor) -> Tensor:
        p = probabilities(z)
        r, h = p - targets(y, p.shape[-1]).to(p.dtype), h.to(p.dtype)
        n = h.shape[-2]
        weight = r.square().mT @ h.square() / n - (r.mT @ h / n).square()
        found = weight.flatten(-2)
        if not views.bias:
            return found
        return torch.cat([found, r.square().mean(-2) - r.mean(-2).square()], -1)

    return views.each(variances)


def domain_gradients(views: DomainViews, parameters: Iterable[Tensor] | None = None) -> Tensor:
    """[E, P] gradients of the domains' risks: in the head, or in parameters behind the outputs."""
    if parameters is None:
        return views.curvature().gradient
    chosen = list(parameters)
    rows = []
    for risk in views.risks:
        found = torch.autograd.grad(risk, chosen, create_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def apart(values: Tensor) -> Tensor:
    """[E, P] -> mean over E of the squared distance to the mean.

    >>> apart(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    tensor(1.)
    """
    return (values - values.mean(0)).square().sum(-1).mean()
