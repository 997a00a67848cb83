"""Toeplitz algebra in NumPy against dense LAPACK."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from passband.parts.toeplitz import (
    ToeplitzInverse,
    autocorrelation,
    diagonal_sums,
    eigenbasis,
)

SIZES = [1, 2, 3, 8, 33, 128]


def decaying(n, seed=0):
    """A well conditioned symmetric positive definite column: dominant diagonal."""
    column = np.random.default_rng(seed).normal(size=n) * 0.8 ** np.arange(n)
    column[0] = 1 + 2 * np.abs(column[1:]).sum()
    return column


def smooth(n, jitter=1e-6):
    """K + jitter I of a band-limited kernel: the condition number is about n / jitter."""
    z = np.arange(n) / n
    column = np.exp(-30 * z**2) * (0.6 + 0.4 * np.cos(2 * np.pi * 7 * z))
    column[0] += jitter
    return column


def naive_diagonal_sums(matrix):
    n = len(matrix)
    out = [np.trace(matrix)]
    return np.array(out + [np.trace(matrix, k) + np.trace(matrix, -k) for k in range(1, n)])


@pytest.mark.parametrize("n", SIZES)
def test_diagonal_sums_are_the_adjoint_of_toeplitz(n):
    rng = np.random.default_rng(n)
    matrix, column = rng.normal(size=(n, n)), rng.normal(size=n)
    sums = diagonal_sums(matrix)
    assert np.allclose(sums, naive_diagonal_sums(matrix), rtol=1e-13, atol=1e-12)
    assert sums @ column == pytest.approx((linalg.toeplitz(column) * matrix).sum(), abs=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 2), (3, 64), (7, 129)])
def test_autocorrelation(shape):
    rows = np.random.default_rng(0).normal(size=shape)
    expected = [(rows[:, : shape[1] - k] * rows[:, k:]).sum() for k in range(shape[1])]
    assert np.allclose(autocorrelation(rows), expected, rtol=1e-12, atol=1e-11)


def test_autocorrelation_of_a_single_row_given_flat():
    row = np.array([1.0, 2.0, -1.0])
    assert np.allclose(autocorrelation(row), [6.0, 0.0, -1.0], atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 31, 64])
@pytest.mark.parametrize("make", [decaying, smooth])
def test_eigenbasis_at_even_and_odd_sizes(n, make):
    column = make(n)
    matrix = linalg.toeplitz(column)
    values, vectors = eigenbasis(column, -np.inf)
    expected = np.linalg.eigvalsh(matrix)[::-1]
    assert np.allclose(values, expected, rtol=0, atol=1e-13 * expected[0])
    assert np.allclose(vectors.T @ vectors, np.eye(n), atol=1e-13)
    assert np.allclose(vectors * values @ vectors.T, matrix, atol=1e-13 * expected[0])
    assert (np.diff(values) <= 0).all()
    mirrored = vectors[::-1]
    parity = np.sign((mirrored * vectors).sum(axis=0))
    assert np.allclose(mirrored, parity * vectors, atol=1e-14)  # each even or odd


def test_eigenbasis_truncates_relative_to_the_largest():
    column = smooth(60, jitter=0.0) * 1e7
    values, vectors = eigenbasis(column, 1e-8)
    every = np.linalg.eigvalsh(linalg.toeplitz(column))
    assert len(values) == (every > 1e-8 * every[-1]).sum() < 60
    assert vectors.shape == (60, len(values))
    assert vectors.flags.c_contiguous


@pytest.mark.parametrize("n", SIZES)
def test_inverse_of_well_conditioned_matrices(n):
    column = decaying(n, seed=n)
    matrix = linalg.toeplitz(column)
    inverse = ToeplitzInverse.of(column)
    dense = np.linalg.inv(matrix)
    assert inverse.log_determinant == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-12)
    assert np.allclose(inverse.first, dense[:, 0], rtol=0, atol=1e-14 * np.abs(dense).max())
    rng = np.random.default_rng(0)
    for shape in [(n,), (n, 1), (n, 5)]:
        rhs = rng.normal(size=shape)
        got = inverse.solve(rhs)
        assert got.shape == shape
        assert np.allclose(got, dense @ rhs, rtol=0, atol=1e-12 * np.abs(dense @ rhs).max())
    sums = naive_diagonal_sums(dense)
    assert np.allclose(inverse.diagonal_sums(), sums, rtol=0, atol=1e-12 * np.abs(sums).max())


@pytest.mark.parametrize("n", [40, 200, 400])
def test_inverse_of_a_smooth_kernel_with_jitter(n):
    """Condition numbers of 1e8: what the fast algorithms keep is stated here."""
    column = smooth(n)
    matrix = linalg.toeplitz(column)
    inverse = ToeplitzInverse.of(column)
    factor = linalg.cho_factor(matrix, lower=True)
    log_determinant = 2 * np.log(np.diag(factor[0])).sum()
    assert inverse.log_determinant == pytest.approx(log_determinant, rel=1e-8)
    rhs = np.random.default_rng(0).normal(size=(n, 3))
    rough = inverse.solve(rhs)
    refined = rough + inverse.solve(rhs - matrix @ rough)
    expected = linalg.cho_solve(factor, rhs)
    assert np.abs(refined - expected).max() < 1e-6 * np.abs(expected).max()
    dense = linalg.cho_solve(factor, np.eye(n))
    sums = naive_diagonal_sums(dense)
    assert np.abs(inverse.diagonal_sums() - sums).max() < 1e-6 * np.abs(sums).max()


@pytest.mark.parametrize("n", [5, 24, 65])
def test_diagonal_sums_are_the_gradient_of_the_log_determinant(n):
    column = decaying(n)
    gradient = ToeplitzInverse.of(column).diagonal_sums()
    for k in range(0, n, 4):
        step = np.zeros(n)
        step[k] = 1e-5
        up, down = (
            np.linalg.slogdet(linalg.toeplitz(column + sign * step))[1] for sign in (1, -1)
        )
        assert gradient[k] == pytest.approx((up - down) / 2e-5, abs=1e-8)


@pytest.mark.parametrize(
    "column",
    [
        [1.0, 1.0, 1.0],  # singular
        [1.0, 2.0, 0.0],  # indefinite
        [-2.0, 0.1, 0.0],  # negative definite
        [0.0, 0.0, 0.0],
        [0.0],
        [-1.0],
        [1.0, np.nan, 0.0],
        [np.nan, 0.0, 0.0],
        [np.inf, 0.0, 0.0],
        [1.0, 0.0, np.inf],
        [1.0, -1.0, 1.0],
        [1.0, 0.5, -0.6, -0.9],
    ],
)
@pytest.mark.filterwarnings("error")
def test_anything_but_positive_definite_is_refused(column):
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        ToeplitzInverse.of(np.array(column))


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=9), st.floats(0.1, 10),
)
def test_definite_or_refused_as_eigenvalues_say(tail, head):
    column = np.array([head, *tail])
    smallest = np.linalg.eigvalsh(linalg.toeplitz(column))[0]
    if abs(smallest) < 1e-6:
        return  # either answer is right
    try:
        inverse = ToeplitzInverse.of(column)
    except np.linalg.LinAlgError:
        assert smallest < 0
    else:
        assert smallest > 0
        sign, log_determinant = np.linalg.slogdet(linalg.toeplitz(column))
        assert sign == 1
        assert inverse.log_determinant == pytest.approx(log_determinant, rel=1e-6, abs=1e-6)


def test_scale_of_the_matrix_is_carried():
    column = decaying(20)
    one, large = ToeplitzInverse.of(column), ToeplitzInverse.of(1e200 * column)
    assert large.log_determinant == pytest.approx(one.log_determinant + 20 * np.log(1e200))
    assert np.allclose(1e200 * large.first, one.first, rtol=1e-12)
    rhs = np.arange(20.0)
    assert np.allclose(1e200 * large.solve(rhs), one.solve(rhs), rtol=1e-10, atol=1e-12)
