"""A state that moves with the run: told where it stands, saved, restored first, selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from passband.bench.budget import Budget
from passband.bench.ema import Average
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.optim import build_optimizer
from passband.bench.streams import Streams
from passband.errors import CheckpointError
from tests.bench.halving import Halving

STEPS, WIDTH = 20, 8
X = torch.linspace(-1, 1, 48).reshape(24, 2)
Y = X.prod(1, keepdim=True)


class Stop(Exception):
    pass


def loss(module: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return nn.functional.mse_loss(module(x), y)


def fit(
    stop: int | None = None, seed: int = 0, state: bool = True, **options: Any
) -> tuple[nn.Module, Halving, Outcome]:
    with Streams(seed).initialising():
        module = nn.Sequential(
            nn.Linear(2, WIDTH), nn.Tanh(), nn.Dropout(0.2), nn.Linear(WIDTH, 1)
        )
    config = LoopConfig(batch_size=8, checkpoint_steps=1, **options.pop("config", {}))
    optimizer = build_optimizer(module.parameters(), config)
    halving = Halving(module, optimizer, options.pop("when", 0.5))
    steps = 0

    def counted(module: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if stop is not None and steps > stop:
            raise Stop
        return loss(module, batch)

    outcome = train(
        module, counted, torch.utils.data.TensorDataset(X, Y), Budget(steps=STEPS), config,
        streams=Streams(0), optimizer=optimizer, state=halving if state else None, **options,
    )
    return module, halving, outcome


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_it_is_told_the_share_of_the_budget_before_every_step() -> None:
    module, halving, _ = fit()
    assert halving.calls == pytest.approx([i / STEPS for i in range(STEPS)])
    assert module[0].weight.shape == (WIDTH // 2, 2) and module[-1].weight.shape == (1, WIDTH // 2)


def test_gathered_moments_are_those_of_training_the_kept_units_alone() -> None:
    """Units that the output ignores: with them removed midway, the others never notice."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(2, 4, dtype=torch.float64), nn.Linear(4, 1, dtype=torch.float64))
    with torch.no_grad():
        wide[0].weight[2:] = 0.0
        wide[0].bias[2:] = 0.0
        wide[1].weight[:, 2:] = 0.0
    narrow = nn.Sequential(
        nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 1, dtype=torch.float64)
    )
    with torch.no_grad():
        narrow[0].weight.copy_(wide[0].weight[:2])
        narrow[0].bias.copy_(wide[0].bias[:2])
        narrow[1].weight.copy_(wide[1].weight[:, :2])
        narrow[1].bias.copy_(wide[1].bias)
    # No gradient reaches a unit whose weights in and out are zero, so Adam leaves it there.
    data = torch.utils.data.TensorDataset(X.double(), Y.double())
    for module, when in ((wide, 0.5), (narrow, 2.0)):
        config = LoopConfig(batch_size=8, lr=0.05)
        optimizer = build_optimizer(module.parameters(), config)
        train(module, loss, data, Budget(steps=STEPS), config, streams=Streams(0),
              optimizer=optimizer, state=Unchanging(module, optimizer, when))
    assert wide[0].weight.shape == narrow[0].weight.shape
    torch.testing.assert_close(weights(wide), weights(narrow), rtol=1e-12, atol=1e-12)


class Unchanging(Halving):
    """Only halves; doesn't decay."""

    def at(self, fraction: float) -> None:
        kept = self.last.weight.detach().clone()
        if self.kept is None and fraction >= self.when:
            super().at(fraction)
            kept = kept.index_select(1, self.kept)
        self.last.weight.data.copy_(kept)


@pytest.mark.parametrize("stop", [1, 9, 10, 11, 17])
@pytest.mark.parametrize("config", [
    {}, {"ema": 0.8, "select": "lowest error", "validate_every": 3, "schedule": "cosine"},
], ids=["plain", "averaged and selected"])
def test_resume_is_exact_before_and_after_the_shapes_change(
    tmp_path: Path, stop: int, config: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"config": config}
    if config:
        options["validate"] = lambda m: {"error": (m(X) - Y).abs().max()}
    whole, _, expected = fit(**options)
    with pytest.raises(Stop):
        fit(stop, checkpoints=tmp_path / "run", **options)
    resumed, halving, outcome = fit(
        seed=5, checkpoints=tmp_path / "run", resume=True, **options
    )
    assert torch.equal(weights(resumed), weights(whole))
    assert outcome.values == expected.values
    if not config:
        assert halving.calls == pytest.approx([i / STEPS for i in range(STEPS)])
    again, _, _ = fit(seed=6, checkpoints=tmp_path / "run", resume=True, **options)
    assert torch.equal(weights(again), weights(whole))  # a finished run is not run again


def test_the_selected_weights_come_with_their_state() -> None:
    """The best validation comes before the layer is halved: its shapes come back."""
    errors = iter([3.0, 1.0, 2.0, 4.0])
    kept: list[torch.Tensor] = []

    def validate(module: nn.Module) -> dict[str, float]:
        kept.append(weights(module).clone())
        return {"error": next(errors)}

    with Streams(0).initialising():
        module = nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    config = LoopConfig(batch_size=8, validate_every=5, select="lowest error")
    optimizer = build_optimizer(module.parameters(), config)
    state = Halving(module, optimizer, 0.6)
    train(module, loss, torch.utils.data.TensorDataset(X, Y), Budget(steps=STEPS), config,
          streams=Streams(0), optimizer=optimizer, state=state, validate=validate)
    assert len(kept[1]) > len(kept[3])
    assert torch.equal(weights(module), kept[1]) and state.kept is None
    assert len(state.calls) == 10


def test_a_state_that_forgets_to_resize_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        fit(15, checkpoints=tmp_path / "run")
    monkeypatch.setattr(Halving, "load_state_dict", lambda self, tree: None)
    with pytest.raises(CheckpointError, match=r"0\.weight has shape \[8, 2\].*has \[4, 2\]"):
        fit(checkpoints=tmp_path / "run", resume=True)


@pytest.mark.parametrize(("saved", "resumed", "words"), [
    (True, False, "shapes = None"), (False, True, "state = None"),
])
def test_with_and_without_a_state_are_different_runs(
    tmp_path: Path, saved: bool, resumed: bool, words: str
) -> None:
    fit(checkpoints=tmp_path / "run", state=saved)
    with pytest.raises(CheckpointError, match=words):
        fit(checkpoints=tmp_path / "run", resume=True, state=resumed)


def test_an_average_starts_anew_where_shapes_change() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(3)}
    average = Average(tensors, 0.5, warmup=False)
    tensors = {"a": torch.ones(2), "b": torch.ones(2)}
    average.follow(tensors)
    average.update(tensors)
    assert average.tensors["a"].tolist() == [0.5, 0.5] and average.tensors["b"].tolist() == [1, 1]
