"""Learning from domains: what is trained, resumed, refused and reported; the bound; the runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import passband
from passband import catalog
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.labelled.coloured import coloured_digits
from passband.dynamics.alignment import alignment_report, transfer_bound
from passband.dynamics.domains import DomainClassifier
from passband.dynamics.hessian_align.experiments import Setting, run_seeds
from passband.dynamics.hessian_align.system import HessianAligned
from passband.dynamics.hessian_align.theory import (
    gradients_agree,
    outputs,
    pair_bound,
    shared_optimum,
    transfer_gap,
)
from passband.errors import ConfigError, DataError, PassbandError, PassbandWarning

PARTS = coloured_digits(0, "smoke")
DATA = Data(train=PARTS.train, valid=PARTS.valid, test=PARTS.test)
METHODS = ("hessian-align", "erm", "irm", "vrex", "coral", "fish", "iga", "fishr")


def test_two_classes_share_an_output() -> None:
    system = DomainClassifier.from_preset("smoke")
    assert system.network.head.out_features == 1
    p = system.scores(PARTS.test.x)
    z = system.network(PARTS.test.x)[:, 0].detach()
    torch.testing.assert_close(p[:, 1], z.sigmoid())
    assert DomainClassifier.from_preset("smoke", sigmoid=False).network.head.out_features == 2
    found = system.validate(system.network, PARTS.test)
    expected = F.binary_cross_entropy_with_logits(z, PARTS.test.y.float())
    assert found["valid_loss"] == pytest.approx(float(expected), rel=1e-5)
    right = ((z > 0).long() == PARTS.test.y).double().mean()
    assert found["valid_accuracy"] == pytest.approx(100 * float(right))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_reports(name: str) -> None:
    system = passband.create(name, preset="smoke", steps=20)
    found = system.fit(DATA.for_fit())
    assert found["steps"] == 20 and found["examples"] == 20 * 300
    metrics = catalog.task("coloured-digits").evaluate(system, DATA)
    assert set(metrics) == {"accuracy", "train_accuracy", "gradient_gap", "hessian_gap"}
    assert metrics["train_accuracy"] > 60


def test_a_large_weight_brings_the_domains_together() -> None:
    gaps = {}
    for weight in (0.0, 1e4):
        system = HessianAligned.from_preset("smoke", penalty_weight=weight, penalty_start=0.0)
        system.fit(DATA.for_fit())
        report = system.alignment(PARTS.train)
        gaps[weight] = report.mean("gradient"), report.mean("hessian_frobenius")
    assert gaps[1e4][0] < 0.8 * gaps[0.0][0] and gaps[1e4][1] < gaps[0.0][1]


def test_the_loss_is_the_one_written_down() -> None:
    """One step of plain gradient descent, by hand."""
    options = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "l2": 0.01, "steps": 1,
               "anneal": 0, "penalty_weight": 5.0, "rescale": True}
    system = HessianAligned.from_preset("smoke", seed=3, **options)
    fresh = HessianAligned.from_preset("smoke", seed=3, **options)
    system.fit(DATA.for_fit())
    network = fresh.network
    risks, penalty = [], fresh.penalty(2, network)
    parts = PARTS.train.by_group()
    for part in parts:
        logits = network(part.x)[:, 0]
        risks.append(F.binary_cross_entropy_with_logits(logits, part.y.float()))
    norm = sum(p.square().sum() for p in network.parameters())
    features = [network.features(part.x) for part in parts]
    term = penalty(features, network.head, [part.y for part in parts])
    loss = (sum(risks) / 2 + 0.01 * norm + 5.0 * term) / 5.0
    grads = torch.autograd.grad(loss, list(network.parameters()))
    for new, old, g in zip(system.network.parameters(), network.parameters(), grads, strict=True):
        torch.testing.assert_close(new, old - 0.1 * g, atol=1e-6, rtol=1e-5)


class Stop(Exception):
    pass


@pytest.mark.parametrize(("name", "options"), [
    ("hessian-align", {"reset_optimizer": True, "anneal": 10}),
    ("hessian-align", {"estimator": "hutchinson", "probes": 5}),
    ("fishr", {"full_batch": False, "batch_size": 16, "dropout": 0.2}),
])
def test_a_killed_fit_ends_as_the_whole_one(
    name: str, options, tmp_path: Path, monkeypatch
) -> None:
    def system():
        return passband.create(name, preset="smoke", steps=20, **options)

    whole = system()
    whole.fit(DATA.for_fit(), Budget(steps=20))
    from passband.bench import loop

    monkeypatch.setattr(loop, "SHORTEST", 0.0)
    killed = system()
    killed.checkpoints = tmp_path
    original, steps = loop._Loop._events, []

    def events(self, *args):
        original(self, *args)
        steps.append(1)
        if len(steps) == 13:
            self.save()
            raise Stop

    monkeypatch.setattr(loop._Loop, "_events", events)
    with pytest.raises(Stop):
        killed.fit(DATA.for_fit(), Budget(steps=20))
    resumed = system()
    resumed.checkpoints, resumed.resume = tmp_path, True
    resumed.fit(DATA.for_fit(), Budget(steps=20))
    assert len(steps) < 26
    for n, tensor in whole.state().items():
        assert torch.equal(resumed.state()[n], tensor), n


def test_small_batches_have_all_domains_and_an_epoch_is_one() -> None:
    system = HessianAligned.from_preset("smoke", full_batch=False, batch_size=25, epochs=2)
    found = system.fit(DATA.for_fit())
    assert found["steps"] == math.ceil(2 * 300 / 50) and found["examples"] == 12 * 50


def test_bad_input_is_answered_before_any_work() -> None:
    alone = replace(PARTS.train, groups=None, group_names=())
    one = PARTS.train.subset(PARTS.train.groups == 0)
    for train in (alone, one):
        with pytest.raises(DataError, match="needs >= 2 domains"):
            HessianAligned.from_preset("smoke").fit(Data(train=train))
        assert passband.create("erm", preset="smoke", steps=2).fit(Data(train=train))["steps"] == 2
    chosen = (PARTS.train.groups == 0) | (PARTS.train.y == 1)
    with pytest.warns(PassbandWarning, match="one class, '0 to 4' only"):
        HessianAligned.from_preset("smoke", steps=2).fit(Data(train=PARTS.train.subset(chosen)))
    with pytest.raises(PassbandError, match="penalty_weight or lr"):
        HessianAligned.from_preset(
            "smoke", optimizer="sgd", lr=10.0, penalty_weight=1e8, anneal=0, rescale=False
        ).fit(DATA.for_fit())
    with pytest.raises(ConfigError, match="estimator"):
        HessianAligned.from_preset("smoke", estimator="exact-ish")
    with pytest.raises(ConfigError, match="without validation"):
        HessianAligned.from_preset("smoke", select="highest valid_accuracy").fit(DATA.for_fit())


def test_pictures_and_files(tmp_path: Path) -> None:
    system = HessianAligned.from_preset("smoke", steps=3)
    system.fit(DATA.for_fit())
    artifacts = catalog.task("coloured-digits").artifacts(system, DATA, tmp_path)
    assert [a.file for a in artifacts] == ["confusion.svg", "alignment.svg", "alignment.json"]
    assert (tmp_path / "alignment.svg").read_text().count("<svg") == 1
    np.savez(tmp_path / "new.npz", x=PARTS.test.x[:5].numpy())
    (file,) = system.apply_file(tmp_path / "new.npz", tmp_path)
    assert len(file.read_text().splitlines()) == 6


# ---- report and bound --------------------------------------------------------------------------


def test_the_report_is_made_of_gradients_and_hessians_of_torch() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 3)
    domains = {n: (torch.randn(k, 4), torch.randint(3, (k,))) for n, k in (("a", 9), ("b", 14))}
    report = alignment_report(head, domains)
    wide = torch.nn.Linear(4, 3).double()
    wide.load_state_dict({n: p.double() for n, p in head.state_dict().items()})
    gradients, hessians = [], []
    for h, y in domains.values():
        def loss(w, b, h=h, y=y):
            return F.cross_entropy(h.double() @ w.T + b, y)

        given = (wide.weight.detach(), wide.bias.detach())
        found = torch.func.grad(loss, argnums=(0, 1))(*given)
        gradients.append(torch.cat([g.reshape(-1) for g in found]))
        blocks = torch.func.hessian(loss, argnums=(0, 1))(*given)
        hessians.append(torch.cat([
            torch.cat([blocks[i][j].reshape(given[i].numel(), -1) for j in range(2)], 1)
            for i in range(2)
        ]))
    g, gap = gradients[0] - gradients[1], hessians[0] - hessians[1]
    for name, expected in (
        ("gradient", g.norm()), ("gradient_weight", g[:12].norm()),
        ("gradient_bias", g[12:].norm()), ("hessian_frobenius", gap.norm()),
        ("hessian_spectral", torch.linalg.matrix_norm(gap, 2)),
        ("hessian_weight", gap[:12, :12].norm()), ("hessian_bias", gap[12:, 12:].norm()),
    ):
        matrix = getattr(report, name)
        assert float(matrix[0, 1]) == pytest.approx(float(expected), rel=1e-7), name
        assert torch.equal(matrix, matrix.T) and float(matrix[0, 0]) == 0
        assert report.mean(name) == pytest.approx(float(expected), rel=1e-7)
    bound = transfer_bound(hessians[0], hessians[1], 0.1)
    assert float(report.bound(0.1)[0, 1]) == pytest.approx(bound, rel=1e-7)
    assert report.table()["rows"][0][:2] == ["a", "b"]
    assert report.to_json()["names"] == ["a", "b"]
    with pytest.raises(DataError, match="needs >= 2 domains"):
        alignment_report(head, [domains["a"]])
    with pytest.raises(DataError, match=r"expected: an nn\.Linear"):
        alignment_report(torch.nn.Sequential(head), domains)  # type: ignore[arg-type]


def test_the_bound_holds_and_is_reached() -> None:
    """Ten pairs: the sup by ascent against the bound, and against a thousand random directions."""
    for seed in range(10):
        theta, domains = shared_optimum(2, n=30, d=3, classes=3, seed=seed)
        assert gradients_agree(theta, domains) < 1e-12
        sup = transfer_gap(theta, domains, delta=0.01)
        assert 0.95 < sup / pair_bound(theta, domains, delta=0.01) < 1.05
        way = torch.randn(1000, len(theta), dtype=torch.float64)
        way = 0.01 * way / way.norm(dim=1, keepdim=True)
        excess = []
        for h, y in domains:
            base = outputs(theta, h, 3).log_softmax(1)
            moved = torch.stack([outputs(theta + w, h, 3).log_softmax(1) for w in way])
            excess.append(((base - moved) * y).sum(-1).mean(-1))
        assert float((excess[1] - excess[0]).abs().max()) <= sup * (1 + 1e-9)


# ---- the runs of the claims ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["erm", "hgp", "diag", "irm", "vrex", "fishr"])
def test_seeds_in_one_stack_are_seeds_one_by_one(method: str) -> None:
    setting = Setting(method, steps=12, anneal=6, size="smoke", hidden=(16,), weight=10.0)
    together = run_seeds(setting, (0, 1), 6)
    for i in (0, 1):
        alone = run_seeds(setting, (i,), 6)
        for name in ("train", "test", "gradient", "hessian"):
            found = together.curve(name)[:, i]
            np.testing.assert_allclose(found, alone.curve(name)[:, 0], rtol=2e-3, atol=1e-5)


def test_penalties_shrink_the_gap_of_the_smoke_run() -> None:
    options = {"steps": 100, "anneal": 30, "size": "smoke", "hidden": (64,)}
    erm, hgp = (run_seeds(Setting(method, **options), (0,)) for method in ("erm", "hgp"))
    gaps = [float((r.last("train") - r.last("test"))[0]) for r in (erm, hgp)]
    assert gaps[1] < gaps[0]
    imbalanced = run_seeds(Setting("vrex", "imbalanced", **options), (0, 1))
    assert np.isfinite(imbalanced.last("hessian")).all()
