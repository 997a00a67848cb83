"""Weight clipping and weight normalisation, and the choice of layers that they share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from passband.bench.budget import Budget
from passband.dynamics.baselines.weight_clipping.model import WeightClipping
from passband.dynamics.baselines.weight_clipping.system import WeightClippingClassifier
from passband.dynamics.baselines.weight_norm.model import normalised
from passband.dynamics.baselines.weight_norm.system import WeightNorm
from passband.dynamics.classifier import Classifier
from passband.dynamics.layers import typical_size, weighted_layers
from passband.dynamics.tasks import TASKS
from passband.errors import ConfigError


@pytest.fixture(scope="module")
def few():
    return TASKS["digits-few"].data(seed=0)


def test_a_clipped_step_is_the_projection_of_a_plain_one() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4), torch.randn(8, 5)
    gradient, = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    start = layer.weight.detach().clamp(-0.2, 0.2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    WeightClipping({layer: 0.2}).after(optimizer)
    assert torch.equal(layer.weight, start)
    layer(x).square().sum().backward()
    expected = (start - 0.05 * layer.weight.grad).clamp(-0.2, 0.2)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert not torch.equal(gradient, layer.weight.grad)


def test_the_clipped_system_keeps_to_its_box(few) -> None:
    system = WeightClippingClassifier.from_preset("smoke", bound=0.2, lr=0.1)
    system.fit(few.for_fit(), Budget(steps=40))
    fresh = Classifier.from_preset("smoke").network
    for name, layer in weighted_layers(system.network).items():
        most = 3 * 0.2 * typical_size(fresh.get_submodule(name).weight)
        assert float(layer.weight.detach().abs().max()) == pytest.approx(most, rel=1e-5)
    assert TASKS["digits-few"].evaluate(system, few)["accuracy"] > 50


def test_a_wide_box_changes_nothing(few) -> None:
    x = few.test.x[:20].numpy()
    found = []
    for cls, options in ((WeightClippingClassifier, {"bound": 1e3}), (Classifier, {})):
        system = cls.from_preset("smoke", **options)
        system.fit(few.for_fit(), Budget(steps=10))
        found.append(system.scores(x))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_bounds_out_of_range(bound: float) -> None:
    with pytest.raises(ConfigError, match="bound"):
        WeightClipping({nn.Linear(2, 2): bound})


def test_normalised_layers_start_where_they_were(few) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3))
    x = torch.randn(2, 1, 5, 5)
    before = model(x)
    torch.testing.assert_close(normalised(model)(x), before, atol=1e-5, rtol=1e-5)
    assert model[2].parametrizations.weight.original0.shape == (1, 6, 1, 1)
    system = WeightNorm.from_preset("smoke")
    system.fit(few.for_fit(), Budget(steps=60))
    assert TASKS["digits-few"].evaluate(system, few)["accuracy"] > 60
