"""The kernels' closed forms against 50-digit arithmetic, and what their spectra claim to be."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate

from passband.parts.kernels import KERNELS, Theta, gaussian, matern52

mpmath.mp.dps = 50
NAMES = ["stm", "gm", "matern", "se"]


def some_theta(name, seed=0, components=4):
    rng = np.random.default_rng(seed)
    bandwidth = rng.uniform(0.05, 3.0, components)
    return Theta(
        torch.from_numpy(rng.normal(-1, 1.5, components)),
        torch.tensor([KERNELS[name].scale(b) for b in bandwidth], dtype=torch.float64),
        torch.from_numpy(rng.uniform(0, 12, components)),
    )


def exact(name, theta, z):
    """k(z) as the sheet's formula, in 50 digits, for z of any sign."""
    total = mpmath.mpf(0)
    for log_w, log_a, mu in zip(*(map(float, p) for p in theta), strict=True):
        a = mpmath.exp(mpmath.mpf(log_a))
        if name in ("gm", "se"):
            envelope = mpmath.exp(-a * z * z)
        else:
            s, r = mpmath.sqrt(5) * a, abs(z)
            envelope = (1 + s * r + s**2 * r**2 / 3) * mpmath.exp(-s * r)
        cosine = mpmath.cos(2 * mpmath.pi * mu * z) if name in ("stm", "gm") else 1
        total += mpmath.exp(mpmath.mpf(log_w)) * envelope * cosine
    return total


def derivatives(name, theta, z):
    """k, k', k'' at z by central differences with a step of 1e-15 in 50 digits."""
    h = mpmath.mpf(10) ** -15
    z = mpmath.mpf(float(z))
    below, at, above = (exact(name, theta, z + i * h) for i in (-1, 0, 1))
    return float(at), float((above - below) / (2 * h)), float((above - 2 * at + below) / h**2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_tables_against_fifty_digits(name, seed):
    theta = some_theta(name, seed)
    z = np.array([-2.3, -0.4, -1e-3, 0.0, 1e-9, 1e-3, 0.05, 0.31, 1.7, 6.0])
    ours = KERNELS[name].tables(torch.from_numpy(z), theta)
    reference = np.array([derivatives(name, theta, v) for v in z]).T
    for order, (got, expected) in enumerate(zip(ours, reference, strict=True)):
        # Relative to the derivative's size at its largest; phases lose a few digits far away.
        scale = np.abs(reference[order]).max()
        assert np.abs(got.numpy() - expected).max() < 1e-13 * scale, order
    alone = KERNELS[name].value(torch.from_numpy(z), theta)
    assert torch.allclose(alone, ours[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_parity_and_the_origin(name):
    theta = some_theta(name)
    z = torch.linspace(0, 3, 301, dtype=torch.float64)
    right, left = KERNELS[name].tables(z, theta), KERNELS[name].tables(-z, theta)
    assert torch.equal(right[0], left[0])
    assert torch.equal(right[1], -left[1])
    assert torch.equal(right[2], left[2])
    k, first, second = (float(t[0]) for t in right)
    assert k == pytest.approx(float(theta.log_w.exp().sum()), rel=1e-14)
    assert first == 0.0
    assert second < 0.0
    assert right[0].max() == right[0][0]


@pytest.mark.parametrize("name", ["matern", "stm"])
def test_double_autograd_of_the_absolute_value_is_wrong_on_the_diagonal_and_ours_is_not(name):
    """d|z|/dz is taken for 0 at 0: the second derivative of the plain formula loses a part."""
    theta = some_theta(name)
    theta = theta._replace(mu=0.01 * theta.mu)  # else om^2 hides the envelope's part
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    plain = KERNELS[name].value(z, theta)
    (first,) = torch.autograd.grad(plain.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    expected = derivatives(name, theta, 0.0)[2]
    assert abs(float(second) / expected - 1) > 0.5
    ours = KERNELS[name].tables(torch.zeros(1, dtype=torch.float64), theta)[2]
    assert float(ours) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("envelope", [gaussian, matern52])
def test_a_means_what_the_paper_says(envelope):
    """Of the Gaussian a is an inverse squared length, of the Matern function an inverse length."""
    z, a = torch.tensor([0.7], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    r = math.sqrt(5) * 2 * 0.7
    expected = {
        gaussian: math.exp(-2 * 0.49), matern52: (1 + r + r * r / 3) * math.exp(-r)
    }[envelope]
    assert float(envelope(z, a)[0]) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_theta(name):
    theta = some_theta(name, components=3)
    z = torch.tensor([0.0, 0.013, 0.4, -1.1], dtype=torch.float64)
    inputs = [p.clone().requires_grad_() for p in theta]
    assert torch.autograd.gradcheck(
        lambda *p: KERNELS[name].tables(z, Theta(*p)), inputs, eps=1e-6, atol=1e-5, rtol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_positive_definite_on_any_points(name):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.uniform(0, 2, 120))
    k = KERNELS[name].value(x[:, None] - x[None, :], some_theta(name)).numpy()
    eigenvalues = np.linalg.eigvalsh(k)
    assert eigenvalues[0] > -1e-13 * eigenvalues[-1]


# ---- spectra ---------------------------------------------------------------------------------


def density(name, theta, frequency):
    """S(f) = int k(z) cos(2 pi f z) dz, by quadrature on a range where k has died out."""
    z = np.linspace(0, 30 / float(KERNELS[name].bandwidth(theta).min()), 120_001)
    k = KERNELS[name].value(torch.from_numpy(z), theta).numpy()
    return np.array([2 * integrate.simpson(k * np.cos(2 * np.pi * f * z), x=z) for f in frequency])


def one(name, mu, bandwidth):
    log_a = torch.tensor([KERNELS[name].scale(bandwidth)], dtype=torch.float64)
    return Theta(torch.zeros_like(log_a), log_a, torch.full_like(log_a, mu))


def test_the_gaussian_spectrum_has_its_mean_and_deviation():
    mu, bandwidth = 5.0, 0.4
    f = np.linspace(mu - 4, mu + 4, 161)
    s = density("gm", one("gm", mu, bandwidth), f)
    # k holds cos, half the mass at +mu and half at -mu.
    gauss = np.exp(-0.5 * ((f - mu) / bandwidth) ** 2) / (bandwidth * math.sqrt(2 * math.pi))
    assert np.abs(s - 0.5 * gauss).max() < 1e-8
    mass = integrate.simpson(s, x=f)
    mean = integrate.simpson(s * f, x=f) / mass
    deviation = math.sqrt(integrate.simpson(s * (f - mean) ** 2, x=f) / mass)
    assert (mass, mean, deviation) == pytest.approx((0.5, mu, bandwidth), rel=1e-6)


def test_the_student_spectrum_has_five_degrees_of_freedom_and_its_deviation():
    """A Matern-5/2 function's density is Student's t with 5 degrees of freedom, scale a / (2 pi).

    The bandwidth, sqrt(5) a / (2 pi), is sqrt(3) times its standard deviation.
    """
    from scipy.stats import t

    mu, bandwidth = 20.0, 0.5
    theta = one("stm", mu, bandwidth)
    f = np.linspace(mu - 6, mu + 6, 61)
    s = density("stm", theta, f)
    scale = float(theta.log_a.exp()) / (2 * math.pi)
    expected = 0.5 * (t.pdf((f - mu) / scale, 5) + t.pdf((f + mu) / scale, 5)) / scale
    assert np.abs(s - expected).max() < 1e-8 * expected.max()
    assert f[s.argmax()] == pytest.approx(mu)
    assert bandwidth == pytest.approx(math.sqrt(3) * scale * t.std(5))


@pytest.mark.parametrize("name", ["matern", "se"])
def test_without_cosine_the_mass_is_at_zero_and_mu_is_unused(name):
    theta = one(name, 7.0, 0.5)
    f = np.linspace(0, 8, 81)
    s = density(name, theta, f)
    assert s.argmax() == 0
    assert s[f > 5].max() < 1e-3 * s[0]
    z = torch.linspace(0, 1, 7, dtype=torch.float64)
    moved = theta._replace(mu=theta.mu + 3)
    for a, b in zip(
        KERNELS[name].tables(z, theta), KERNELS[name].tables(z, moved), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bandwidth", [1e-6, 0.02, 1.0, 3e5])
def test_scale_and_bandwidth_are_inverse(name, bandwidth):
    kernel = KERNELS[name]
    log_a = torch.tensor([kernel.scale(bandwidth)], dtype=torch.float64)
    theta = Theta(torch.zeros_like(log_a), log_a, torch.zeros_like(log_a))
    assert float(kernel.bandwidth(theta)) == pytest.approx(bandwidth, rel=1e-12)


def test_bandwidths_are_those_of_the_sheet():
    theta = Theta(*(torch.tensor([v], dtype=torch.float64) for v in (0.0, math.log(2.0), 0.0)))
    assert float(KERNELS["gm"].bandwidth(theta)) == pytest.approx(math.sqrt(4.0) / (2 * math.pi))
    assert float(KERNELS["stm"].bandwidth(theta)) == pytest.approx(
        math.sqrt(5.0) * 2 / (2 * math.pi)
    )


def test_linspace_is_the_papers_start_in_any_default_dtype():
    torch.set_default_dtype(torch.float32)
    theta = Theta.linspace(30, 20.0)
    assert [p.dtype for p in theta] == [torch.float64] * 3
    assert np.allclose(theta.log_w, np.log(1 / 30), rtol=1e-15)
    assert np.array_equal(theta.log_a, np.zeros(30))
    assert np.allclose(theta.mu, np.linspace(0, 20, 30), rtol=1e-15)
