"""Validation that stops improving: rates of hand-made figures, the best weights, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from passband.bench import checkpoint
from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, Outcome, train
from passband.bench.plateau import Plateau
from passband.bench.streams import Streams
from passband.errors import ConfigError

X = torch.linspace(-1, 1, 48).reshape(24, 2)
DATA = torch.utils.data.TensorDataset(X, X.prod(1, keepdim=True))
WATCHED: dict[str, Any] = {
    "batch_size": 8, "lr": 1.0e-2, "validate_every": 1, "log_every": 1, "checkpoint_steps": 1,
    "select": "lowest error", "schedule": "plateau", "drop": 0.5,
}


class Stop(Exception):
    pass


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def fit(
    figures: list[float], *, steps: int | None = None, stop: int | None = None, seed: int = 0,
    folder: Path | None = None, seen: list[torch.Tensor] | None = None, **config: Any,
) -> tuple[nn.Module, Outcome]:
    """One step for each figure: what validation gives after it."""
    with Streams(seed).initialising():
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))
    done = 0

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        if stop is not None and done > stop:
            raise Stop
        x, y = batch
        if seen is not None:
            seen.append(weights(module).clone())
        return nn.functional.mse_loss(module(x), y)

    settings = LoopConfig(**{**WATCHED, **config})

    following = iter(figures[stopped_at(folder) if folder else 0 :])
    outcome = train(
        module, loss, DATA, Budget(steps=steps or len(figures)), settings, streams=Streams(0),
        validate=lambda m: {"error": next(following)}, checkpoints=folder, resume=True,
    )
    return module, outcome


def stopped_at(folder: Path) -> int:
    """Steps of the checkpoint there, 0 without one."""
    if not checkpoint.exists(folder):
        return 0
    tree = json.loads((folder / checkpoint.FACTS).read_text())["tree"]
    found: int = dict(tree["dict"])["iteration"]
    return found


def rates(outcome: Outcome) -> list[float]:
    return [row["lr"] for row in outcome.rows if "lr" in row]


# ---- the rule ------------------------------------------------------------------------------------


def test_the_rate_drops_at_every_multiple_of_the_patience() -> None:
    figures = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.0, 1.0, 1.5, 1.5, 1.2]
    _, found = fit(figures, patience=2)
    # Best at the second; the fourth, sixth and (after the eighth) the tenth are the second, fourth
    # and second without a better one. Equal is not better. A drop acts from the next step on.
    expected = [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]
    assert rates(found) == pytest.approx([1e-2 * x for x in expected])
    assert found.stopped == "budget" and found.values["error"] == 1.0


@pytest.mark.parametrize("patience", [1, 2, 3, 5])
def test_it_is_the_rule_of_torch(patience: int) -> None:
    """Whose patience counts the validations that it lets pass: one less."""
    generator = torch.Generator().manual_seed(patience)
    figures = torch.randint(0, 40, (200,), generator=generator).sort(descending=True).values
    figures = (figures + 3 * torch.randn(200, generator=generator)).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.9, patience=patience - 1, threshold=0.0, eps=0.0
    )
    ours, best = Plateau(patience, 0.9), float("inf")
    for figure in figures:
        theirs.step(figure)
        ours.see(figure < best)
        best = min(best, figure)
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.scale < 0.9


def test_figures_that_are_no_numbers_are_not_better_and_highest_is_upside_down() -> None:
    _, found = fit([1.0, float("nan"), 2.0, float("inf"), 1.5], patience=2)
    assert rates(found) == pytest.approx([1e-2] * 3 + [0.5e-2] * 2)
    _, found = fit([1.0, 2.0, 3.0, 2.0, 2.0, 2.0], patience=2, select="highest error")
    assert rates(found) == pytest.approx([1e-2] * 5 + [0.5e-2])
    assert found.values["error"] == 3.0


def test_the_run_ends_after_enough_of_them_with_any_schedule() -> None:
    figures = [2.0, 1.0] + [1.5] * 20
    _, found = fit(figures, patience=5, stop_after=10)
    assert (found.steps, found.stopped, found.values["error"]) == (12, "stale", 1.0)
    assert rates(found) == pytest.approx([1e-2] * 7 + [0.5e-2] * 5)
    _, found = fit(figures, schedule="cosine", stop_after=3)
    assert (found.steps, found.stopped) == (5, "stale")


def test_warm_up_goes_before() -> None:
    _, found = fit([1.0, 2.0, 2.0, 2.0, 2.0], patience=2, warmup=2)
    assert rates(found) == pytest.approx([0.0, 0.5e-2, 1e-2, 0.5e-2, 0.5e-2])


# ---- the best weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.5])
def test_training_goes_on_from_the_best_weights(ema: float | None) -> None:
    figures = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    before: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    best, _ = fit(figures[:2], patience=2, ema=ema)  # its selected weights are those of step two
    for reload, seen in before.items():
        fit(figures, patience=2, reload=reload, ema=ema, seen=seen)
    for step in (4, 6):  # after the second and the fourth validation without a better one
        assert torch.equal(before[True][step], weights(best))
        assert not torch.equal(before[False][step], weights(best))
    assert not torch.equal(before[True][5], weights(best))


def test_the_average_goes_on_from_the_best_weights_too() -> None:
    """With a rate of nearly nothing, weights and average stay where they were put."""
    quick, _ = fit([3.0, 1.0], patience=2, ema=0.5)
    module, _ = fit(
        [3.0, 1.0, 2.0, 2.0, 0.5], patience=2, reload=True, ema=0.5, drop=1e-12
    )  # the last figure is the best: what comes out was the average after a reload
    torch.testing.assert_close(weights(module), weights(quick), rtol=0, atol=1e-9)


# ---- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("stop", [3, 4, 5, 8, 11])
def test_a_killed_run_resumes_to_the_same_numbers(
    tmp_path: Path, stop: int, ema: float | None
) -> None:
    figures = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]
    options: dict[str, Any] = {"patience": 2, "stop_after": 6, "reload": True, "ema": ema}
    whole, expected = fit(figures, **options)
    assert (expected.steps, expected.stopped) == (12, "stale")
    with pytest.raises(Stop):
        fit(figures, stop=stop, folder=tmp_path / "run", **options)
    assert stopped_at(tmp_path / "run") == stop
    resumed, found = fit(figures, seed=5, folder=tmp_path / "run", **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert rates(found) == rates(expected) and found.values == expected.values
    assert (found.steps, found.stopped) == (12, "stale")
    again, _ = fit(figures, seed=6, folder=tmp_path / "run", **options)
    assert torch.equal(weights(again), weights(whole))  # a run that has ended is not run again


# ---- what it is not asked for, and what can't be -------------------------------------------------


def test_runs_that_do_not_ask_are_unchanged() -> None:
    plateau = Plateau.of(LoopConfig(schedule="cosine", patience=1, drop=0.5))
    assert not any(plateau.see(False) for _ in range(30))
    assert plateau.scale == 1.0 and not plateau.exhausted
    figures = [1.0] + [2.0] * 9
    module, _ = fit(figures, schedule="constant", patience=1)
    other, _ = fit(figures, schedule="constant", patience=9)
    assert torch.equal(weights(module), weights(other))


@pytest.mark.parametrize(("config", "words"), [
    ({"select": "last"}, "select='lowest NAME'"),
    ({"select": "last", "schedule": "constant", "stop_after": 3}, "stop_after = 3"),
    ({"schedule": "cosine", "reload": True}, "schedule = 'plateau'"),
    ({"patience": 5, "stop_after": 5}, "stop_after above patience"),
])
def test_contradictions_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit([1.0], **config)


def test_a_plateau_needs_validation_and_no_state_that_resizes() -> None:
    module = nn.Linear(2, 1)
    run: dict[str, Any] = {"streams": Streams(0), "budget": Budget(steps=1), "data": DATA}

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        return module(batch[0]).mean()

    with pytest.raises(ConfigError, match="without validation"):
        train(module, loss, config=LoopConfig(**WATCHED), **run)

    class Still:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, tree: Any) -> None: ...

        def at(self, fraction: float) -> None: ...

    with pytest.raises(ConfigError, match="moments"):
        train(module, loss, config=LoopConfig(**WATCHED, reload=True), state=Still(),
              validate=lambda m: {"error": 1.0}, **run)
