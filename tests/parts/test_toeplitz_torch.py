"""Differentiable Toeplitz operations: gradients by finite differences, values by dense torch."""

import numpy as np
import pytest
import torch
from scipy import linalg

from passband.errors import DataError
from passband.parts.toeplitz_torch import THIN, correlate, multiply, solve

THIN_AND_WIDE = [1, 3, THIN, THIN + 1, 40]


def column(n, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=n) * 0.7 ** np.arange(n)
    c[0] = 1 + 2 * np.abs(c[1:]).sum()
    return torch.from_numpy(c)


def rhs(n, m, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, m)))


def lags(n, antisymmetric):
    t = torch.from_numpy(np.random.default_rng(2).normal(size=n))
    if antisymmetric:
        t[0] = 0.0
    return t


def dense(t, antisymmetric=False):
    """Differentiable T_ij = +-t_|i-j| by indexing."""
    i = torch.arange(len(t))
    gap = i[:, None] - i[None, :]
    full = t[gap.abs()]
    return full * torch.sign(gap) if antisymmetric else full


@pytest.mark.parametrize("m", THIN_AND_WIDE)
@pytest.mark.parametrize("n", [1, 2, 9, 32])
def test_solve_and_its_gradient_against_dense_torch(n, m):
    c, b = column(n).requires_grad_(), rhs(n, m).requires_grad_()
    weights = rhs(n, m, seed=3)
    x, log_determinant = solve(c, b)
    got = torch.autograd.grad((x * weights).sum() + 1.7 * log_determinant, (c, b))
    matrix = dense(c)
    expected = torch.linalg.solve(matrix, b)
    assert torch.allclose(x, expected, rtol=1e-11, atol=1e-12)
    assert log_determinant.item() == pytest.approx(torch.logdet(matrix).item(), rel=1e-12)
    reference = torch.autograd.grad(
        (expected * weights).sum() + 1.7 * torch.logdet(matrix), (c, b)
    )
    for a, e in zip(got, reference, strict=True):
        assert torch.allclose(a, e, rtol=0, atol=1e-11 * float(e.abs().max()))


@pytest.mark.parametrize("m", [2, THIN + 2])
def test_gradcheck_of_solve(m):
    c, b = column(6).requires_grad_(), rhs(6, m).requires_grad_()
    assert torch.autograd.gradcheck(solve, (c, b))
    assert torch.autograd.gradcheck(lambda c, b: solve(c, b)[0], (c, b))
    assert torch.autograd.gradcheck(lambda c: solve(c, b.detach())[1], (c,))


@pytest.mark.parametrize("antisymmetric", [False, True])
@pytest.mark.parametrize("m", THIN_AND_WIDE)
@pytest.mark.parametrize("n", [1, 2, 9, 32])
def test_multiply_and_its_gradient_against_dense_torch(n, m, antisymmetric):
    t, b = lags(n, antisymmetric).requires_grad_(), rhs(n, m).requires_grad_()
    weights = rhs(n, m, seed=3)
    got = multiply(t, b, antisymmetric)
    expected = dense(t, antisymmetric) @ b
    assert torch.allclose(got, expected, rtol=1e-13, atol=1e-13)
    ours = torch.autograd.grad((got * weights).sum(), (t, b))
    theirs = torch.autograd.grad((expected * weights).sum(), (t, b))
    for a, e in zip(ours, theirs, strict=True):
        assert torch.allclose(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("antisymmetric", [False, True])
@pytest.mark.parametrize("m", [2, THIN + 2])
def test_gradcheck_of_multiply(m, antisymmetric):
    b = rhs(6, m).requires_grad_()
    # At lag 0 an odd function is 0, and stays so.
    tail = lags(6, antisymmetric)[1:].requires_grad_()
    head = torch.zeros(1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda tail, b: multiply(torch.cat([head, tail]), b, antisymmetric), (tail, b)
    )


@pytest.mark.parametrize("m", [1, THIN, THIN + 1])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_correlate_sums_lower_and_upper_diagonals(n, m):
    left, right = rhs(n, m).numpy(), rhs(n, m, seed=5).numpy()
    below, above = correlate(left, right)
    product = left @ right.T
    assert np.allclose(below, [np.trace(product, -k) for k in range(n)], atol=1e-12)
    assert np.allclose(above, [np.trace(product, k) for k in range(n)], atol=1e-12)


@pytest.mark.parametrize("m", [1, THIN + 1])
def test_ill_conditioned_kernel_matrices(m):
    """K + 1e-6 I of a smooth kernel: solutions and gradients keep what optimisers need."""
    n = 200
    z = torch.arange(n, dtype=torch.float64) / n
    c = torch.exp(-30 * z**2)
    c[0] += 1e-6
    c.requires_grad_()
    b = dense(c.detach()) @ rhs(n, m)
    x, log_determinant = solve(c, b)
    got = torch.autograd.grad(0.5 * log_determinant + 0.5 * (x * b).sum(), c)[0]
    factor = linalg.cho_factor(dense(c.detach()).numpy(), lower=True)
    alpha = linalg.cho_solve(factor, b.numpy())
    assert np.abs(x.detach().numpy() - alpha).max() < 1e-6 * np.abs(alpha).max()
    outer = 0.5 * linalg.cho_solve(factor, np.eye(n)) - 0.5 * alpha @ alpha.T
    expected = [np.trace(outer)] + [2 * np.trace(outer, k) for k in range(1, n)]
    assert np.abs(got.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("m", [1, THIN + 1])
@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [1.0, float("nan"), 0.0],
               [float("nan"), 0.0, 0.0], [1.0, 0.0, float("inf")]]
)
def test_indefinite_and_nan_are_refused_thin_and_wide(values, m):
    with pytest.raises(np.linalg.LinAlgError):
        solve(torch.tensor(values, dtype=torch.float64), rhs(3, m))


@pytest.mark.parametrize("m", [1, THIN + 1])
def test_single_precision_is_refused(m):
    c, b = column(4), rhs(4, m)
    for wrong in [(c.float(), b), (c, b.float()), (c.float(), b.float())]:
        with pytest.raises(DataError, match="float64"):
            solve(*wrong)
        with pytest.raises(DataError, match="float64"):
            multiply(*wrong)


def test_right_sides_that_are_not_contiguous():
    c, b = column(8), rhs(20, 8).T
    assert torch.allclose(dense(c) @ solve(c, b)[0], b, atol=1e-11)
    assert torch.allclose(multiply(c, b), dense(c) @ b, atol=1e-12)
