"""The training loop against hand computation and against itself: accumulation, clip, EMA, NaN."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.streams import Streams
from passband.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    PassbandError,
    UnknownNameError,
)

STEPS = Budget(steps=12)


def line(n: int = 24) -> TensorDataset:
    x = torch.linspace(-1, 1, 3 * n).reshape(n, 3)
    return TensorDataset(x, x.sum(1, keepdim=True) + 0.5)


def build(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with Streams(seed).initialising():
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 1))


def loss(module, batch):
    x, y = batch
    return nn.functional.mse_loss(module(x), y)


def fit(module=None, data=None, budget=STEPS, seed=0, **options):
    config = LoopConfig(**{"batch_size": 8, **options.pop("config", {})})
    module = module if module is not None else build(seed)
    data = line() if data is None else data
    return module, train(module, loss, data, budget, config, streams=Streams(seed), **options)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# ---- the step --------------------------------------------------------------------------------


def test_one_full_batch_step_of_sgd_is_the_gradient_step():
    module = build()
    before = weights(module).clone()
    loss(module, line()[:]).backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    module.zero_grad()
    fit(module, budget=Budget(steps=1), config={"optimizer": "sgd", "lr": 0.1, "batch_size": 24})
    torch.testing.assert_close(weights(module), before - 0.1 * gradient)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulation_equals_the_big_batch(parts):
    """Also when micro-batches are of unequal size (8 = 1 + 2 + 1 + 2 + 2)."""
    one, whole = fit()
    many, split = fit(config={"accumulate": parts})
    torch.testing.assert_close(weights(one), weights(many), rtol=1e-5, atol=1e-6)
    assert split.values["loss"] == pytest.approx(whole.values["loss"], rel=1e-5)
    assert split.examples == whole.examples == 12 * 8


def test_clip_limits_the_norm_of_the_step():
    module = build()
    before = weights(module).clone()
    _, outcome = fit(
        module, budget=Budget(steps=1), config={"optimizer": "sgd", "lr": 1.0, "clip": 1e-3}
    )
    assert float((weights(module) - before).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert outcome.values["gradient_norm"] > 1e-3


def test_average_has_its_closed_form():
    """Constant gradient 1: w_n = -lr n; without warm-up a_n = sum (1-d) d^(n-k) w_k + d^n w_0."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    config = LoopConfig(optimizer="sgd", lr=0.5, ema=0.9, ema_warmup=False)
    train(
        module, lambda m, _: m.weight.sum(), None, Budget(steps=7), config, streams=Streams(0)
    )
    expected = sum(0.1 * 0.9 ** (7 - k) * (-0.5 * k) for k in range(1, 8))
    assert module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_average_warms_up():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    config = LoopConfig(optimizer="sgd", lr=1.0, ema=0.999)
    train(
        module, lambda m, _: m.weight.sum(), None, Budget(steps=2), config, streams=Streams(0)
    )
    first = (1 - 2 / 11) * -1.0
    assert module.weight.item() == pytest.approx(3 / 12 * first + 9 / 12 * -2.0, rel=1e-6)


def test_lbfgs_solves_a_quadratic_and_stops_when_it_cannot_move():
    torch.manual_seed(0)
    a = torch.randn(20, 6, dtype=torch.float64)
    y = torch.randn(20, 1, dtype=torch.float64)
    module = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    outcome = train(
        module, lambda m, _: ((m(a) - y) ** 2).mean(), None, Budget(steps=500),
        LoopConfig(optimizer="lbfgs", lr=1.0), streams=Streams(0),
    )
    exact = torch.linalg.lstsq(a, y).solution.T
    torch.testing.assert_close(module.weight.detach(), exact, rtol=1e-6, atol=1e-8)
    assert outcome.stopped == "converged" and outcome.steps < 500


def test_lbfgs_keeps_to_a_step_budget():
    _, outcome = fit(budget=Budget(steps=40), config={"optimizer": "lbfgs", "batch_size": 24})
    assert 40 <= outcome.steps <= 42


def test_custom_step_with_two_optimisers():
    module = {"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)}
    optimizers = {n: torch.optim.SGD(m.parameters(), lr=0.1) for n, m in module.items()}
    start = {n: m.weight.item() for n, m in module.items()}

    def step(stage, batch):
        up = stage.update(-stage.module["a"].weight.sum(), "a")
        return {"loss": stage.update(stage.module["b"].weight.sum(), "b"), "up": up}

    outcome = train(
        module, None, None, Budget(steps=5), streams=Streams(0), step=step, optimizer=optimizers
    )
    assert module["a"].weight.item() == pytest.approx(start["a"] + 0.5, abs=1e-6)
    assert module["b"].weight.item() == pytest.approx(start["b"] - 0.5, abs=1e-6)
    assert "up" in outcome.values


def test_bf16_runs_and_the_next_run_is_exact_again():
    _, low = fit(config={"precision": "bf16"})
    exact, _ = fit()
    again, _ = fit()
    assert np.isfinite(low.values["loss"])
    assert torch.equal(weights(exact), weights(again))


# ---- the same numbers ------------------------------------------------------------------------


def test_same_seed_same_numbers_and_the_callers_random_state_is_left_alone():
    one, _ = fit(build(dropout=0.3))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    two, _ = fit(build(dropout=0.3))
    assert torch.equal(weights(one), weights(two))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(weights(fit(build(dropout=0.3), seed=1)[0]), weights(one))


def test_validation_does_not_change_the_training():
    def validate(module):
        return {"noise": float(torch.rand(()))}

    one, _ = fit(build(dropout=0.3))
    two, outcome = fit(
        build(dropout=0.3), validate=validate, config={"validate_every": 1}
    )
    assert torch.equal(weights(one), weights(two))
    noises = [row["noise"] for row in outcome.rows if "noise" in row]
    assert len(noises) == 12 and len(set(noises)) == 1


def test_the_loss_draws_its_points_from_the_generator_it_gets():
    seen = []

    def draw(module, generator):
        x = torch.rand(4, 3, generator=generator)
        seen.append(x)
        return module(x).square().mean()

    train(build(), draw, None, Budget(steps=3), streams=Streams(5))
    first = list(seen)
    seen.clear()
    train(build(), draw, None, Budget(steps=3), streams=Streams(5))
    assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=True))
    assert not torch.equal(first[0], first[1])


# ---- selection, looks, monitor -----------------------------------------------------------------


def test_selects_the_best_validation_and_says_so():
    scores = iter([3.0, 1.0, 2.0, 5.0])
    kept = []

    def validate(module):
        kept.append(weights(module).clone())
        return {"error": next(scores)}

    module, outcome = fit(
        budget=Budget(steps=4), validate=validate,
        config={"validate_every": 1, "select": "lowest error"},
    )
    assert torch.equal(weights(module), kept[1]) and not module.training
    assert outcome.selected == "lowest error" and outcome.values["error"] == 1.0


class Watcher:
    def __init__(self):
        self.rows, self.looks, self.fractions = [], 0, []

    def log(self, step, seconds, **values):
        self.rows.append((step, seconds, values))

    def progress(self, fraction, text=""):
        self.fractions.append((fraction, text))

    def test_error(self, system):
        self.looks += 1


class FakeSystem:
    id, checkpoints, resume = "fake", None, False
    config = LoopConfig()


def test_monitor_sees_curves_progress_and_about_twenty_looks():
    watcher = Watcher()
    fit(budget=Budget(steps=100), system=FakeSystem(), monitor=watcher)
    assert watcher.looks == 21  # the untrained start, then twenty
    assert [row[0] for row in watcher.rows] == list(range(1, 101))
    assert {"loss", "lr"} <= watcher.rows[0][2].keys()
    fractions = [f for f, _ in watcher.fractions]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert watcher.fractions[5][1].startswith("step 6, loss ")


def test_seconds_and_examples_end_a_run():
    _, outcome = fit(budget=Budget(examples=50))
    assert outcome.steps == 7 and outcome.examples == 56  # 7 batches of 8
    _, outcome = fit(budget=Budget(seconds=0.05))
    assert outcome.seconds >= 0.05 and outcome.steps > 0
    assert outcome.report()["selected"] == "last"


# ---- what goes wrong ---------------------------------------------------------------------------


def test_nan_loss_says_what_to_do():
    with pytest.raises(PassbandError, match=r"loss = nan by step 1\b") as caught:
        train(build(), lambda m, b: m(b).mean() * float("nan"), torch.ones(8, 3), STEPS,
              streams=Streams(0))
    assert "lower lr" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"config": {"select": "lowest error"}}, ConfigError, "without validation"),
        ({"config": {"optimizer": "lbfgs", "clip": 1.0}}, ConfigError, "L-BFGS"),
        ({"config": {"batch_size": 2, "accumulate": 3}}, ConfigError, "micro-batches"),
        ({"optimizer": {"a": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)}}, ConfigError,
         "default step"),
        ({"data": []}, DataError, "empty"),
        ({"data": iter(())}, DataError, "no batch"),
        ({"data": 5}, DataError, "int"),
        ({"validate": lambda m: {"a": 1.0}, "config": {"select": "lowest b"}}, UnknownNameError,
         "validation metric"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)}, ConfigError,
         "lacks"),
    ],
)
def test_bad_settings_are_named(options, error, words):
    with pytest.raises(error, match=words):
        fit(**options)


def test_a_budget_of_examples_needs_examples():
    with pytest.raises(BudgetError, match="examples"):
        train(build(), lambda m, g: m(torch.ones(2, 3)).mean(), None, Budget(examples=5),
              streams=Streams(0))


@pytest.mark.parametrize("field", ["optimizer", "schedule", "select"])
def test_config_refuses_unknown_names(field):
    with pytest.raises(ValueError, match=field):
        LoopConfig(**{field: "no such thing"})


# ---- resume ----------------------------------------------------------------------------------

RESUMED = [
    {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 3, "ema": 0.9},
    {"optimizer": "adam", "schedule": "linear", "warmup": 0.2, "accumulate": 2},
    {"optimizer": "sgd", "momentum": 0.9, "schedule": "step", "clip": 0.5},
    {"optimizer": "lbfgs", "batch_size": 24, "lbfgs_iterations": 3},
    {"precision": "bf16"},
    {"precision": "fp16"},
]


class Stop(Exception):
    pass


@pytest.mark.parametrize("config", RESUMED, ids=lambda c: c.get("optimizer") or c["precision"])
@pytest.mark.parametrize("stop", [2, 5])
def test_resume_is_exact(tmp_path, config, stop):
    budget = Budget(steps=30)
    config = {"validate_every": 4, "checkpoint_steps": 1, "log_every": 3, **config}
    lowest = {"select": "lowest error"} if "ema" in config else {}

    def validate(module):
        x, y = line()[:]
        return {"error": float((module(x) - y).abs().max())}

    whole, expected = fit(
        build(dropout=0.2), budget=budget, config={**config, **lowest}, validate=validate
    )
    turns = 0

    def interrupted(module, batch):
        nonlocal turns
        turns += 1
        if turns > stop * 4:
            raise Stop
        return loss(module, batch)

    settings = LoopConfig(**{"batch_size": 8, **config, **lowest})
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(build(dropout=0.2), interrupted, line(), budget, settings, streams=Streams(0),
              validate=validate, checkpoints=folder)
    assert not list(folder.glob("*.pkl")) and len(list(folder.iterdir())) == 2
    resumed, outcome = fit(
        build(seed=3, dropout=0.2), seed=0, budget=budget, config={**config, **lowest},
        validate=validate, checkpoints=folder, resume=True,
    )
    assert torch.equal(weights(resumed), weights(whole))
    clock = ("seconds",)
    strip = lambda rows: [{k: v for k, v in r.items() if k not in clock} for r in rows]  # noqa: E731
    assert strip(outcome.rows) == strip(expected.rows)
    assert (outcome.steps, outcome.examples) == (expected.steps, expected.examples)
    again, third = fit(
        build(seed=4), seed=0, budget=budget, config={**config, **lowest}, validate=validate,
        checkpoints=folder, resume=True,
    )
    assert torch.equal(weights(again), weights(whole))  # a finished run is not run again
    assert third.seconds == outcome.seconds


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt),
                                               (signal.SIGTERM, SystemExit)])
def test_signals_leave_a_checkpoint(tmp_path, number, error):
    whole, _ = fit()
    turns = 0

    def interrupted(module, batch):
        nonlocal turns
        turns += 1
        if turns == 5:
            os.kill(os.getpid(), number)
        return loss(module, batch)

    former = signal.getsignal(number)
    with pytest.raises(error):
        train(build(), interrupted, line(), STEPS, LoopConfig(batch_size=8), streams=Streams(0),
              checkpoints=tmp_path / "run")
    assert signal.getsignal(number) == former
    resumed, _ = fit(build(seed=9), seed=0, checkpoints=tmp_path / "run", resume=True)
    assert turns == 5 and torch.equal(weights(resumed), weights(whole))


def test_not_resuming_forgets_an_old_checkpoint(tmp_path):
    fit(checkpoints=tmp_path / "run", budget=Budget(steps=3))
    _, outcome = fit(checkpoints=tmp_path / "run", budget=Budget(steps=5))
    assert outcome.steps == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"lr": 0.5}}, "loop.lr = 0.001"),
        ({"seed": 1}, "seed = 0"),
        ({"budget": Budget(steps=13)}, "budget.steps = 12"),
        ({"module": nn.Linear(3, 1)}, "shapes"),
        ({"system": FakeSystem()}, "system = ''"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, words):
    fit(checkpoints=tmp_path / "run")
    with pytest.raises(CheckpointError, match=words):
        fit(**{"checkpoints": tmp_path / "run", "resume": True, **change})


def test_a_damaged_checkpoint_is_refused(tmp_path):
    fit(checkpoints=tmp_path / "run")
    file = tmp_path / "run" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="can't be read"):
        fit(checkpoints=tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    fit(checkpoints=tmp_path / "run")
    monkeypatch.setattr("passband.bench.checkpoint.__version__", "99.0")
    with pytest.raises(CheckpointError, match="passband version"):
        fit(checkpoints=tmp_path / "run", resume=True)
