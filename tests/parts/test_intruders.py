"""Intruder dimensions against NumPy's SVD and against spectra that are known in advance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passband.errors import ConfigError, DataError
from passband.parts import intruders
from passband.parts.intruders import Base, certain, count_intruders, detect
from passband.parts.spectral import LinearMap


def gaussian(m, n, seed=0, scale=1.0):
    return scale * torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def orthogonal(n, seed=0):
    return torch.linalg.qr(gaussian(n, n, seed).double()).Q


def by_numpy(before, after, k=10, side="left"):
    """Largest |cosines| [k] and sigma [k] from two full LAPACK decompositions."""
    u0, s0, v0 = np.linalg.svd(before.double().numpy(), full_matrices=False)
    u1, s1, v1 = np.linalg.svd(after.double().numpy(), full_matrices=False)
    u0, v0 = u0[:, s0 > 1e-7 * s0[0]], v0[s0 > 1e-7 * s0[0]]
    cosines = {"left": abs(u0.T @ u1), "right": abs(v0 @ v1.T)}[side]
    return cosines.max(0)[:k], s1[:k], cosines.argmax(0)[:k]


@pytest.mark.parametrize("shape", [(128, 344), (344, 128), (64, 64), (5, 40)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_cosines_agree_with_two_full_decompositions(shape, side):
    before = gaussian(*shape, seed=1)
    b, a = gaussian(shape[0], 3, 2), gaussian(3, shape[1], 3)
    after = before + 0.4 * b @ a
    found = detect(before, after, k=10, side=side)
    cosines, sigma, nearest = by_numpy(before, after, side=side)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-9)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-10)
    np.testing.assert_array_equal(found.nearest, nearest)
    assert found.count == int((cosines < 0.5).sum())


def test_both_sides_count_what_is_unlike_on_either():
    """A left vector that is new, over a right vector that is old: on one side alone."""
    before = torch.diag(torch.arange(8.0, 0.0, -1.0)).double()
    before[:, 0] = 0.0
    after = before.clone()
    after[:, 0] = 40.0 / np.sqrt(8)  # the right vector e_0 was null in the base, the left is new
    assert detect(before, after, side="left").positions == (0,)
    assert detect(before, after, side="right").positions == (0,)
    before[0, 0] = 8.0  # now e_0 is a base vector of the right side
    left, right = (detect(before, after, side=side) for side in ("left", "right"))
    assert left.positions == (0,)
    assert right.positions == ()
    both = detect(before, after, side="both")
    assert both.positions == ()
    np.testing.assert_allclose(both.cosines, torch.maximum(left.cosines, right.cosines))


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_a_small_random_direction_makes_no_intruder(size):
    base, u, v = mechanism_a()
    assert count_intruders(base, base + size * u @ v.T) == 0


@pytest.mark.parametrize("size", [2.0, 4.0, 8.0])
def test_a_large_random_direction_makes_exactly_one(size):
    base, u, v = mechanism_a()
    found = detect(base, base + size * u @ v.T)
    assert found.positions == (0,)


def mechanism_a():
    """A 64 x 64 Gaussian matrix over 8 and a random direction of size one."""
    u, v = gaussian(64, 1, 5).double(), gaussian(64, 1, 6).double()
    return gaussian(64, 64, 0, 1 / 8).double(), u / u.norm(), v / v.norm()


def test_known_spectra():
    """W1 has the base's vectors but for one: the rotation of two of them by a known angle."""
    U, V = orthogonal(20, 1), orthogonal(20, 2)
    s = torch.linspace(20, 1, 20).double()
    turned = U.clone()
    angle = 1.1  # cos = 0.4536, sin = 0.8912
    turned[:, 0] = np.cos(angle) * U[:, 0] + np.sin(angle) * U[:, 7]
    turned[:, 7] = -np.sin(angle) * U[:, 0] + np.cos(angle) * U[:, 7]
    found = detect(U * s @ V.T, turned * s @ V.T, k=20)
    want = torch.ones(20).double()
    want[[0, 7]] = np.sin(angle)
    torch.testing.assert_close(found.cosines, want, atol=1e-10, rtol=0)
    assert found.nearest[0] == 7
    assert found.nearest[7] == 0
    assert found.curve([0.5, 0.9, 1.0])[:2].tolist() == [0, 2]


def test_identical_weights_have_none_even_where_every_direction_is_singular():
    for weight in (torch.eye(6), orthogonal(6), torch.zeros(6, 6), gaussian(6, 9)):
        assert count_intruders(weight, weight.clone(), side="both") == 0


def test_signs_do_not_matter():
    base = gaussian(12, 12)
    assert count_intruders(base, -base) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99), st.integers(1, 14))
def test_counts_do_not_change_under_a_common_rotation(m, n, seed, k):
    before, change = gaussian(m, n, seed).double(), gaussian(m, n, seed + 100).double()
    U, V = orthogonal(m, seed + 7), orthogonal(n, seed + 8)
    plain = detect(before, before + change, k)
    turned = detect(U @ before @ V, U @ (before + change) @ V, k)
    torch.testing.assert_close(plain.cosines, turned.cosines, atol=1e-6, rtol=0)
    assert len(plain.cosines) == min(k, m, n)
    other = detect(before.T, (before + change).T, k, side="right")
    torch.testing.assert_close(plain.cosines, other.cosines, atol=1e-6, rtol=0)


def test_the_null_space_is_no_base_vector():
    """Zero rows of the base: what the tuned matrix puts there is an intruder."""
    base = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0]))
    after = base.clone()
    after[2, 2] = 9.0
    found = detect(base, after)
    assert found.positions == (0,)
    torch.testing.assert_close(found.cosines[0], torch.tensor(0.0).double())
    assert len(found.cosines) == 3  # k is clipped to the rank of the tuned matrix
    tall = torch.eye(4)[:, :2]  # beyond its two columns, a tall matrix has no left vectors
    assert count_intruders(tall, torch.eye(4)[:, 2:]) == 2
    assert count_intruders(torch.zeros(3, 3), torch.diag(torch.tensor([2.0, 1.0, 0.0]))) == 2


def test_tiny_singular_values_are_base_vectors_still():
    U, V = orthogonal(8, 1), orthogonal(8, 2)
    s = torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0]).double()
    base = U * s @ V.T
    raised = s.clone()
    raised[6] = 5.0  # a direction of one millionth becomes the largest
    assert detect(base, U * raised @ V.T).positions == ()
    raised = s.clone()
    raised[7] = 5.0
    assert detect(base, U * raised @ V.T).positions == (0,)


def test_the_certificate_gives_the_same_maximum(monkeypatch):
    monkeypatch.setattr(intruders, "LARGE", 8)
    base = orthogonal(60, 1) * (0.9 ** torch.arange(60.0).double()) @ orthogonal(60, 2).T
    near = base + 1e-3 * gaussian(60, 60, 3).double()
    found = detect(base, near, k=4)
    assert found.certified
    np.testing.assert_allclose(found.cosines, by_numpy(base, near, 4)[0], atol=1e-9)
    far = base + 3 * gaussian(60, 1, 4).double() @ gaussian(1, 60, 5).double()
    found = detect(base, far, k=4)
    assert not found.certified  # a random direction is spread over all base vectors
    np.testing.assert_allclose(found.cosines, by_numpy(base, far, 4)[0], atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_what_the_certificate_calls_certain_is(seed, m):
    vector = gaussian(10, 1, seed).double() ** 3
    vector = vector / vector.norm()
    if certain(vector[:m])[0]:
        assert vector[:m].abs().max() == vector.abs().max()


def test_near_equal_singular_values_count_as_one_subspace():
    """A rotation inside a flat part of the spectrum is an intruder to single vectors only."""
    U, V = orthogonal(30, 1), orthogonal(30, 2)
    s = torch.cat([torch.full((12,), 3.0), torch.linspace(2, 1, 18)]).double()
    s[:12] += 1e-6 * torch.arange(12, 0, -1)
    turned = U.clone()
    turned[:, :12] = U[:, :12] @ orthogonal(12, 3)
    before, after = U * s @ V.T, turned * s @ V.T
    assert detect(before, after).count > 0
    assert detect(Base(before, within=0.01), after).count == 0
    outside = before + 9 * (U[:, 12:].sum(1, keepdim=True) / 18**0.5) @ V[:, :1].T
    assert detect(Base(before, within=0.01), outside).positions == (0,)


def test_products_alone_give_what_the_merged_matrix_gives():
    base, B, A = gaussian(48, 30), gaussian(48, 2, 1), gaussian(2, 30, 2)
    merged = detect(base, base.double() + 0.5 * B.double() @ A.double())
    lazy = detect(base, LinearMap.updated(base, B, A, scale=0.5))
    torch.testing.assert_close(merged.cosines, lazy.cosines, atol=1e-9, rtol=0)


def test_half_precision_is_computed_in_double():
    base = gaussian(24, 24).half()
    after = (base.float() + gaussian(24, 1, 3) @ gaussian(1, 24, 4)).bfloat16()
    found = detect(base, after)
    assert found.cosines.dtype == torch.float64
    np.testing.assert_allclose(found.cosines, by_numpy(base, after)[0], atol=1e-9)


def test_kept_vectors_serve_again():
    base, after = gaussian(16, 24), gaussian(16, 24, 1)
    first, second = Base(base), Base(base)
    second.preset("left", *first.vectors("left"))
    torch.testing.assert_close(detect(first, after).cosines, detect(second, after).cosines)
    with pytest.raises(DataError, match="another matrix"):
        Base(base).preset("left", torch.zeros(24, 3), torch.ones(3))


@pytest.mark.parametrize(
    ("before", "after", "options", "error", "said"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), {}, DataError, r"\(2, 3\)"),
        (torch.ones(3), torch.ones(3), {}, DataError, r"\(3,\)"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, DataError, "not empty"),
        (torch.full((2, 2), torch.nan), torch.ones(2, 2), {}, DataError, "base matrix has NaN"),
        (torch.ones(2, 2), torch.full((2, 2), torch.inf), {}, DataError, "tuned matrix has NaN"),
        (torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 2), {}, DataError, "dequantise"),
        (torch.ones(2, 2), torch.ones(2, 2), {"eps": 0.0}, ConfigError, "eps = 0.0"),
        (torch.ones(2, 2), torch.ones(2, 2), {"eps": 1.5}, ConfigError, "eps = 1.5"),
        (torch.ones(2, 2), torch.ones(2, 2), {"eps": float("nan")}, ConfigError, "eps = nan"),
        (torch.ones(2, 2), torch.ones(2, 2), {"k": 0}, ConfigError, "k = 0"),
        (torch.ones(2, 2), torch.ones(2, 2), {"side": "top"}, ConfigError, "'top'"),
    ],
)
def test_wrong_input_is_named(before, after, options, error, said):
    with pytest.raises(error, match=said):
        detect(before, after, **options)
