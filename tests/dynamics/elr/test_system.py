"""The system: trains against wrong labels, says which are wrong, resumes, is saved whole."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import passband
from passband import catalog
from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.labelled.digits import symmetric_noise
from passband.data.labelled.labelled import Labelled
from passband.dynamics.elr.experiments import Setting, learn
from passband.dynamics.elr.model import ELRLoss
from passband.dynamics.elr.plus import ELRPlus
from passband.dynamics.elr.system import ELR
from passband.dynamics.tasks import TASKS
from passband.errors import ConfigError, DataError, PassbandWarning, UnknownNameError

PARTS = symmetric_noise(1000, "smoke")
DATA = Data(train=PARTS.train, valid=PARTS.valid, test=PARTS.test)
LONG = {"hidden": (256, 256), "epochs": 60, "schedule": "cosine", "periods": 10, "final": 0.05}
PLUS = {"plus": True, "network": "conv", "channels": (8, 16), "norm": True, "teacher_ema": 0.9}


@pytest.fixture(scope="module")
def learned() -> ELR:
    system = ELR.from_preset("smoke", **LONG)
    system.fit(DATA.for_fit())
    return system


@pytest.fixture(scope="module")
def learned_plus() -> ELR:
    system = ELR.from_preset("smoke", steps=300, lr=0.05, **PLUS)
    system.fit(DATA.for_fit())
    return system


def test_it_sees_through_labels_that_cross_entropy_learns(learned: ELR) -> None:
    plain = ELR.from_preset("smoke", **LONG, lam=0.0)
    plain.fit(DATA.for_fit())
    task = TASKS["digits-noisy"]
    ours, theirs = task.evaluate(learned, DATA), task.evaluate(plain, DATA)
    assert theirs["memorised"] > 80 and ours["memorised"] < 40
    assert ours["recovered"] > theirs["recovered"] + 40
    assert ours["accuracy"] > theirs["accuracy"] + 8
    assert ours["flag_auroc"] > 0.93


def test_lam_0_is_the_baseline_of_cross_entropy() -> None:
    ours = ELR.from_preset("smoke", lam=0.0)
    ours.fit(DATA.for_fit(), Budget(steps=20))
    theirs = catalog.get("cross-entropy").create("smoke")
    theirs.fit(DATA.for_fit(), Budget(steps=20))
    np.testing.assert_allclose(
        ours.scores(PARTS.test.x.numpy()), theirs.scores(PARTS.test.x.numpy()), atol=1e-6
    )


def test_suspects_are_those_of_the_training_set(learned: ELR) -> None:
    suspects = learned.suspects()
    assert torch.equal(suspects.label, PARTS.train.y[suspects.index])
    assert (suspects.score.diff() <= 0).all()
    np.testing.assert_array_equal(learned.suspicion(PARTS.train), suspects.scores)
    # Other examples have no targets: 1 - p(label) is what can be said of them.
    other = learned.suspicion(PARTS.test)
    p = learned.scores(PARTS.test.x.numpy())
    np.testing.assert_allclose(other, 1 - p[np.arange(300), PARTS.test.y.numpy()], atol=1e-6)
    rows = learned.memory
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 563
    assert max(row["recovered"] for row in rows) > 0.6


def test_the_report_gets_suspects_and_curves(learned: ELR, tmp_path) -> None:
    artifacts = TASKS["digits-noisy"].artifacts(learned, DATA, tmp_path)
    files = {a.file for a in artifacts}
    assert {"suspects-shown.json", "memory.svg", "found.json", "confusion.svg"} <= files
    with (tmp_path / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(learned.suspects())
    assert [int(r["index"]) for r in rows] == learned.suspects().index.tolist()
    targets = np.load(tmp_path / "targets.npy")
    assert targets.shape == (300, 10) and abs(targets.sum(1) - 1).max() < 1e-3
    found = dict(json.loads((tmp_path / "found.json").read_text())["rows"])
    assert found["auroc"] > 0.93


@pytest.mark.parametrize("kind", ["learned", "learned_plus"])
def test_all_of_it_is_saved(kind: str, request, tmp_path) -> None:
    system = request.getfixturevalue(kind)
    again = ELR.load(system.save(tmp_path / "s"))
    for name, array in system.state().items():
        assert torch.equal(torch.as_tensor(array), torch.as_tensor(again.state()[name])), name
    assert again.suspects().table() == system.suspects().table()
    np.testing.assert_array_equal(again.suspicion(PARTS.train), system.suspicion(PARTS.train))
    x = PARTS.test.x[:7]
    assert torch.equal(again.scores(x), system.scores(x))


def test_applying_writes_the_suspects_too(learned: ELR, tmp_path) -> None:
    np.savez(tmp_path / "new.npz", x=PARTS.test.x[:5].numpy())
    (tmp_path / "out").mkdir()
    files = learned.apply_file(tmp_path / "new.npz", tmp_path / "out")
    assert [f.name for f in files] == ["new.csv", "suspects.csv", "suspects.json", "targets.npy"]


def test_a_users_folder_with_images_in_the_wrong_place(tmp_path) -> None:
    """Dark and light images, eight of each in the other's folder; suspects have their names."""
    rng, wrong = np.random.default_rng(0), set()
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(60):
            bright = 60 + 120 * (1 - k if i < 8 else k)
            pixels = np.clip(rng.normal(bright, 20, (5, 7)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / name / f"{i}.png")
            wrong |= {f"{name}/{i}.png"} if i < 8 else set()
    row = passband.train(
        "elr", "digits-noisy", data=tmp_path / "own", preset="smoke", runs=tmp_path / "runs"
    )
    with (tmp_path / "runs" / row.folder / "suspects.csv").open(newline="") as file:
        named = [r["name"] for r in csv.DictReader(file)]
    trained = passband.load(tmp_path / "runs" / row.folder)
    assert set(named) == wrong & set(trained.names)
    assert len(named) >= 8


def test_elr_plus_learns_with_two_networks(learned_plus: ELR) -> None:
    task = TASKS["digits-noisy"]
    found = task.evaluate(learned_plus, DATA)
    assert found["accuracy"] > 60 and found["memorised"] < 15
    method = learned_plus.method
    assert isinstance(method, ELRPlus)
    assert [int(t.updates) for t in method.teachers] == [150, 150]  # epochs of 10 steps in turn
    x = learned_plus.ready(PARTS.test.x[:6])
    first, second = learned_plus.network.networks
    with torch.no_grad():
        expected = ((first(x) + second(x)) / 2).softmax(1)
    torch.testing.assert_close(learned_plus.scores(PARTS.test.x[:6]), expected)


def test_the_first_student_may_answer_with_the_seconds_teacher() -> None:
    system = ELR.from_preset("smoke", **PLUS, ensemble="student-teacher")
    system.fit(DATA.for_fit(), Budget(steps=25))
    teacher = system.method.teachers[1].module
    assert system.network.networks[1] is teacher
    assert not teacher.training and np.isfinite(system.scores(PARTS.test.x.numpy())).all()


def test_epochs_are_of_each_network() -> None:
    for plus, steps in ((False, 30), (True, 60)):
        system = ELR.from_preset("smoke", epochs=3, plus=plus, batch_size=30)
        assert system.fit(DATA.for_fit())["steps"] == steps


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", [
    {"dropout": 0.2}, {"select": "highest valid_accuracy"}, PLUS, {"storage": "topk", "top": 3},
])
def test_a_killed_fit_ends_as_the_whole_one(options, tmp_path, monkeypatch) -> None:
    """Numbers, targets and the curves of memorisation."""
    whole = ELR.from_preset("smoke", **options)
    whole.fit(DATA.for_fit(), Budget(steps=30))
    monkeypatch.setattr("passband.bench.loop.SHORTEST", 0.0)
    cut, update, calls = ELR.from_preset("smoke", **options), ELRLoss.update, []

    def stopping(self, index, p):
        calls.append(1)
        if len(calls) > 17:
            raise Stop
        return update(self, index, p)

    monkeypatch.setattr(ELRLoss, "update", stopping)
    cut.checkpoints = tmp_path
    with pytest.raises(Stop):
        cut.fit(DATA.for_fit(), Budget(steps=30))
    monkeypatch.setattr(ELRLoss, "update", update)
    resumed = ELR.from_preset("smoke", **options)
    resumed.checkpoints, resumed.resume = tmp_path, True
    resumed.fit(DATA.for_fit(), Budget(steps=30))
    assert len(whole.state()) > 6
    for name, array in whole.state().items():
        assert torch.equal(torch.as_tensor(array), torch.as_tensor(resumed.state()[name])), name
    assert resumed.memory == whole.memory


def test_the_best_weights_come_with_their_targets(monkeypatch) -> None:
    """`select` puts back targets of the moment as well."""
    system = ELR.from_preset("smoke", select="lowest valid_loss", validate_every=10, beta=0.9)
    seen = []
    monkeypatch.setattr(system, "validate", lambda module, labelled: (
        seen.append(system.targets()) or {"valid_loss": float(len(seen) != 2)}
    ))
    system.fit(DATA.for_fit(), Budget(steps=40))
    np.testing.assert_array_equal(system.targets(), seen[1])
    assert not np.array_equal(seen[1], seen[3])


def test_no_early_learning_is_said() -> None:
    """Labels that have nothing to do with what the examples are."""
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(60, 3)), rng.integers(2, size=60)
    y = np.where(np.arange(60) < 55, 1 - truth, truth)
    x[:, 0] += 6 * y
    data = Labelled(x, y, ("a", "b"), truth=truth)
    with pytest.warns(PassbandWarning, match="no early learning"):
        ELR.from_preset("smoke", track_every=1, lr=0.1).fit(Data(train=data), Budget(steps=30))


def test_without_truth_nothing_is_counted() -> None:
    blind = replace(PARTS.train, truth=None)
    system = ELR.from_preset("smoke")
    system.fit(Data(train=blind), Budget(steps=20))
    assert system.memory == [] and len(system.suspects().scores) == 300


@pytest.mark.parametrize(("field", "value"), [
    ("lam", -1.0), ("beta", 1.0), ("storage", "disk"), ("mixup", 0.0), ("teacher_ema", 1.0),
    ("ensemble", "teachers"), ("top", 0),
])
def test_wrong_configurations_name_the_field(field: str, value) -> None:
    with pytest.raises(ConfigError, match=field):
        ELR.configure("small", **{field: value})


def test_before_a_fit_there_are_no_suspects() -> None:
    with pytest.raises(DataError, match="nothing was learned"):
        ELR.from_preset("smoke").suspects()


def test_sizes_are_the_papers() -> None:
    sizes = {
        "paper": 21_282_122, "paper-cifar100": 21_328_292, "plus-cifar10": 2 * 11_171_274,
        "plus-cifar100": 2 * 11_217_444, "small": 301_066,
    }
    for preset, count in sizes.items():
        assert ELR.from_preset(preset).parameter_count() == count, preset


def test_runs_of_several_seeds_are_those_of_one() -> None:
    setting = Setting(size="smoke", hidden=(32,), epochs=4, batch_size=50)
    both = learn(setting, [2, 3])
    alone = learn(setting, [3])[0]
    assert abs(both[1].test - alone.test) < 0.01
    torch.testing.assert_close(
        both[1].suspects.scores, alone.suspects.scores, rtol=1e-3, atol=1e-4
    )
    with pytest.raises(UnknownNameError, match="noise"):
        learn(Setting(noise="pink"), [0])
