"""Leading eigenvalues against those of the Hessian itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.sharpness import hessian_vector_product, leading_eigenvalues, sharpness


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3))
    return layers.double()


X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(3, (40,), generator=torch.Generator().manual_seed(2))


def loss(model, batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def dense(model: nn.Module) -> Tensor:
    """The whole Hessian, by forward over reverse mode on a flat vector."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    sizes = [s.numel() for s in shapes]

    def of(flat: Tensor) -> Tensor:
        pieces = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        out = functional_call(model, dict(zip(names, pieces, strict=True)), (X,))
        return nn.functional.cross_entropy(out, Y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.func.hessian(of)(flat)


def test_the_leading_eigenvalues_are_those_of_the_hessian() -> None:
    model = network()
    exact = torch.linalg.eigvalsh(dense(model)).flip(0)
    found = leading_eigenvalues(model, loss, (X, Y), k=4, steps=51, tol=1e-8)
    torch.testing.assert_close(found, exact[:4], rtol=1e-7, atol=1e-10)
    assert sharpness(model, loss, (X, Y), tol=1e-6) == pytest.approx(float(exact[0]), rel=1e-5)


def test_the_largest_is_meant_not_the_largest_in_size() -> None:
    """At a maximum of the loss all eigenvalues are negative."""
    model = nn.Linear(2, 1, bias=False).double()
    batch = (torch.eye(2, dtype=torch.float64),)
    def hill(m, b):
        return -(m(b[0]).square() * torch.tensor([[1.0], [5.0]])).sum()
    found = leading_eigenvalues(model, hill, batch, k=2)
    torch.testing.assert_close(found, torch.tensor([-2.0, -10.0], dtype=torch.float64))


def test_uneven_batches_are_the_whole() -> None:
    model = network()
    batches = [(X[a:b], Y[a:b]) for a, b in ((0, 3), (3, 25), (25, 40))]
    whole = leading_eigenvalues(model, loss, (X, Y), k=2, tol=1e-9, steps=51)
    torch.testing.assert_close(
        leading_eigenvalues(model, loss, batches, k=2, tol=1e-9, steps=51), whole
    )


def test_a_product_is_a_column_of_the_hessian() -> None:
    model = network()
    hessian = dense(model)
    unit = torch.zeros(len(hessian), dtype=torch.float64)
    unit[7] = 1.0
    found = hessian_vector_product(loss(model, (X, Y)), list(model.parameters()), unit)
    torch.testing.assert_close(found, hessian[:, 7])


def test_the_model_is_looked_at_as_it_stands() -> None:
    model = network(dropout=0.5).train()
    model[0].bias.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    first = sharpness(model, loss, (X, Y))
    assert model.training and sharpness(model, loss, (X, Y)) == first
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():  # as in a validation
        assert sharpness(model, loss, (X, Y)) == first


def test_a_linear_loss_is_flat() -> None:
    model = nn.Linear(2, 1)
    assert sharpness(model, lambda m, b: m(b[0]).mean(), (torch.ones(3, 2),)) == 0.0


def test_what_is_not_known_is_said() -> None:
    with pytest.warns(PassbandWarning, match="raise steps"):
        leading_eigenvalues(network(), loss, (X, Y), k=1, steps=2, tol=1e-12)
    with pytest.raises(ConfigError, match="k = 3, steps = 2"):
        leading_eigenvalues(network(), loss, (X, Y), k=3, steps=2)
    with pytest.raises(DataError, match="data of type"):
        sharpness(network(), loss, X)
    with pytest.raises(DataError, match="not finite"):
        sharpness(network(), lambda m, b: loss(m, b) / 0.0, (X, Y))
    frozen = network().requires_grad_(False)
    with pytest.raises(DataError, match="no parameter"):
        sharpness(frozen, loss, (X, Y))
