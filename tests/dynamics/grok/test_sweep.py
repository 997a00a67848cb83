"""Stacked runs against the plain loop of the paper, and the phases they end in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from passband.data.modular import all_pairs
from passband.dynamics.grok.monitor import GrokMonitor
from passband.dynamics.grok.sweep import Setting, grid, phase, sweep
from passband.errors import ConfigError
from passband.parts.seeds import permutations

TINY = Setting(p=11, neurons=48, alpha=0.7, xi=0.2, weight_decay=3.0, steps=40, seed=2)


def plain(s: Setting) -> nn.Module:
    """The training as a paper would write it down, one run, one-hot targets."""
    data = s.data()
    torch.manual_seed(s.seed)
    model = s.model().train()
    rate = s.lr if s.batch_size is None else s.lr * (s.batch_size / 256) ** 0.5
    groups = [
        {"params": [w for w in model.parameters() if w.dim() > 1]},
        {"params": [w for w in model.parameters() if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=s.weight_decay)
    train = data.train
    batches = permutations(len(train), s.batch_size or len(train), s.seed)
    for _ in range(s.steps):
        rows = train[next(batches)]
        target = torch.eye(s.p)[data.labels[rows]]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data.pairs[rows]), target).backward()
        optimizer.step()
    if s.norm == "bn":
        model.calibrate(data.pairs[train])
    return model.eval()


@pytest.mark.parametrize("change", [
    {}, {"act": "relu"}, {"norm": "ln"}, {"norm": "bn", "batch_size": 20}, {"batch_size": 16},
], ids=str)
def test_a_sweep_is_the_plain_training(change):
    first = replace(TINY, **change)
    # Another share, seed and decay in the same stack must not matter.
    others = [replace(first, alpha=0.5, seed=7), replace(first, weight_decay=0.0, xi=0.0)]
    (run, *rest) = sweep([first, *others], every=10)
    pairs = all_pairs(11)
    for one in (run, *rest):
        reference = plain(one.setting)
        with torch.no_grad():
            found, expected = one.model(pairs), reference(pairs)
        # Rounding grows along a run: less than a hundredth of the scores after 40 steps.
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * scale)
    assert [row["step"] for row in run.rows] == [0, 10, 20, 30, 40]
    measured = GrokMonitor(run.data).measure(run.model)
    assert run.last["train"] == measured["train"]
    assert run.last["ipr"] == pytest.approx(measured["ipr"])
    assert sum(run.last["ipr_histogram"]) == 48


def test_stacks_and_single_runs_agree():
    settings = grid(p=11, neurons=48, alpha=[0.5, 0.7], xi=0.2, weight_decay=[0.0, 5.0], steps=30)
    together, apart = sweep(settings, every=30), sweep(settings, every=30, batched=False)
    for a, b in zip(together, apart, strict=True):
        assert a.setting == b.setting
        for name in ("norm_u", "norm_v", "norm_w", "ipr"):
            assert a.last[name] == pytest.approx(b.last[name], rel=1e-3)


def test_the_phases_of_a_small_table():
    """31 residues, 70 % known, 20 % at random: more decay, from memory to inversion."""
    runs = sweep(grid(
        p=31, neurons=192, alpha=0.7, xi=0.2, weight_decay=[0.0, 5.0, 10.0], steps=300
    ), every=50)
    assert [run.phase for run in runs] == ["memorisation", "coexistence", "full inversion"]
    plain, _, inverted = runs
    assert inverted.last["test"] >= 0.95
    assert inverted.last["corrupt"] < 0.4 < plain.last["corrupt"]
    assert inverted.last["ipr"] > plain.last["ipr"] + 0.2
    peak = max(row["train"] for row in inverted.rows)
    assert peak > 0.95 > inverted.last["train"]


@pytest.mark.parametrize(("train", "test", "xi", "name"), [
    (1.0, 0.2, 0.3, "memorisation"), (0.98, 0.98, 0.3, "coexistence"),
    (0.8, 1.0, 0.35, "partial inversion"), (0.654, 1.0, 0.35, "full inversion"),
    (0.02, 0.01, 0.35, "forgetting"), (0.5, 0.4, 0.35, "in between"),
    (0.3, 1.0, 0.35, "in between"), (1.0, 1.0, 0.0, "coexistence"),
])
def test_names_of_phases(train, test, xi, name):
    assert phase(train, test, xi, 97) == name


def test_batches_below_256_take_smaller_steps():
    assert Setting(batch_size=64).rate == pytest.approx(0.005)
    assert Setting(batch_size=256).rate == Setting().rate == 0.01


def test_wrong_settings():
    with pytest.raises(ConfigError, match="change their sign"):
        Setting(weight_decay=100.0)
    with pytest.raises(ConfigError, match="unknown settings"):
        grid(decay=[1.0])
    with pytest.raises(ConfigError, match="network"):
        Setting(network="cnn")
    with pytest.raises(ConfigError, match="at most as many"):
        sweep([replace(TINY, batch_size=100)])


def test_a_monitor_in_a_loop_of_one_s_own():
    data = TINY.data()
    net = nn.Sequential(nn.Linear(22, 16), nn.ReLU(), nn.Linear(16, 11)).train()
    from passband.dynamics.grok.model import Layers

    def hot(model, pairs):
        return model(torch.eye(11)[pairs].flatten(1))

    monitor = GrokMonitor(
        data, every=2, forward=hot, layers=lambda m: Layers.of(m[0].weight, m[2].weight)
    )
    for step in range(4):
        monitor(net, step)
    assert net.training
    assert monitor.column("step") == [0, 2]
    with torch.no_grad():
        expected = data.accuracies(hot(net, data.pairs).argmax(1))
    assert monitor.rows[0]["test"] == expected["test"]
    assert np.isclose(monitor.rows[0]["norm_w"], net[2].weight.detach().norm().item())


def test_the_benchmark_compares_equal_things(monkeypatch):
    import importlib
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    bench = importlib.import_module("dynamics")
    (step,) = bench.grok_step(11, 16, 40, 1)
    (seeds,) = bench.grok_seeds(11, 16, 40, 2, 3, 1)
    assert step["ratio"] == pytest.approx(step["theirs"] / step["ours"])
    assert (step["rival"], seeds["rival"]) == ("one-hot products", "a loop")
    with pytest.raises(SystemExit, match="no use in timing"):
        bench.same(torch.ones(3), torch.zeros(3) + 0.5, "ones")
