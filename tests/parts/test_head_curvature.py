"""Closed forms of a head's gradient and curvature against graphs of gradients and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.head_curvature import (
    autograd_gradient,
    autograd_hvp,
    flat_parameters,
    head_gradient,
    head_hessian,
    head_hessian_diag,
    head_hvp,
    head_loss,
    hessian_distance,
    hessian_inner,
    hessian_spectral,
    hutchinson_diag,
    probabilities,
    spectral_norm,
    targets,
)


def drawn(classes: int, n: int = 20, d: int = 5, bias: bool = True, seed: int = 0):
    """A head, features and labels in float64, features with gradients."""
    torch.manual_seed(seed)
    head = nn.Linear(d, classes, bias=bias, dtype=torch.float64)
    h = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    return head, h, torch.randint(max(2, classes), (n,))


def torch_loss(z: Tensor, y: Tensor) -> Tensor:
    if z.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(z[:, 0], y.double())
    return F.cross_entropy(z, y)


def by_double_backward(head: nn.Linear, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [P] and Hessian [P, P] of torch's own loss, with graphs."""
    weights = list(head.parameters())
    loss = torch_loss(head(h), y)
    g = torch.cat([v.reshape(-1) for v in torch.autograd.grad(loss, weights, create_graph=True)])
    rows = [
        torch.cat([v.reshape(-1) for v in torch.autograd.grad(e, weights, create_graph=True)])
        for e in g
    ]
    return g, torch.stack(rows)


CASES = pytest.mark.parametrize(("classes", "bias"), [(1, True), (1, False), (2, True), (4, True),
                                                      (4, False)])


@CASES
def test_closed_forms_are_those_of_autograd(classes: int, bias: bool) -> None:
    head, h, y = drawn(classes, bias=bias)
    g, hessian = by_double_backward(head, h, y)
    z = head(h)
    p = probabilities(z)
    torch.testing.assert_close(head_loss(z, y), torch_loss(z, y), rtol=0, atol=1e-12)
    v = torch.randn(3, len(g), dtype=torch.float64)
    for ours, theirs in (
        (head_gradient(h, p, y, bias=bias), g),
        (head_hvp(h, p, g, bias=bias), hessian @ g),
        (head_hvp(h, p, v, bias=bias), v @ hessian),
        (head_hessian_diag(h, p, bias=bias), hessian.diagonal()),
        (head_hessian(h, p, bias=bias), hessian),
        (autograd_gradient(head, h, y), g),
        (autograd_hvp(head, h, y)(v), v @ hessian),
        (autograd_hvp(head, h, y)(v[0]), hessian @ v[0]),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@CASES
def test_gradients_flow_through_them_into_head_and_features(classes: int, bias: bool) -> None:
    """Third derivatives by one backward equal those of a graph of graphs."""
    head, h, y = drawn(classes, bias=bias)
    inputs = [*head.parameters(), h]
    g, hessian = by_double_backward(head, h, y)
    theirs = torch.autograd.grad(
        (hessian @ g).square().sum() + hessian.diagonal().square().sum(), inputs
    )
    p = probabilities(head(h))
    own = head_gradient(h, p, y, bias=bias)
    closed = head_hvp(h, p, own, bias=bias).square().sum() + head_hessian_diag(
        h, p, bias=bias
    ).square().sum()
    for a, b in zip(torch.autograd.grad(closed, inputs), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    g2 = autograd_gradient(head, h, y)
    again = torch.autograd.grad(autograd_hvp(head, h, y)(g2).square().sum(), inputs)
    g3 = by_double_backward(head, h, y)
    expected = torch.autograd.grad((g3[1] @ g3[0]).square().sum(), inputs)
    for a, b in zip(again, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_leading_axes_are_domains() -> None:
    torch.manual_seed(0)
    h, z = torch.randn(3, 7, 4).double(), torch.randn(3, 7, 2).double()
    y, p = torch.randint(2, (3, 7)), z.softmax(-1)
    v = torch.randn(3, 10).double()
    for e in range(3):
        for whole, one in (
            (head_gradient(h, p, y), head_gradient(h[e], p[e], y[e])),
            (head_hvp(h, p, v), head_hvp(h[e], p[e], v[e])),
            (head_hessian_diag(h, p), head_hessian_diag(h[e], p[e])),
        ):
            torch.testing.assert_close(whole[e], one)


@CASES
def test_distances_need_no_hessian(classes: int, bias: bool) -> None:
    head, h, _ = drawn(classes, n=20, d=12, bias=bias)
    other = torch.randn(31, 12, dtype=torch.float64)
    with torch.no_grad():
        pairs = (h, probabilities(head(h)), other, probabilities(head(other)))
        one, two = head_hessian(*pairs[:2], bias=bias), head_hessian(*pairs[2:], bias=bias)
        inner = hessian_inner(*pairs, bias=bias)
        torch.testing.assert_close(inner, (one * two).sum(), rtol=1e-10, atol=0)
        distance = hessian_distance(*pairs, bias=bias)
        torch.testing.assert_close(distance, (one - two).norm(), rtol=1e-8, atol=0)
        norm = np.linalg.norm((one - two).numpy(), 2)
        assert hessian_spectral(*pairs, bias=bias) == pytest.approx(norm, rel=1e-6)
        assert hessian_spectral(*pairs[:2], *pairs[:2], bias=bias) == 0.0


def test_the_largest_eigenvalue_may_be_negative() -> None:
    matrix = torch.diag(torch.linspace(-7, 3, 100, dtype=torch.float64))
    assert spectral_norm(lambda v: matrix @ v, 100) == pytest.approx(7.0)


@pytest.mark.parametrize("classes", [1, 3])
def test_probes_are_within_four_standard_errors(classes: int) -> None:
    head, h, y = drawn(classes)
    with torch.no_grad():
        p = probabilities(head(h))
    hessian = head_hessian(h, p).detach()
    error = ((hessian - hessian.diagonal().diag()).square().sum(1) / 300).sqrt()
    for product in (lambda z: head_hvp(h, p, z), autograd_hvp(head, h, y)):
        generator = torch.Generator().manual_seed(1)
        found = hutchinson_diag(product, len(hessian), 300, generator=generator, like=h).detach()
        assert bool(((found - hessian.diagonal()).abs() <= 4 * error).all())
        assert float((found - hessian.diagonal()).abs().max()) > 0


def test_soft_labels_and_half_precision() -> None:
    head, h, y = drawn(3)
    p = probabilities(head(h))
    soft = targets(y, 3).double()
    torch.testing.assert_close(head_gradient(h, p, soft), head_gradient(h, p, y))
    assert float(head_gradient(h, p, p).detach().abs().max()) == 0.0
    half = head_hvp(h.bfloat16(), p.bfloat16(), torch.ones(18))
    assert half.dtype == torch.float32
    assert probabilities(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32


def test_a_perfect_fit_is_no_nan() -> None:
    h = torch.randn(6, 2)
    z = (200 * F.one_hot(torch.arange(6) % 3, 3).float()).requires_grad_()
    p = probabilities(z)
    g = head_gradient(h, p, torch.arange(6) % 3)
    value = head_hvp(h, p, g).square().sum()
    (slope,) = torch.autograd.grad(value, z)
    assert float(g.detach().abs().max()) == 0.0
    assert torch.isfinite(slope).all() and torch.isfinite(value)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="3001 parameters"):
        head_hessian(torch.zeros(2, 3000), torch.full((2, 1), 0.5))
    with pytest.raises(ConfigError, match="probes = 0"):
        hutchinson_diag(lambda z: z, 3, 0)
    with pytest.raises(DataError, match="without parameters"):
        flat_parameters(nn.ReLU())
