"""Penalties over domains against the formulas written out with graphs of gradients and loops."""

from __future__ import annotations

from itertools import combinations, islice

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.domain_batches import DomainBatchSampler, PenaltyAnneal
from passband.parts.domain_views import DomainViews
from passband.parts.losses.domains import CORAL, IGA, IRM, Fish, Fishr, NoPenalty, VREx


def drawn(classes: int = 3, sizes: tuple[int, ...] = (8, 5, 7)):
    torch.manual_seed(0)
    body, head = nn.Linear(6, 4).double(), nn.Linear(4, classes).double()
    features = [body(torch.randn(n, 6).double()).tanh() for n in sizes]
    return body, head, features, [torch.randint(max(2, classes), (n,)) for n in sizes]


def loss(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    if z.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(z[:, 0], y.double(), reduction=reduction)
    return F.cross_entropy(z, y, reduction=reduction)


def gradients(head: nn.Linear, features, labels, parameters) -> Tensor:
    rows = []
    for h, y in zip(features, labels, strict=True):
        found = torch.autograd.grad(loss(head(h), y), parameters, create_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def irm(head, features, labels) -> Tensor:
    total = torch.zeros(())
    for h, y in zip(features, labels, strict=True):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(head(h) * scale, y), scale, create_graph=True)
        total = total + slope**2 / len(features)
    return total


def vrex(head, features, labels) -> Tensor:
    risks = torch.stack([loss(head(h), y) for h, y in zip(features, labels, strict=True)])
    return risks.var(correction=0)


def coral(head, features, labels) -> Tensor:
    gaps = [
        (a.mean(0) - b.mean(0)).square().mean() + (a.T.cov() - b.T.cov()).square().mean()
        for a, b in combinations(features, 2)
    ]
    return torch.stack(gaps).mean()


def fish(head, features, labels) -> Tensor:
    g = gradients(head, features, labels, list(head.parameters()))
    return -torch.stack([a @ b for a, b in combinations(g, 2)]).mean()


def iga(head, features, labels) -> Tensor:
    return gradients(head, features, labels, list(head.parameters())).var(0, correction=0).sum()


def fishr(head, features, labels) -> Tensor:
    variances = []
    for h, y in zip(features, labels, strict=True):
        each = gradients(head, h.split(1), y.split(1), list(head.parameters()))
        variances.append(each.var(0, correction=0))
    return torch.stack(variances).var(0, correction=0).sum()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("sizes", [(8, 5, 7), (6, 6)])
@pytest.mark.parametrize(("penalty", "plain"), [
    (IRM(), irm), (VREx(), vrex), (CORAL(), coral), (Fish(), fish), (IGA(), iga),
    (Fishr(ema=0.0), fishr),
], ids=lambda v: getattr(v, "__name__", ""))
def test_closed_forms_are_the_formulas(penalty, plain, classes: int, sizes) -> None:
    body, head, features, labels = drawn(classes, sizes)
    values = penalty(features, head, labels), plain(head, features, labels)
    torch.testing.assert_close(*values, atol=1e-12, rtol=0)
    inputs = list(body.parameters()) + ([] if penalty.__class__ is CORAL else [head.weight])
    slopes = [torch.autograd.grad(v, inputs, retain_graph=True) for v in values]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("penalty", [Fish, IGA])
def test_gradients_of_any_parameters_can_be_compared(penalty) -> None:
    body, head, features, labels = drawn()
    everything = [*body.parameters(), *head.parameters()]
    found = penalty(everything)(features, head, labels)
    g = gradients(head, features, labels, everything)
    if penalty is IGA:
        expected = g.var(0, correction=0).sum()
    else:
        expected = -torch.stack([a @ b for a, b in combinations(g, 2)]).mean()
    torch.testing.assert_close(found, expected)
    same = penalty(list(head.parameters()))(features, head, labels)
    torch.testing.assert_close(same, penalty()(features, head, labels))


def test_fishr_averages_over_steps_and_keeps_the_average() -> None:
    _, head, features, labels = drawn()
    fishr = Fishr(ema=0.9, size=(3, 15)).double()
    plain = Fishr(ema=0.0)
    torch.testing.assert_close(fishr(features, head, labels), plain(features, head, labels))
    first = fishr.average.clone()
    assert float(first.abs().max()) > 0
    other = [2 * h for h in features]
    before = Fishr(ema=0.9, size=(3, 15)).double()
    before.load_state_dict(fishr.state_dict())
    one, two = fishr(other, head, labels), before(other, head, labels)
    torch.testing.assert_close(one, two)
    assert float((one - plain(other, head, labels)).detach().abs()) > 1e-6
    with pytest.raises(ConfigError, match="an average of shape"):
        fishr(features[:2], head, labels[:2])
    with pytest.raises(ConfigError, match="Sequential"):
        plain(features, nn.Sequential(head), labels)


def test_no_penalty_and_no_domains() -> None:
    _, head, features, labels = drawn()
    assert float(NoPenalty()(features, head, labels)) == 0.0
    with pytest.raises(DataError, match="1 domain"):
        VREx()(features[:1], head, labels[:1])
    with pytest.raises(ConfigError, match="ema"):
        Fishr(ema=1.0)


def test_inside_vmap_values_are_not_looked_at() -> None:
    torch.manual_seed(0)
    h, z, y = torch.randn(4, 2, 5, 3), torch.randn(4, 2, 5, 2), torch.randint(2, (4, 2, 5))
    for penalty in (IRM, VREx, CORAL, Fish, IGA):
        quiet = penalty(validate=False)
        found = torch.vmap(lambda a, b, c, f=quiet: f(a, b, c))(h, z, y)
        expected = torch.stack([penalty()(a, b, c) for a, b, c in zip(h, z, y, strict=True)])
        torch.testing.assert_close(found, expected)


def test_views_split_and_weigh_domains_alike() -> None:
    _, head, features, labels = drawn()
    views = DomainViews.of(features, head, labels)
    assert views.count == 3 and [len(h) for h, _, _ in views.split()] == [8, 5, 7]
    expected = torch.stack([loss(head(h), y) for h, y in zip(features, labels, strict=True)])
    torch.testing.assert_close(views.risks, expected)


# ---- batches and annealing ---------------------------------------------------------------------


def test_batches_have_every_domain_and_lose_no_example() -> None:
    ids = torch.tensor([2, 0, 2, 2, 0, 2, 0, 0, 2, 7])
    sampler = DomainBatchSampler(ids, per_domain=3, seed=1)
    assert sampler.sizes == [3, 3, 1] and sampler.domains == [0, 2, 7]
    batches = list(islice(sampler, 40))
    for batch in batches:
        assert ids[batch].tolist() == [0, 0, 0, 2, 2, 2, 7]
    for e, n in ((0, 4), (2, 5)):
        seen = torch.cat([torch.tensor(b)[ids[b] == e] for b in batches])
        counts = torch.bincount(seen, minlength=10)[ids == e]
        assert int(counts.max() - counts.min()) <= 1 and int(counts.sum()) == 120
        assert set(seen[:n].tolist()) == set((ids == e).nonzero().ravel().tolist())
    again = list(islice(sampler, 40))
    assert batches == again
    other = DomainBatchSampler(ids, per_domain=3, seed=2)
    assert batches != list(islice(other, 40))
    whole = next(iter(DomainBatchSampler(ids)))
    assert ids[whole].tolist() == [0] * 4 + [2] * 5 + [7]
    with pytest.raises(ConfigError, match="per_domain = 0"):
        DomainBatchSampler(ids, 0)
    with pytest.raises(DataError, match="no examples"):
        DomainBatchSampler([])


def test_annealing_jumps_once_and_keeps_the_size_of_the_loss() -> None:
    anneal = PenaltyAnneal(10, low=0.5, high=100.0)
    assert [anneal(s) for s in (0, 9, 10, 500)] == [0.5, 0.5, 100.0, 100.0]
    assert [s for s in range(30) if anneal.switches(s)] == [10]
    risk, penalty = torch.tensor(2.0), torch.tensor(0.1)
    assert float(anneal.total(risk, penalty, 0)) == pytest.approx(2.05)  # below 1: as it is
    assert float(anneal.total(risk, penalty, 10)) == pytest.approx(12.0 / 100)
    plain = PenaltyAnneal(10, high=100.0, rescale=False)
    assert float(plain.total(risk, penalty, 10)) == pytest.approx(12.0)
    assert not PenaltyAnneal(0).switches(0)
    with pytest.raises(ConfigError, match="high = -1"):
        PenaltyAnneal(1, high=-1.0)
