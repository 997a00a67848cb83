"""Fast diagonalisation against dense solves of the whole Kronecker matrix."""

import numpy as np
import pytest

from passband.errors import DataError
from passband.parts.linalg import KroneckerSum, along


def dense(matrices, shift=0.0):
    """The whole matrix of the sum, for row-major vec(U)."""
    sizes = [len(a) for a in matrices]
    total = shift * np.eye(int(np.prod(sizes)))
    for axis, a in enumerate(matrices):
        before, after = int(np.prod(sizes[:axis])), int(np.prod(sizes[axis + 1 :]))
        total += np.kron(np.kron(np.eye(before), a), np.eye(after))
    return total


def symmetric(n):
    return np.diag(np.full(n, 2.0)) - np.diag(np.ones(n - 1), 1) - np.diag(np.ones(n - 1), -1)


def rotating(n, seed):
    """Nonsymmetric with complex eigenvalues."""
    return np.random.default_rng(seed).standard_normal((n, n)) + 8 * np.eye(n)


def real_spectrum(n, seed):
    """Nonsymmetric with real eigenvalues."""
    above = np.triu(np.random.default_rng(seed).standard_normal((n, n)), 1)
    return above + np.diag(1.0 + np.arange(n))


CASES = {
    "line": [rotating(7, 0)],
    "symmetric": [symmetric(5), symmetric(6)],
    "symmetric and rotating": [symmetric(5), rotating(7, 1)],
    "rotating and symmetric": [rotating(7, 1), symmetric(4)],
    "rotating": [rotating(6, 2), rotating(9, 3)],
    "3-D symmetric": [symmetric(3), symmetric(4), symmetric(5)],
    "3-D rotating": [rotating(4, 4), rotating(5, 5), rotating(3, 6)],
    "3-D real spectrum": [real_spectrum(4, 7), rotating(3, 8), real_spectrum(5, 9)],
    "3-D one symmetric": [rotating(4, 4), symmetric(5), rotating(3, 6)],
}


@pytest.mark.parametrize("matrices", CASES.values(), ids=CASES)
@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_equals_the_dense_solve(matrices, shift):
    total = KroneckerSum(matrices)
    f = np.random.default_rng(11).standard_normal(total.shape)
    expected = np.linalg.solve(dense(matrices, shift), f.ravel()).reshape(f.shape)
    np.testing.assert_allclose(total.solve(f, shift), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(total.apply(f).ravel(), dense(matrices) @ f.ravel(), atol=1e-10)


@pytest.mark.parametrize("matrices", CASES.values(), ids=CASES)
def test_separation_is_the_relative_smallest_eigenvalue(matrices):
    sizes = np.abs(np.linalg.eigvals(dense(matrices, 0.3)))
    expected = sizes.min() / sizes.max()
    assert KroneckerSum(matrices).separation(0.3) == pytest.approx(expected, rel=1e-6)


def test_blocks_beyond_one_lapack_call():
    """Sizes above BLOCK recurse; 2 x 2 blocks at the cut must not be torn."""
    from scipy.linalg import solve_sylvester

    a, b = rotating(211, 1) + 25 * np.eye(211), rotating(157, 2) + 25 * np.eye(157)
    f = np.random.default_rng(3).standard_normal((211, 157))
    np.testing.assert_allclose(
        KroneckerSum([a, b]).solve(f), solve_sylvester(a, b.T, f), rtol=1e-9, atol=1e-11
    )


def test_factors_serve_many_right_sides():
    total = KroneckerSum(CASES["rotating"])
    total.solve(np.ones(total.shape))
    kept = total.factors
    total.solve(np.zeros(total.shape), shift=3.0)
    assert total.factors is kept


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_singular_sum_is_reported(dim):
    matrices = [symmetric(4) for _ in range(dim)]
    lowest = 2 - 2 * np.cos(np.pi / 5)
    with pytest.raises(DataError, match="singular"):
        KroneckerSum(matrices).solve(np.ones((4,) * dim), shift=-dim * lowest)


def test_nearly_singular_still_solves():
    matrices = [symmetric(4), symmetric(5)]
    shift = -(4 - 2 * np.cos(np.pi / 5) - 2 * np.cos(np.pi / 6)) + 1e-7
    total = KroneckerSum(matrices)
    u = total.solve(np.ones((4, 5)), shift)
    assert total.separation(shift) == pytest.approx(1e-7 / 7, rel=0.3)
    np.testing.assert_allclose(total.apply(u) + shift * u, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "matrices, words",
    [([], "0 matrices"), ([np.ones((2, 3))], "shape"), ([np.full((2, 2), np.nan)], "NaN")],
)
def test_wrong_matrices_are_named(matrices, words):
    with pytest.raises(DataError, match=words):
        KroneckerSum(matrices)


def test_wrong_right_side_is_named():
    with pytest.raises(DataError, match=r"\(3, 4\)"):
        KroneckerSum([np.eye(3), np.eye(5)]).solve(np.ones((3, 4)))


def test_along_takes_sparse_matrices():
    from scipy.sparse import csr_array

    m, u = np.random.default_rng(0).standard_normal((4, 3)), np.ones((2, 3, 5))
    np.testing.assert_allclose(along(csr_array(m), u, 1), np.einsum("ab,ibj->iaj", m, u))
