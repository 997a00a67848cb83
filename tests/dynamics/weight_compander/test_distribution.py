"""What weights look like: figures against scipy, masks against networks masked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from passband.dynamics.weight_compander.distribution import (
    masking_loss,
    pooled,
    stats_of,
    weight_probe,
    weight_stats,
)
from passband.dynamics.weight_compander.model import compand
from passband.errors import ConfigError, DataError
from passband.parts.probes import Probes


def test_figures_are_scipy_s() -> None:
    w = torch.from_numpy(np.random.default_rng(0).standard_t(5, (40, 30)))
    row = stats_of(w)
    flat = w.numpy().ravel()
    assert row.kurtosis == pytest.approx(stats.kurtosis(flat))
    assert row.std == pytest.approx(flat.std())
    assert row.near_zero == np.mean(np.abs(flat) < 0.1 * flat.std())
    assert row.largest == np.abs(flat).max()
    assert stats_of(w, unit=2.0).near_zero == np.mean(np.abs(flat) < 0.2)
    assert row.bound is None
    assert row.at_bound is None


def test_rows_of_plain_and_wrapped_layers_are_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    plain = weight_stats(model)
    compand(model, first=False)
    wrapped = weight_stats(model)
    assert [r.layer for r in plain] == [r.layer for r in wrapped] == ["0", "2"]
    assert plain[0] == wrapped[0]
    assert wrapped[1].std == pytest.approx(plain[1].std, rel=1e-5)
    assert wrapped[1].bound > wrapped[1].largest
    assert wrapped[1].at_bound == 0
    total = pooled(plain)
    assert total["largest"] == max(r.largest for r in plain)
    assert total["std"] == pytest.approx((48 * plain[0].std + 18 * plain[1].std) / 66)


def test_it_is_a_probe() -> None:
    model = compand(nn.Linear(6, 4))
    probes = Probes(weight_probe, every=2)
    for step in range(4):
        probes(model, step)
        with torch.no_grad():
            model.parametrizations.weight.original.mul_(3.0)
    assert probes.rows[1]["largest"] > probes.rows[0]["largest"]
    assert probes.rows[1]["largest"] < float(model.parametrizations.weight[0].bound)


def test_masks_are_of_the_weights_as_used() -> None:
    """The mean output over many masks is (1 - share) of the output: w is linear in a mask."""
    torch.manual_seed(0)
    layer = nn.Linear(30, 1, bias=False)
    x = torch.ones(1, 30)
    for model in (layer, compand(nn.Linear(30, 1, bias=False))):
        full = float(model(x).detach())
        fall = masking_loss(model, lambda f: float(f(x)), [0.0, 0.3, 1.0], draws=400)
        assert fall[0.0] == 0
        assert fall[1.0] == pytest.approx(full)
        spread = float(model.weight.detach().norm()) * (0.3 * 0.7 / 400) ** 0.5
        assert abs(fall[0.3] - 0.3 * full) < 4 * spread


def test_masking_leaves_the_module_alone_and_repeats() -> None:
    model, x = compand(nn.Linear(5, 4)), torch.randn(3, 5)
    before = model(x)
    first, second = (
        masking_loss(model, lambda f: float(f(x).sum()), [0.5], seed=3) for _ in range(2)
    )
    assert first == second
    assert torch.equal(model(x), before)


def test_input_that_is_wrong() -> None:
    with pytest.raises(ConfigError, match="shares"):
        masking_loss(nn.Linear(2, 2), lambda f: 0.0, [1.5])
    model = compand(nn.Linear(2, 2))
    with torch.no_grad():
        model.parametrizations.weight.original[0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        weight_stats(model)
