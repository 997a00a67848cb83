"""The system: trains, keeps weights within the bound, saves, and gives its plain network away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.dynamics.networks import build
from passband.dynamics.tasks import TASKS
from passband.dynamics.weight_compander.model import companders
from passband.dynamics.weight_compander.system import WeightCompander
from passband.errors import ConfigError


@pytest.fixture(scope="module")
def few() -> Data:
    return TASKS["digits-few"].data(seed=0)


@pytest.fixture(scope="module")
def trained(few: Data) -> WeightCompander:
    system = WeightCompander.from_preset("smoke")
    system.fit(few.for_fit())
    return system


def test_it_learns_within_its_bounds(trained: WeightCompander, few: Data) -> None:
    assert TASKS["digits-few"].evaluate(trained, few)["accuracy"] > 85
    for row in trained.weights():
        assert row.largest <= row.bound * (1 + 1e-6)


def test_scales_were_learned_without_decay(trained: WeightCompander) -> None:
    fresh = companders(WeightCompander.from_preset("smoke").network)
    for name, psi in companders(trained.network).items():
        assert float(psi.a) != float(fresh[name].a)


def test_the_plain_network_gives_the_same_scores(trained: WeightCompander, few: Data) -> None:
    network = build("mlp", (1, 8, 8), 10, hidden=(64,)).eval()
    network.load_state_dict(trained.plain_state())
    x = few.test.x[:50]
    with torch.no_grad():
        p = network(trained.ready(x)).softmax(1).numpy()
    np.testing.assert_array_equal(p, trained.scores(x.numpy()))


def test_saved_and_loaded(trained: WeightCompander, few: Data, tmp_path) -> None:
    again = WeightCompander.load(trained.save(tmp_path / "saved"))
    x = few.test.x[:20].numpy()
    np.testing.assert_array_equal(again.scores(x), trained.scores(x))
    keys = set(trained.state())
    assert "network.head.parametrizations.weight.original" in keys
    assert {f"network.head.parametrizations.weight.0.log_{c}" for c in "ab"} <= keys


def test_pictures(trained: WeightCompander, few: Data, tmp_path) -> None:
    artifacts = trained.pictures(few, tmp_path)
    assert {a.file for a in artifacts} == {"curves.svg", "weights.json"}
    assert all((tmp_path / a.file).stat().st_size > 200 for a in artifacts)


@pytest.mark.parametrize("options", [
    {"curve": "tanh", "learn": False}, {"scope": "channel"}, {"scope": "global", "steady": True},
    {"decay_on": "w", "weight_decay": 1e-2}, {"init": "raw", "slope": 1.2}, {"optimizer": "adamw"},
    {"network": "conv", "channels": (8, 16), "norm": True, "first": False},
])
def test_every_way_trains(few: Data, options: dict[str, object], tmp_path) -> None:
    system = WeightCompander.from_preset("smoke", **{"lr": 0.01, **options})
    spent = system.fit(few.for_fit(), Budget(steps=10))
    assert spent["steps"] == 10
    assert np.isfinite(system.scores(few.test.x[:5].numpy())).all()
    assert all(a.file for a in system.pictures(few, tmp_path))


def test_decay_on_w_and_on_v_differ(few: Data) -> None:
    found = []
    for decay_on in ("v", "w"):
        system = WeightCompander.from_preset(
            "smoke", decay_on=decay_on, weight_decay=0.5, lr=0.02, learn=False, slope=3.0
        )
        system.fit(few.for_fit(), Budget(steps=30))
        found.append(system.weights()[0].std)
    assert found[0] != found[1]
    # psi' is up to three at zero: the same decay pulls harder through the curve.
    assert found[1] < found[0]


def test_unknown_curves_are_refused() -> None:
    with pytest.raises(ConfigError, match="'curve'"):
        WeightCompander.from_preset("smoke", curve="sine")


def test_the_first_scores_are_those_of_the_network_without_companders(few: Data) -> None:
    from passband.dynamics.classifier import Classifier

    x = few.test.x[:20].numpy()
    ours = WeightCompander.from_preset("smoke", seed=4).scores(x)
    plain = Classifier.from_preset("smoke", seed=4).scores(x)
    np.testing.assert_allclose(ours, plain, atol=1e-6)
