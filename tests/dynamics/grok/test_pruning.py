"""Pruning curves against a forward pass of each pruned network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from passband.data.modular import all_pairs, discrete_log_order, modular_dataset
from passband.dynamics.grok.model import QuadraticMLP, analytic_weights
from passband.dynamics.grok.neurons import neuron_table
from passband.dynamics.grok.pruning import prune_curve, prune_order
from passband.errors import ConfigError, DataError

DATA = modular_dataset(11, alpha=0.6, xi=0.3, seed=0)
PAIRS = all_pairs(11)


def without(model: QuadraticMLP, neurons) -> QuadraticMLP:
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        pruned.u[:, neurons] = pruned.v[:, neurons] = 0.0
        pruned.w[neurons] = 0.0
    return pruned


def random_model(norm: str, act: str = "square") -> QuadraticMLP:
    torch.manual_seed(1)
    model = QuadraticMLP(11, 30, act, norm=norm)
    if norm != "none":
        torch.nn.init.normal_(model.norm.weight, 1.0, 0.5)
        torch.nn.init.normal_(model.norm.bias)
    model.calibrate(PAIRS)
    return model


@pytest.mark.parametrize("act", ["square", "relu"])
@pytest.mark.parametrize("norm", ["none", "bn", "ln"])
@pytest.mark.parametrize("order", ["low", "high", "random"])
def test_equals_forward_passes_of_what_is_left(norm, act, order):
    model = random_model(norm, act)
    curve = prune_curve(model, order, DATA, seed=5)
    assert curve.pruned.tolist() == list(range(30))
    for n in (0, 1, 7, 20, 29):
        with torch.no_grad():
            predicted = without(model, curve.order[:n].copy())(DATA.pairs).argmax(1)
        for name, value in DATA.accuracies(predicted).items():
            assert curve.accuracy[name][n] == pytest.approx(value), (name, n)


def test_low_goes_up_and_high_comes_down():
    model = random_model("none")
    ratios = neuron_table(model).ipr.numpy()
    low, high = prune_order(model, "low"), prune_order(model, "high")
    assert (np.diff(ratios[low]) >= 0).all()
    assert (low[::-1] == high).all()
    assert sorted(prune_order(model, "random").tolist()) == list(range(30))


def test_splits_by_name_and_any_two_layers():
    model = random_model("none")
    splits = {"a": (DATA.pairs[:40], DATA.truth[:40]), "b": (DATA.pairs[40:], DATA.truth[40:])}
    order = list(range(29, -1, -1))
    ours = prune_curve(model, order, splits, points=5)
    bare = prune_curve(model.layers(), order, splits, points=5)
    assert ours.pruned.tolist() == bare.pruned.tolist() == [0, 7, 14, 22, 29]
    for name in "ab":
        np.testing.assert_allclose(ours.accuracy[name], bare.accuracy[name])
    assert ours.rows()[0].keys() == {"pruned", "a", "b"}
    with torch.no_grad():
        predicted = without(model, order[:14])(DATA.pairs[:40]).argmax(1)
    right = float((predicted == DATA.truth[:40]).double().mean())
    assert ours.at(0.5)["a"] == ours.accuracy["a"][2] == pytest.approx(right)


def test_frequencies_of_products_are_seen_in_the_order_of_powers():
    model = analytic_weights(11, 200, op="multiply")
    order = prune_order(model, "low", discrete_log_order(11))
    assert order[0] == 200  # the neuron for zero is no wave


def test_what_can_not_be_pruned():
    model = random_model("none")
    with pytest.raises(ConfigError, match="order"):
        prune_curve(model, "middle", DATA)
    with pytest.raises(DataError, match="repeats"):
        prune_curve(model, [0] * 30, DATA)
    with pytest.raises(DataError, match="no split"):
        prune_curve(model, "low", {})
