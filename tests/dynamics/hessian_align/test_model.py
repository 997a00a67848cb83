"""The penalty: the sheet's fixture, a plain double-backward form of it, other heads, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.dynamics.hessian_align.model import HessianAlign
from passband.errors import ConfigError, DataError, PassbandWarning, UnknownNameError
from passband.parts.domain_views import DomainViews

# A worked example: three classes, two features, domains of three and of two examples.
W = torch.tensor([[0.5, -0.2], [0.1, 0.3], [-0.4, 0.2]], dtype=torch.float64)
B = torch.tensor([0.0, 0.1, -0.1], dtype=torch.float64)
X = [torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64),
     torch.tensor([[2.0, -1], [-1, 0.5]], dtype=torch.float64)]
Y = [torch.tensor([0, 1, 2]), torch.tensor([1, 0])]
G1 = [-0.05493025, 0.20022579, 0.26407367, -0.04078089, -0.20914342, -0.1594449, 0.02496791,
      0.07632428, -0.10129219]
HG1 = [-0.00443563, 0.02757727, 0.06313165, 0.03660552, -0.05869602, -0.06418279, 0.01474431,
       0.07046974, -0.08521405]
DIAG1 = [0.16000332, 0.13763843, 0.15813359, 0.16416917, 0.10096196, 0.12591004, 0.22075033,
         0.24013348, 0.17391753]


def head() -> nn.Linear:
    found = nn.Linear(2, 3, dtype=torch.float64)
    with torch.no_grad():
        found.weight.copy_(W)
        found.bias.copy_(B)
    return found


def test_the_worked_example() -> None:
    views = DomainViews.of(X, head(), Y)
    found = HessianAlign().aligned(views)
    assert float(views.risks.mean().detach()) == pytest.approx(1.357588944, abs=1e-9)
    for ours, expected in (
        (found.gradient[0], G1), (found.curvature[0], HG1), (views.curvature().diagonal()[0], DIAG1)
    ):
        theirs = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(ours.detach(), theirs, atol=1e-8, rtol=0)
    for alpha, beta, estimator, total in (
        (1, 0, "hgp", 1.968212199), (0, 1, "hgp", 2.029032826), (1, 0, "diag_exact", 0.112253869),
    ):
        align = HessianAlign(alpha, beta, estimator, reduction="sum")
        assert float(align(X, head(), Y).detach()) == pytest.approx(total, abs=1e-9)
        mean = HessianAlign(alpha, beta, estimator)
        assert float(mean(X, head(), Y).detach()) == pytest.approx(total / 2, abs=1e-9)


def plain(
    layer: nn.Linear, features: list[Tensor], labels: list[Tensor], alpha: float, beta: float,
    detach: bool,
) -> Tensor:
    """The penalty by graphs of gradients: H g = ||g|| grad ||g||."""
    weights = list(layer.parameters())

    def flat(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([t.reshape(-1) for t in parts])

    def pair(loss: Tensor) -> tuple[Tensor, Tensor]:
        g = flat(torch.autograd.grad(loss, weights, create_graph=True))
        norm = g.norm()
        return g, norm * flat(torch.autograd.grad(norm, weights, create_graph=True))

    losses = [F.cross_entropy(layer(h), y) for h, y in zip(features, labels, strict=True)]
    gbar, vbar = pair(sum(losses) / len(losses))  # type: ignore[arg-type]
    if detach:
        gbar, vbar = gbar.detach(), vbar.detach()
    total = torch.zeros(())
    for loss in losses:
        g, v = pair(loss)
        total = total + alpha * (v - vbar).square().sum() + beta * (g - gbar).square().sum()
    return total / len(losses)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("sizes", [(6, 6, 6), (4, 9, 5)])
def test_it_is_the_reference_form_with_its_gradients(detach: bool, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, body = nn.Linear(4, 3).double(), nn.Linear(5, 4).double()
    x = [torch.randn(n, 5).double() for n in sizes]
    y = [torch.randint(3, (n,)) for n in sizes]
    inputs = [*body.parameters(), *layer.parameters()]
    align = HessianAlign(0.7, 0.3, detach_mean=detach)
    features = [body(part).tanh() for part in x]
    values = align(features, layer, y), plain(layer, features, y, 0.7, 0.3, detach)
    torch.testing.assert_close(*values, atol=1e-12, rtol=0)
    slopes = [torch.autograd.grad(v, inputs, retain_graph=True) for v in values]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_outputs_serve_in_place_of_the_head_and_stacks_in_place_of_lists() -> None:
    torch.manual_seed(0)
    layer, h, y = nn.Linear(4, 1), torch.randn(2, 6, 4), torch.randint(2, (2, 6))
    align = HessianAlign()
    whole = align(h, layer, y)
    torch.testing.assert_close(align(list(h), [layer(part) for part in h], list(y)), whole)
    torch.testing.assert_close(align(h, layer(h), y), whole)
    bare = nn.Linear(4, 1, bias=False)
    assert align(h, bare, y) != align(h, bare(h), y)  # outputs alone are taken to have a bias


def test_other_heads_go_through_autograd_and_say_so() -> None:
    torch.manual_seed(0)
    h, y = torch.randn(2, 6, 4).double(), torch.randint(3, (2, 6))
    layer = nn.Linear(4, 3).double()
    wrapped = nn.Sequential(layer)
    for estimator, words in (("hgp", "Hessian-vector products"), ("diag_exact", "300 random")):
        with pytest.warns(PassbandWarning, match=words):
            found = HessianAlign(1.0, 1.0, estimator)(h, wrapped, y)
        exact = HessianAlign(1.0, 1.0, estimator)(h, layer, y)
        tolerance = 1e-12 if estimator == "hgp" else 0.2 * float(exact.detach())
        torch.testing.assert_close(found, exact, atol=tolerance, rtol=0)
    deep = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    h.requires_grad_()
    with pytest.warns(PassbandWarning, match="not linear"):
        value = HessianAlign()(h, deep, y)
    value.backward()
    assert deep[0].weight.grad.abs().max() > 0 and h.grad.abs().max() > 0


def test_probes_come_near_the_diagonal() -> None:
    torch.manual_seed(0)
    h, y, layer = torch.randn(2, 30, 4), torch.randint(3, (2, 30)), nn.Linear(4, 3)
    views = DomainViews.of(h, layer, y)
    exact = HessianAlign(estimator="diag_exact").aligned(views).curvature
    generator = torch.Generator().manual_seed(0)
    probed = HessianAlign(estimator="hutchinson", probes=3000, generator=generator).aligned(views)
    apart = (probed.curvature - exact).norm() / exact.norm()
    assert 0 < float(apart.detach()) < 0.05


def test_the_same_domain_twice_is_aligned() -> None:
    h, y, layer = torch.randn(6, 4), torch.randint(3, (6,)), nn.Linear(4, 3)
    for estimator in ("hgp", "diag_exact"):
        value = HessianAlign(estimator=estimator)([h, h], layer, [y, y])
        assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)


def test_bad_input_is_answered() -> None:
    layer, align = nn.Linear(4, 3), HessianAlign()
    h, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(DataError, match="1 domain"):
        align([h], layer, [y])
    with pytest.raises(DataError, match="needs >= 2 domains"):
        align(h, layer, y)
    with pytest.raises(DataError, match="labels from 1 to 3"):
        align([h, h], layer, [y, y + 1])
    with pytest.raises(DataError, match=r"labels \[\[5\], \[4\]\]"):
        align([h, h], layer, [y, y[:4]])
    with pytest.raises(DataError, match="without examples"):
        align([h, h[:0]], layer, [y, y[:0]])
    with pytest.warns(PassbandWarning, match="single example"):
        align([h, h[:1]], layer, [y, y[:1]])
    with pytest.raises(UnknownNameError, match="hpg"):
        HessianAlign(estimator="hpg")
    with pytest.raises(ConfigError, match="alpha = -1"):
        HessianAlign(alpha=-1.0)
