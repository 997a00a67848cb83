"""ELR+ against a step written out by hand; teachers; the trainer for data of one's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.dynamics.elr.ema import WeightEMA
from passband.dynamics.elr.model import ELRLoss
from passband.dynamics.elr.plus import ELRPlus, Pair
from passband.dynamics.elr.trainer import ELRPlusTrainer
from passband.dynamics.mixup import mixed
from passband.errors import CheckpointError, ConfigError, DataError


def students() -> Pair:
    return Pair(nn.Linear(5, 4), nn.Linear(5, 4))


@pytest.mark.parametrize("modulate", [False, True])
def test_a_step_by_hand(modulate: bool) -> None:
    torch.manual_seed(0)
    pair = students()
    plus = ELRPlus(pair, 12, 4, lam=3.0, beta=0.7, modulate=modulate, coef_ramp=10)
    x, y = torch.randn(6, 5), torch.randint(4, (6,))
    index = torch.tensor([7, 2, 11, 0, 5, 3])
    found = plus.loss(pair, 0, x, y, index, torch.Generator().manual_seed(1))

    _, pi, share = mixed(x, 1.0, torch.Generator().manual_seed(1), larger=True)
    assert share >= 0.5 and sorted(pi.tolist()) == list(range(6))
    u = pair[1](x).softmax(1)  # the other's teacher begins as the other; unmixed inputs
    targets = 0.3 * u
    q = share * targets + (1 - share) * targets[pi]
    hot = F.one_hot(y, 4).float()
    soft = share * hot + (1 - share) * hot[pi]
    if modulate:
        soft = soft * q / (soft * q).sum(1, keepdim=True)
    z = pair[0](share * x + (1 - share) * x[pi])
    p = z.softmax(1).clamp(1e-4, 1 - 1e-4)
    term = (1 - (q * p).sum(1)).log().mean()
    expected = -(soft * z.log_softmax(1)).sum(1).mean() + math.exp(-5) * 3.0 * term
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(plus.losses[0].store.targets[index], targets)
    assert not plus.losses[1].store.targets.any()
    found.backward()
    assert pair[0].weight.grad is not None and pair[1].weight.grad is None


def test_memory_of_teachers() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    teacher = WeightEMA(model, 0.997, 40000)
    assert teacher.decay(0) == pytest.approx(0.00672, abs=1e-5)
    assert teacher.decay(40000) == 0.997
    assert [WeightEMA(model, 0.9, 0).decay(t) for t in (0, 1, 3, 50)] == [0.0, 0.5, 0.75, 0.9]
    expected, quick = model.weight.detach().clone(), WeightEMA(model, 0.9, 4)
    for step in range(6):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        quick.update(model)
        decay = 0.9 * math.exp(-5 * (1 - min(step + 1, 4) / 4) ** 2)
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(quick.module.weight, expected)
    assert int(quick.updates) == 6


@pytest.mark.parametrize("buffers", [False, True])
def test_statistics_of_teachers(buffers: bool) -> None:
    """Their own, from their own passes in training mode; or averaged ones, in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    teacher = WeightEMA(model, 0.5, 0, buffers=buffers)
    x = 5 + torch.randn(64, 3)
    model(x)
    before = teacher.module[1].running_mean.clone()
    teacher.update(model)
    assert torch.equal(teacher.module[1].running_mean, before) is not buffers
    out = teacher(x)
    own = F.batch_norm(model[0](x), None, None, training=True)
    assert torch.allclose(out, own, atol=1e-3) is not buffers
    assert teacher.module.training is not buffers


@pytest.mark.parametrize(("make", "word"), [
    (lambda m: ELRPlus(students(), 3, 4, mixup=0.0), "mixup"),
    (lambda m: ELRPlus(students(), 3, 4, coef_ramp=-1), "coef_ramp"),
    (lambda m: WeightEMA(m, 1.0), "alpha"), (lambda m: WeightEMA(m, 0.9, -1), "ramp"),
])
def test_wrong_settings(make, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make(nn.Linear(2, 2))


def clusters(n: int = 240) -> tuple[torch.utils.data.TensorDataset, torch.Tensor]:
    """Three clusters in five dimensions, a quarter of the labels drawn anew."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % 3
    x = 2.5 * torch.eye(5)[truth] + torch.randn(n, 5, generator=generator)
    labels = truth.clone()
    labels[: n // 4] = torch.randint(3, (n // 4,), generator=generator)
    return torch.utils.data.TensorDataset(x, labels), truth


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def trainer(**options) -> ELRPlusTrainer:
    data, _ = clusters()
    return ELRPlusTrainer(
        network, data, data, epochs=6, batch_size=32, ema=0.9, ema_ramp=0.3, **options
    )


def test_the_trainer_finds_wrong_labels() -> None:
    data, truth = clusters()
    ours = trainer()
    start = copy.deepcopy(ours.students.state_dict())
    outcome = ours.fit()
    assert outcome.steps == 2 * 6 * 8 and "valid_accuracy" in outcome.values
    for which in range(2):
        assert int(ours.plus.teachers[which].updates) == 48
        name = f"networks.{which}.0.weight"
        assert not torch.equal(ours.students.state_dict()[name], start[name])
    logits = ours.predict(data.tensors[0])
    assert float((logits.argmax(1) == truth).double().mean()) > 0.85
    with torch.no_grad():
        both = [ours.students[i](data.tensors[0]) for i in range(2)]
    torch.testing.assert_close(logits, (both[0] + both[1]) / 2)
    judged = ours.suspects().judged(data.tensors[1] != truth)
    assert judged["auroc"] > 0.9
    assert torch.equal(ours.suspects(data.tensors[1]).index, ours.suspects().index)


class Stop(Exception):
    pass


def test_a_killed_trainer_ends_as_the_whole_one(tmp_path, monkeypatch) -> None:
    """Killed while the second network has its turn: teachers and both targets come back."""
    monkeypatch.setattr("passband.bench.loop.SHORTEST", 0.0)
    whole = trainer()
    whole.fit(Budget(steps=30))
    cut, follow, calls = trainer(), ELRPlus.follow, []

    def stopping(self, pair, which):
        calls.append(which)
        if len(calls) > 13:
            raise Stop
        follow(self, pair, which)

    monkeypatch.setattr(ELRPlus, "follow", stopping)
    with pytest.raises(Stop):
        cut.fit(Budget(steps=30), checkpoints=tmp_path / "run")
    assert calls[-1] == 1
    monkeypatch.setattr(ELRPlus, "follow", follow)
    resumed = trainer()
    resumed.fit(Budget(steps=30), checkpoints=tmp_path / "run", resume=True)
    for a, b in ((whole.students, resumed.students), (whole.plus, resumed.plus)):
        for name, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[name]), name


def test_a_state_of_elr_is_none_of_elr_plus() -> None:
    with pytest.raises(CheckpointError, match="running targets"):
        ELRPlus(students(), 5, 4).load_state_dict(ELRLoss(5, 4).state_dict(), strict=False)


def test_what_the_trainer_refuses() -> None:
    empty = torch.utils.data.TensorDataset(torch.zeros(0, 5), torch.zeros(0).long())
    with pytest.raises(DataError, match="empty"):
        ELRPlusTrainer(network, empty)
    with pytest.raises(DataError, match="logits"):
        ELRPlusTrainer(lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), clusters()[0])
