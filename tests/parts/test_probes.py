"""Probes look when they should, leave the run as it was, and survive a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.streams import Streams
from passband.bench.system import NullMonitor
from passband.errors import ConfigError
from passband.parts.probes import Probes

X = torch.linspace(-1, 1, 32).reshape(16, 2)
DATA = torch.utils.data.TensorDataset(X, X.sum(1, keepdim=True))


def look(model, step):
    torch.rand(3)  # a probe may draw
    return {"norm": model[0].weight.norm(), "weights": model[0].weight[0], "training":
            model.training}


class Stop(Exception):
    pass


def fit(folder: Path | None = None, *, probes: Probes | None = None, stop: int = 0,
        select: str = "last", monitor=None):
    with Streams(0).initialising():
        model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    calls = 0

    def loss(module, batch):
        nonlocal calls
        calls += 1
        if stop and calls > stop:
            raise Stop
        return nn.functional.mse_loss(module(batch[0]), batch[1])

    watching = None if probes is None else probes.watching(model, monitor)
    outcome = train(
        model, loss, DATA, Budget(steps=20),
        LoopConfig(batch_size=4, checkpoint_steps=1, select=select, validate_every=5),
        streams=Streams(0), checkpoints=folder, resume=folder is not None, state=watching,
        validate=lambda m: {"error": -float(m[0].weight.norm())},
    )
    if watching is not None:
        watching.finish()
    return model, outcome


def test_they_look_at_every_so_many_steps_in_evaluation_mode() -> None:
    probes = Probes(look, every=4)
    fit(probes=probes)
    assert probes.column("step") == [0, 4, 8, 12, 16, 20]
    assert probes.column("training") == [False] * 6
    assert json.loads(json.dumps(probes.table()))["columns"] == [
        "step", "norm", "weights", "training"
    ]


def test_a_run_with_probes_is_the_run_without() -> None:
    model, outcome = fit(probes=Probes(look, every=3))
    plain, other = fit()
    assert torch.equal(model[0].weight, plain[0].weight)
    assert outcome.values["loss"] == other.values["loss"]


def test_a_killed_run_has_all_rows(tmp_path: Path) -> None:
    whole = Probes(look, every=3)
    fit(probes=whole)
    with pytest.raises(Stop):
        fit(tmp_path / "loop", probes=Probes(look, every=3), stop=11)
    resumed = Probes(look, every=3)
    fit(tmp_path / "loop", probes=resumed)
    assert resumed.rows == whole.rows


def test_rows_after_the_selected_step_stay() -> None:
    probes = Probes(look, every=4)
    _, outcome = fit(probes=probes, select="highest error")
    assert outcome.selected == "highest error"
    assert probes.column("step") == [0, 4, 8, 12, 16, 20]


def test_numbers_reach_the_monitor() -> None:
    rows: list[tuple[int, dict[str, float]]] = []

    class Kept(NullMonitor):
        def log(self, step: int, seconds: float, **values: float) -> None:
            rows.extend([(step, values)] if "norm" in values else [])

    probes = Probes(look, every=10)
    fit(probes=probes, monitor=Kept())
    assert [(s, v["norm"]) for s, v in rows] == list(
        zip(probes.column("step"), probes.column("norm"), strict=True)
    )
    assert "weights" not in rows[0][1]


def test_two_probes_of_one_name_and_bad_pauses_are_refused() -> None:
    with pytest.raises(ConfigError, match="two probes give 'norm'"):
        Probes(look, look)(nn.Sequential(nn.Linear(1, 1)), 0)
    with pytest.raises(ConfigError, match="every = 0"):
        Probes(look, every=0)
