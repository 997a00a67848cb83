"""Decompositions through Gram matrices: against LAPACK, closed forms and definitions."""

import math

import numpy as np
import pytest
import torch

from passband.errors import ConfigError, DataError
from passband.parts import spectral
from passband.parts.spectral import (
    LinearMap,
    SpectralCache,
    balance_ratio,
    balanced_factors,
    effective_rank,
    gram,
    gram_svd,
    left_vectors,
    nuclear_gradient,
    ordered_eigh,
    rebalance,
    stable_rank,
    top_singular,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_values(m, n, values, seed=0):
    """A matrix with these singular values, and its vectors."""
    s = torch.as_tensor(values, dtype=torch.float64)
    U = torch.linalg.qr(normal(m, len(s), seed=seed)).Q
    V = torch.linalg.qr(normal(n, len(s), seed=seed + 1)).Q
    return (U * s) @ V.T, U, s, V.T


def orthonormal(columns, tolerance):
    error = columns.T @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)
    return error.abs().max() < tolerance


SPECTRA = {
    "random": (30, 50, None),
    "tall": (50, 30, None),
    "square": (40, 40, None),
    "graded": (20, 30, 10.0 ** -np.arange(16)),
    "rank 3": (20, 30, [5.0, 2.0, 1.0]),
    "rank 3 tall": (30, 20, [5.0, 2.0, 1.0]),
    "repeated": (20, 30, [3.0] * 5 + [1.0] * 10 + [1e-7] * 5),
    "a gap of 1e9": (12, 15, [1.0, 0.5, 1e-9, 5e-10, 2e-10]),
    "all zero": (6, 9, [0.0]),
    "one row": (1, 9, [2.0]),
    "orthogonal": (16, 16, [1.0] * 16),
}


@pytest.mark.parametrize("case", SPECTRA)
def test_gram_svd_is_a_decomposition_with_the_values_of_lapack(case):
    m, n, values = SPECTRA[case]
    W = normal(m, n) if values is None else with_values(m, n, values)[0]
    U, s, Vh, rank = gram_svd(W)
    p = min(m, n)
    expected = torch.linalg.svdvals(W)
    top = max(float(expected[0]), 1e-300)
    assert U.shape == (m, p) and s.shape == (p,) and Vh.shape == (p, n)
    assert (s - expected).abs().max() <= 1e-13 * top
    assert (U * s @ Vh - W).abs().max() <= 1e-13 * top
    assert orthonormal(U, 1e-9) and orthonormal(Vh.T, 1e-9)
    assert bool((s[1:] <= s[:-1]).all()) and bool((s >= 0).all())
    assert rank == int((expected > max(m, n) * 2.2e-16 * top).sum()) or case == "graded"


def test_vectors_of_separated_values_are_those_of_lapack():
    W, _, _, _ = with_values(40, 60, [9.0, 7.0, 4.0, 2.0, 1.0, 1e-3, 1e-5, 1e-6])
    found = gram_svd(W)
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    for i in range(8):
        # ||error|| <= eps s_1 / gap; the gap of the last pair is 1e-6.
        limit = 1e-13 if i < 5 else 1e-8
        assert 1 - abs(float(found.U[:, i] @ U[:, i])) < limit
        assert 1 - abs(float(found.Vh[i] @ Vh[i])) < limit
        assert float(found.U[:, i] @ U[:, i]) * float(found.Vh[i] @ Vh[i]) > 0


def test_single_precision_matrices_are_decomposed_in_double():
    W = normal(384, 100, dtype=torch.float32)
    U, s, Vh, rank = gram_svd(W)
    assert s.dtype == torch.float64 and rank == 100
    exact = np.linalg.svd(W.double().numpy(), compute_uv=False)
    assert np.abs(s.numpy() - exact).max() < 1e-13 * exact[0]
    assert (U * s @ Vh - W).abs().max() < 1e-12


def test_the_rank_is_judged_by_the_precision_that_came():
    low, _, _, _ = with_values(20, 30, [5.0, 2.0, 1.0])
    assert gram_svd(low).rank == 3
    assert gram_svd(low.float()).rank == 3  # the rest is rounding of single precision


def test_the_sign_makes_the_largest_entry_of_u_positive():
    U = gram_svd(normal(7, 9)).U
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all())


def test_gradients_do_not_flow_and_bad_input_is_named():
    W = normal(4, 6).requires_grad_()
    assert not gram_svd(W).U.requires_grad
    bad = torch.ones(3, 3)
    bad[1, 1] = math.nan
    for call in (gram_svd, left_vectors, nuclear_gradient, lambda W: top_singular(W, 1)):
        with pytest.raises(DataError, match="NaN"):
            call(bad)
        with pytest.raises(DataError, match="shape"):
            call(torch.ones(3))
        with pytest.raises(DataError, match="shape"):
            call(torch.ones(3, 0))
    infinite = LinearMap((3, 3), lambda q: bad.double() @ q, lambda q: bad.double() @ q)
    with pytest.raises(DataError, match="NaN"):
        top_singular(infinite, 1)


@pytest.mark.parametrize("shape", [(10, 25), (25, 10)])
def test_left_vectors_span_what_the_svd_says(shape):
    M = normal(*shape)
    U, s = left_vectors(M)
    expected, values, _ = torch.linalg.svd(M, full_matrices=False)
    assert torch.allclose(s, values, rtol=1e-12)
    for k in (1, 4, 9):
        P, Q = U[:, :k] @ U[:, :k].T, expected[:, :k] @ expected[:, :k].T
        assert torch.allclose(P, Q, atol=1e-11)


def test_left_vectors_keep_the_small_end():
    M, expected, s, _ = with_values(12, 20, [1.0, 1e-4, 1e-9, 1e-11])
    U, found = left_vectors(M)
    assert torch.allclose(found[:4], s, rtol=1e-4)
    assert all(abs(float(U[:, i] @ expected[:, i])) > 1 - 1e-6 for i in range(4))


@pytest.mark.parametrize("top", [None, 1, 5, 40])
def test_ordered_eigh(top):
    H = gram(normal(40, 60))
    values, vectors = ordered_eigh(H, top)
    k = top or 40
    assert torch.allclose(values, torch.linalg.eigvalsh(H).flip(0)[:k], rtol=1e-12)
    assert torch.allclose(H @ vectors, vectors * values, atol=1e-11)
    assert orthonormal(vectors, 1e-12)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30)])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_leading_triples_of_a_small_matrix(shape, k):
    W = normal(*shape)
    top = top_singular(W, k)
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    assert torch.allclose(top.s, s[:k], rtol=1e-12)
    assert torch.allclose(top.U * top.s @ top.Vh, U[:, :k] * s[:k] @ Vh[:k], atol=1e-10)
    assert top.residual < 1e-13


def test_leading_triples_of_a_rank_deficient_matrix_are_still_orthonormal():
    W, _, _, _ = with_values(20, 30, [5.0, 2.0])
    top = top_singular(W, 4)
    assert orthonormal(top.U, 1e-10) and orthonormal(top.Vh.T, 1e-10)
    assert top.residual < 1e-13 and float(top.s[2]) < 1e-13
    zero = top_singular(torch.zeros(5, 8), 2)
    assert orthonormal(zero.U, 1e-12) and orthonormal(zero.Vh.T, 1e-12) and zero.residual == 0


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_lanczos_finds_a_decaying_spectrum_with_repeated_values(shape):
    values = torch.cat([torch.tensor([9.0, 9.0, 9.0, 5.0, 5.0]), 2.0 / torch.arange(1, 200)])
    W, U, s, Vh = with_values(*shape, values.sort(descending=True).values)
    found = spectral._lanczos(LinearMap.of(W), 5, 1e-10, seed=0)
    assert found is not None
    left, sigma, right = found
    assert torch.allclose(sigma, s[:5], rtol=1e-12)
    assert torch.allclose(left * sigma @ right.T, U[:, :5] * s[:5] @ Vh[:5], atol=1e-7)
    assert spectral._residual(LinearMap.of(W), *found) < 1e-9


def test_lanczos_meets_the_end_of_a_low_rank_matrix():
    W, _, s, _ = with_values(300, 400, [4.0, 3.0, 2.0])
    found = spectral._lanczos(LinearMap.of(W), 5, 1e-9, seed=0)
    assert found is not None
    assert torch.allclose(found[1][:3], s, rtol=1e-12) and float(found[1][3]) < 1e-12
    assert orthonormal(found[0], 1e-10) and orthonormal(found[2], 1e-10)


def test_lanczos_gives_up_on_a_flat_spectrum():
    assert spectral._lanczos(LinearMap.of(normal(600, 600)), 5, 1e-9, seed=0) is None


def test_large_matrices_go_through_lanczos_and_flat_ones_do_not(monkeypatch):
    monkeypatch.setattr(spectral, "SMALL", 200)
    W, _, s, _ = with_values(300, 400, 2.0 ** -np.arange(40))
    top = top_singular(W, 4)
    assert top.route == "lanczos" and torch.allclose(top.s, s[:4], rtol=1e-12)
    flat = normal(600, 600)
    top = top_singular(flat, 4)
    assert top.route == "gram"
    assert torch.allclose(top.s, torch.linalg.svdvals(flat)[:4], rtol=1e-12)


@pytest.mark.parametrize("shape", [(20, 35), (35, 20)])
@pytest.mark.parametrize("small", [5, 1024])
def test_an_updated_matrix_is_never_needed_whole(monkeypatch, shape, small):
    monkeypatch.setattr(spectral, "SMALL", small)
    m, n = shape
    W, B, A = normal(m, n), normal(m, 3, seed=1), normal(3, n, seed=2)
    B0, A0 = normal(m, 2, seed=3), normal(2, n, seed=4)
    merged = W + 0.5 * (B @ A - B0 @ A0)
    linear = LinearMap.updated(W, B, A, 0.5, B0, A0)
    assert torch.allclose(linear.dense(block=7), merged)
    q, r = normal(n, 2, seed=5), normal(m, 2, seed=6)
    assert torch.allclose(linear.matvec(q), merged @ q)
    assert torch.allclose(linear.rmatvec(r), merged.T @ r)
    top = top_singular(linear, 1)
    assert torch.allclose(top.s, torch.linalg.svdvals(merged)[:1], rtol=1e-12)
    with pytest.raises(DataError, match="factors"):
        LinearMap.updated(W, B, A.T)


def test_k_out_of_range():
    for k in (0, 4):
        with pytest.raises(ConfigError, match="singular triples"):
            top_singular(torch.ones(3, 5), k)


def test_balanced_factors_multiply_to_the_matrix_over_the_scale():
    svd = gram_svd(normal(6, 9)).top(4)
    B, A = balanced_factors(svd.U, svd.s, svd.Vh, scale=2.5)
    assert torch.allclose(2.5 * B @ A, svd.U * svd.s @ svd.Vh)
    assert torch.allclose(torch.linalg.vector_norm(B, dim=0), torch.linalg.vector_norm(A, dim=1))
    with pytest.raises(ConfigError, match="scale"):
        balanced_factors(svd.U, svd.s, svd.Vh, scale=0.0)


@pytest.mark.parametrize("how", ["none", "global", "exact"])
def test_rebalancing_keeps_the_product(how):
    B, A = 1e3 * normal(6, 3), 1e-2 * normal(3, 9, seed=1)
    new_B, new_A = rebalance(B, A, how)
    assert torch.allclose(new_B @ new_A, B @ A, rtol=1e-10, atol=1e-10)
    if how != "none":
        assert float(new_B.norm()) == pytest.approx(float(new_A.norm()), rel=1e-12)
    if how == "exact":
        s = torch.linalg.svdvals(B @ A)[:3]
        assert torch.allclose(new_B.T @ new_B, torch.diag(s), atol=1e-10)
        assert torch.allclose(new_A @ new_A.T, torch.diag(s), atol=1e-10)
    assert rebalance(B.float(), A.float(), how)[0].dtype == torch.float32


def test_one_ratio_for_a_whole_model():
    Bs, As = [normal(4, 2), 3 * normal(5, 2)], [7 * normal(2, 3), normal(2, 6)]
    q = balance_ratio(Bs, As)
    left = np.mean([float((q * B).norm()) for B in Bs])
    assert left == pytest.approx(np.mean([float((A / q).norm()) for A in As]))
    assert balance_ratio([torch.zeros(2, 1)], [torch.ones(1, 2)]) == 1.0
    with pytest.raises(ConfigError, match="balance"):
        rebalance(Bs[0], As[0], "half")


def test_ranks_of_spectra():
    s = torch.tensor([[4.0, 2.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    p = np.array([4, 2, 1]) / 7
    assert effective_rank(s).tolist() == pytest.approx([math.exp(-(p * np.log(p)).sum()), 0.0])
    assert stable_rank(s).tolist() == pytest.approx([21 / 16, 0.0])
    assert float(stable_rank(torch.full((5,), 1e-30))) == pytest.approx(5.0)  # no underflow


@pytest.mark.parametrize("shape", [(8, 13), (13, 8), (9, 9)])
def test_the_nuclear_gradient_is_the_derivative_of_the_nuclear_norm(shape):
    P = normal(*shape)
    U, _, Vh = torch.linalg.svd(P, full_matrices=False)
    found = nuclear_gradient(P)
    assert torch.allclose(found, U @ Vh, atol=1e-9)
    direction, h = normal(*shape, seed=1), 1e-5
    norms = [torch.linalg.svdvals(P + sign * h * direction).sum() for sign in (1, -1)]
    slope = float(norms[0] - norms[1]) / (2 * h)
    assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_the_nuclear_gradient_of_a_rank_deficient_matrix_has_the_same_rank():
    P, U, _, Vh = with_values(12, 20, [5.0, 1.0, 1e-3])
    assert torch.allclose(nuclear_gradient(P), U @ Vh, atol=1e-7)
    assert torch.allclose(nuclear_gradient(P.T), Vh.T @ U.T, atol=1e-7)
    assert nuclear_gradient(torch.zeros(3, 4)).equal(torch.zeros(3, 4))


def test_the_nuclear_gradient_is_batched_and_keeps_the_dtype():
    P = normal(3, 5, 7, dtype=torch.float32)
    found = nuclear_gradient(P)
    assert found.dtype == torch.float32 and found.shape == P.shape
    for one, whole in zip(P, found, strict=True):
        assert torch.allclose(nuclear_gradient(one), whole, atol=1e-6)


def test_the_cache_goes_by_content(monkeypatch):
    made = []
    original = spectral.top_singular
    monkeypatch.setattr(spectral, "top_singular", lambda W, k: made.append(k) or original(W, k))
    cache, W = SpectralCache(), normal(10, 12)
    first = cache.top(W, 4)
    assert cache.top(W.clone(), 3).s.equal(first.s[:3])
    assert made == [4]
    cache.top(W, 5)  # more than was kept
    assert made == [4, 5] and len(cache) == 1
    assert len(cache.svd(W).s) == 10 and len(cache.svd(W).s) == 10
    assert cache.top(W, 9).U.shape == (10, 9)
    assert made == [4, 5]
    W[0, 0] += 1
    cache.top(W, 1)
    assert made == [4, 5, 1] and len(cache) == 2
    cache.clear()
    assert len(cache) == 0


def test_the_cache_forgets_what_was_used_least_recently():
    cache = SpectralCache(most_bytes=2 * 8 * (6 * 6 + 6 + 6 * 8))
    a, b, c = (normal(6, 8, seed=i) for i in range(3))
    kept = cache.svd(a)
    cache.svd(b)
    assert cache.svd(a) is kept
    cache.svd(c)  # b goes
    assert len(cache) == 2 and cache.svd(a) is kept


def test_the_key_of_a_content():
    key = spectral.content_key
    W = normal(4, 6)
    assert key(W) == key(W.clone()) == key(W.T.contiguous().T)
    assert len({key(W), key(W.float()), key(W.reshape(6, 4)), key(-W)}) == 4
    assert key(W.bfloat16()) == key(W.bfloat16())
