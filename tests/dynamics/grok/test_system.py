"""The system: learns tables, completes users' files, says what is wrong."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from passband import catalog
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.modular import all_pairs, modular_dataset
from passband.dynamics.grok.system import Grok
from passband.dynamics.modular_tasks import TASKS
from passband.errors import ConfigError, DataError, PassbandError


@pytest.fixture(scope="module")
def trained():
    task = TASKS["modular-addition"]
    data = task.data(seed=0, size="smoke")
    system = Grok.from_preset("smoke", seed=0)
    spent = system.fit(data.for_fit())
    return system, data, spent


def test_it_finds_the_rule_in_spite_of_wrong_labels(trained):
    system, data, spent = trained
    found = TASKS["modular-addition"].evaluate(system, data)
    assert found["accuracy"] >= 95
    assert found["memorised"] < 40 < found["recovered"]
    assert found["ipr"] > 0.4
    assert spent["steps"] == 300
    table = system.complete()
    right = table == (np.arange(31)[:, None] + np.arange(31)) % 31
    assert right.mean() > 0.95


def test_the_report_gets_its_pictures(trained, tmp_path):
    system, data, _ = trained
    artifacts = TASKS["modular-addition"].artifacts(system, data, tmp_path)
    assert {a.file for a in artifacts} == {"phase.svg", "ipr.svg", "pruning.svg", "neurons.json"}
    assert all((tmp_path / a.file).stat().st_size > 200 for a in artifacts)
    assert "inversion" in artifacts[0].caption
    assert json.loads((tmp_path / "neurons.json").read_text())["columns"][:2] == ["neuron", "ipr"]


def test_a_user_s_table_with_wrong_and_missing_entries(tmp_path):
    """m - n modulo 23; what was made wrong has to be among the suspects."""
    rng = np.random.default_rng(0)
    truth = (np.arange(23)[:, None] - np.arange(23)) % 23
    table = truth.copy()
    known = rng.random(truth.shape) < 0.85
    wrong = known & (rng.random(truth.shape) < 0.08)
    table[wrong] = (table[wrong] + rng.integers(1, 23, wrong.sum())) % 23
    lines = [
        ",".join(str(v) if k else "" for v, k in zip(row, mask, strict=True))
        for row, mask in zip(table, known, strict=True)
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    system = Grok.from_preset("smoke", steps=300)
    files = system.apply_file(tmp_path / "table.csv", tmp_path / "out")
    assert {f.name for f in files} == {
        "completed.csv", "suspects.csv", "neurons.csv", "table.png", "neurons.png", "report.json",
    }
    completed = np.loadtxt(tmp_path / "out/completed.csv", delimiter=",", dtype=int)
    assert (completed == truth)[~known].mean() > 0.9
    with (tmp_path / "out/suspects.csv").open() as file:
        suspects = list(csv.DictReader(file))
    named = {(int(s["m"]), int(s["n"])) for s in suspects}
    really = set(zip(*map(np.ndarray.tolist, np.nonzero(wrong)), strict=True))
    assert len(named & really) > 0.7 * len(really)
    assert len(named & really) > 0.5 * len(named)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["suspects"] == len(suspects)
    # Held-out entries are as wrong as the others.
    assert 0.6 < report["accuracy_held_out"] <= 1.0
    margins = [float(s["margin"]) for s in suspects]
    assert margins == sorted(margins, reverse=True)


def test_a_trained_system_takes_tables_of_its_size_only(trained, tmp_path):
    system, _, _ = trained
    weights = {n: w.clone() for n, w in system.network.state_dict().items()}
    table = np.full((31, 31), -1)
    table[2, 3] = 5
    np.save(tmp_path / "own.npy", table)
    system.apply_file(tmp_path / "own.npy", tmp_path / "out")
    assert all(torch.equal(w, weights[n]) for n, w in system.network.state_dict().items())
    np.save(tmp_path / "other.npy", np.arange(25).reshape(5, 5) % 5)
    with pytest.raises(DataError, match="5 residues"):
        system.apply_file(tmp_path / "other.npy", tmp_path / "out")


def test_products_are_seen_as_products(tmp_path):
    from passband.dynamics.grok.files import best_order
    from passband.dynamics.grok.model import analytic_weights

    assert best_order(analytic_weights(23, 256))[0] == "added"
    assert best_order(analytic_weights(23, 256, op="multiply"))[0] == "multiplied"


def test_classes_may_be_other_than_residues():
    data = modular_dataset(11, lambda m, n, p: (m + n) % 2, alpha=0.8)
    system = Grok.from_preset("smoke", steps=5)
    system.fit(Data(train=data.known))
    assert system.scores(all_pairs(11)).shape == (121, 2)


def test_small_batches_normalisation_dropout_and_the_encoder_train():
    data = modular_dataset(11, alpha=0.8)
    for change in (
        {"norm": "bn", "batch_size": 16}, {"norm": "ln"}, {"dropout": 0.3}, {"act": "relu"},
        {"network": "encoder", "width": 16, "loss": "cross-entropy", "weight_decay": 0.5},
    ):
        system = Grok.from_preset("smoke", neurons=32, **change)
        spent = system.fit(Data(train=data.known), Budget(steps=25))
        assert np.isfinite(spent["loss"]), change
        assert np.isfinite(system.scores([[1, 2]])).all()
        assert not system.network.training


def test_overflow_is_answered_with_what_helps():
    data = modular_dataset(11, alpha=0.8)
    with pytest.raises(PassbandError, match="weight_decay"):
        Grok.from_preset("smoke", lr=1e9, weight_decay=0.0).fit(Data(train=data.known))


@pytest.mark.parametrize(("change", "said"), [
    ({"weight_decay": 200.0}, "weight_decay x lr"), ({"width": 130}, "width"),
    ({"dropout": 1.0}, "dropout"), ({"act": "cube"}, "act"),
])
def test_wrong_configurations(change, said):
    with pytest.raises(ConfigError, match=said):
        Grok.configure("small", **change)


@pytest.mark.parametrize("pairs", [
    [[0, 31]], [[-1, 0]], [0, 1], [[0.5, 1.0]], np.zeros((0, 2), int),
])
def test_wrong_pairs(trained, pairs):
    with pytest.raises(DataError, match="expected"):
        trained[0].complete(pairs)


def test_wrong_data():
    with pytest.raises(DataError, match="Known"):
        Grok.from_preset("smoke").fit(Data(train=np.zeros((3, 3))))


def test_tasks_hide_the_test_and_read_tables(tmp_path):
    task = TASKS["modular-multiplication"]
    data = task.data(seed=1, size="smoke")
    assert data.for_fit().test is None
    assert not hasattr(data.train, "truth")
    np.save(tmp_path / "t.npy", np.arange(49).reshape(7, 7) % 7)
    own = task.read(tmp_path / "t.npy")
    assert (len(own.train), len(own.test.test)) == (44, 5)
    full = TASKS["modular-addition"].data(seed=0, size="full")
    assert (len(full.train), len(full.test.corrupt)) == (4704, 1646)


def test_presets_have_the_paper_s_sizes():
    card = catalog.get("grok")
    assert card.create("paper").parameter_count() == 145_500
    # Tokens and places are embeddings: 99 x 128.
    assert card.create("transformer").parameter_count() == 209_024 + 99 * 128
