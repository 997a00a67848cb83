"""The diffusion model of digits: schedules, samplers and distances against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from passband.data.digits import bordered, digits, dilated
from passband.errors import DataError
from passband.parts.modes import evaluating
from passband.tuning.diffusion import Diffusion, UNet
from passband.tuning.diffusion_digits import SIZES, accuracy, frechet, style

DIFFUSION = Diffusion(steps=100)


class Point(nn.Module):
    """The exact noise when all data is one image."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x, t, c):
        a = DIFFUSION.signal(t).to(x.dtype)[:, None, None, None]
        return (x - a.sqrt() * self.image) / (1 - a).sqrt()


class Gaussian(nn.Module):
    """The exact expected noise when every pixel is N(0, s^2)."""

    def __init__(self, diffusion, s):
        super().__init__()
        self.diffusion, self.s = diffusion, s

    def forward(self, x, t, c):
        a = self.diffusion.signal(t).to(x.dtype)[:, None, None, None]
        return (1 - a).sqrt() * x / (a * self.s**2 + 1 - a)


def test_the_schedule_is_the_cosine_one():
    t = torch.arange(101)
    a = DIFFUSION.signal(t)
    assert float(a[0]) == 1.0
    assert bool((a[1:] < a[:-1]).all())
    expected = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2
    expected /= math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert float(a[50]) == pytest.approx(expected, rel=1e-12)
    assert float(a[100]) < 1e-4


def test_noised_images_have_the_variance_of_the_schedule():
    x = torch.full((20000, 1, 1, 1), 0.8)
    t = torch.full((20000,), 30)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noised = DIFFUSION.noised(x, t, noise)
    a = float(DIFFUSION.signal(torch.tensor(30)))
    assert float(noised.mean()) == pytest.approx(0.8 * math.sqrt(a), abs=0.02)
    assert float(noised.var()) == pytest.approx(1 - a, rel=0.03)


def test_the_loss_of_a_perfect_and_of_a_silent_model():
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    x, c = image.expand(64, 1, 8, 8), torch.zeros(64, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    assert float(DIFFUSION.loss(Point(image), x, c, generator)) < 1e-6

    def silent(x, t, c):
        return torch.zeros_like(x)

    assert float(DIFFUSION.loss(silent, x, c, generator)) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("sample", [DIFFUSION.ddim, DIFFUSION.ancestral], ids=["ddim", "ancestral"])
def test_samplers_find_a_single_image(sample):
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    found = sample(Point(image), torch.tensor([0, 1, 2]), seed=1)
    torch.testing.assert_close(found, image.expand(3, 1, 8, 8), rtol=0, atol=2e-3)


def test_samplers_keep_the_spread_of_gaussian_data():
    c = torch.zeros(500, dtype=torch.long)
    found = DIFFUSION.ddim(Gaussian(DIFFUSION, 0.2), c, steps=100)
    assert float(found.std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float(found.mean())) < 0.01
    # The variance of the ancestral sampler's steps is right for short steps only.
    long = Diffusion(steps=1000)
    found = long.ancestral(Gaussian(long, 0.2), c)
    assert float(found.std()) == pytest.approx(0.2, rel=0.02)
    assert 0.15 < float(DIFFUSION.ancestral(Gaussian(DIFFUSION, 0.2), c).std()) < 0.2


def test_a_seed_fixes_the_images():
    model = UNet(width=8).eval()
    c = torch.tensor([3, 3, 5])
    first = DIFFUSION.ancestral(model, c, seed=2)
    assert torch.equal(first, DIFFUSION.ancestral(model, c, seed=2))
    assert not torch.equal(first, DIFFUSION.ancestral(model, c, seed=3))
    with pytest.raises(DataError, match="classes"):
        DIFFUSION.ddim(model, torch.tensor([[1]]))


def test_the_network_has_its_size_and_uses_time_and_class():
    model = UNet()
    assert 4e5 < sum(p.numel() for p in model.parameters()) < 6e5
    x = torch.randn(1, 1, 8, 8)
    outs = [model(x, torch.tensor([t]), torch.tensor([c])) for t, c in ((5, 1), (50, 1), (5, 2))]
    assert outs[0].shape == x.shape
    assert not torch.allclose(outs[0], outs[1]) and not torch.allclose(outs[0], outs[2])


def test_frechet_against_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 6)), rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + 1.0
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(left @ right).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(left + right - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9)
    # Features that never fire make a covariance singular, where products have no real root.
    dead = a * np.array([1, 1, 1, 0, 0, 0])
    assert frechet(dead, dead + 1) == pytest.approx(6.0, abs=1e-6)
    with pytest.raises(DataError):
        frechet(a[:1], b)


def test_the_job_shows_five_classes_in_the_style():
    data = style(seed=0, size="smoke")
    shown = data.train.examples
    assert len(shown) == 200
    assert set(shown.labels.tolist()) == set(range(5))
    originals = digits().train.transformed(dilated, bordered).images.flatten(1)
    assert bool((torch.cdist(shown.images.flatten(1), originals).min(1).values < 1e-5).all())
    again, other = style(0, "smoke").train.examples, style(1, "smoke").train.examples
    assert torch.equal(again.images, shown.images)
    assert not torch.equal(other.images, shown.images)


def test_the_exam_measures_the_prior_and_repeats():
    data = style(seed=0, size="smoke")
    model = data.train.model()
    with evaluating(model), torch.no_grad():
        found = data.test.measure(model)
    start = data.test.start()
    assert found == pytest.approx(start)
    assert set(start) == {"target", "retention", "out_of_domain"}
    assert 0 <= start["retention"] <= 100 and start["target"] > 0 > start["out_of_domain"]


def test_the_classifier_reads_unseen_digits():
    assert accuracy(digits().test) > 0.93


@pytest.mark.slow
def test_the_prior_draws_what_it_is_asked_for():
    assert SIZES["small"].width == 32
    assert style(0, "small").test.start()["retention"] > 85
