"""The interface that all methods share, on the methods that train whole tensors and on peft's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.edits import Edit
from passband.tuning.baselines.full_tuning.model import FullFineTuning
from passband.tuning.baselines.lora.model import PeftAdapter
from passband.tuning.handle import Handle
from passband.tuning.whole import WholeTensors

METHODS = {
    "full": FullFineTuning(), "vectors": FullFineTuning("vectors"),
    "matrices": FullFineTuning("matrices", ("0", "2")),
    **{k: PeftAdapter(k, rank=2, targets=("0", "2"))
       for k in ("lora", "pissa", "dora", "shira", "vera", "ia3")},
}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
    )


X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def train(model: nn.Module, handle: Handle, steps: int = 5) -> float:
    optimizer = handle.optimizer(lr=1e-2)
    for _ in range(steps):
        loss = handle.objective(F.cross_entropy(model(X), Y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("name", METHODS)
def test_the_edit_on_the_base_is_the_attached_model(name: str) -> None:
    model = net()
    handle = METHODS[name].attach(model)
    train(model, handle)
    adapted = model(X).detach()
    again = net()
    handle.edit().apply(again)
    torch.testing.assert_close(again(X), adapted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted, net()(X), atol=1e-4), "training changed nothing"


@pytest.mark.parametrize("name", METHODS)
def test_off_is_the_pretrained_model_to_the_bit(name: str) -> None:
    model, start = net(), net()(X).detach()
    handle = METHODS[name].attach(model)
    train(model, handle)
    adapted = model(X).detach()
    with handle.off():
        assert torch.equal(model(X), start)
    assert torch.equal(model(X), adapted)
    edit = handle.edit()
    with handle.off():
        inside = handle.edit()
    for key, change in edit.changes.items():
        torch.testing.assert_close(inside.changes[key].delta(), change.delta())


@pytest.mark.parametrize("name", METHODS)
def test_detach_leaves_no_trace(name: str) -> None:
    model, reference = net(), net()
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    handle = METHODS[name].attach(model)
    train(model, handle)
    handle.detach()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert [type(m) for m in model.modules()] == [type(m) for m in reference.modules()]
    for (n, p), (m, q) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert n == m and torch.equal(p, q)


@pytest.mark.parametrize("name", METHODS)
def test_detach_can_merge(name: str) -> None:
    model = net()
    handle = METHODS[name].attach(model)
    train(model, handle)
    adapted = model(X).detach()
    handle.detach(merge=True)
    torch.testing.assert_close(model(X), adapted, rtol=1e-5, atol=1e-5)


def test_a_head_is_trained_and_replaced_whole(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = net()
    handle = FullFineTuning("vectors").attach(model, head=["4"])
    assert {"4.weight", "4.bias"} <= handle.named_parameters().keys()
    train(model, handle)
    adapted, edit = model(X).detach(), handle.edit()
    other = net()
    with torch.no_grad():
        other[4].weight.normal_()  # another fresh head: the base has no say in it
    Edit.load(edit.save(tmp_path / "edit.safetensors")).apply(other)
    torch.testing.assert_close(other(X), adapted, rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError):
        edit.apply(net(seed=1))


def test_one_method_at_a_time_and_switching() -> None:
    model = net()
    first = FullFineTuning("vectors").attach(model)
    with pytest.raises(DataError, match="switched on"):
        FullFineTuning().attach(model)
    train(model, first)
    adapted = model(X).detach()
    first.disable()
    second = FullFineTuning("matrices", ("0",)).attach(model)
    train(model, second)
    second.detach()
    first.enable()
    assert torch.equal(model(X), adapted)


def test_a_model_of_peft_is_refused() -> None:
    model = net()
    PeftAdapter(rank=2, targets=("0",)).attach(model)
    other = copy.deepcopy(model)
    with pytest.raises(DataError, match="peft"):
        FullFineTuning().attach(other)


def test_weight_decay_leaves_vectors_alone() -> None:
    handle = FullFineTuning().attach(net())
    groups = {g["weight_decay"]: g["params"] for g in handle.groups(0.1)}
    assert all(p.ndim > 1 for p in groups[0.1])
    assert all(p.ndim == 1 for p in groups[0.0])
    assert sum(len(g) for g in groups.values()) == len(handle.parameters())


def test_bound_optimisers_drive_the_method() -> None:
    class Counting(WholeTensors):
        clips_penalty = False
        seen = 0

        def penalty(self) -> torch.Tensor:
            return 1e3 * self.trained()["0.bias"].sum()

        def _after_step(self) -> None:
            self.seen += 1

    model = net()
    handle = Counting(model, ["0.bias"])
    optimizer = handle.bind(torch.optim.SGD(handle.parameters(), lr=1.0))
    before = model[0].bias.detach().clone()
    optimizer.zero_grad()
    (0 * handle.objective(F.cross_entropy(model(X), Y))).backward()
    nn.utils.clip_grad_norm_(handle.parameters(), 1.0)
    optimizer.step()
    assert handle.seen == handle.count == 1
    # The penalty's gradient, 1e3 each, came after clipping.
    torch.testing.assert_close(model[0].bias, before - 1e3)


def test_the_length_of_a_run_is_asked_for() -> None:
    handle = FullFineTuning().attach(net())
    with pytest.raises(ConfigError, match="length of the run"):
        _ = handle.fraction
    handle.at(0.25)
    assert handle.fraction == 0.25


@pytest.mark.parametrize("names", [["nothing.weight"], []])
def test_unknown_parameters_are_named(names: list[str]) -> None:
    with pytest.raises(DataError):
        WholeTensors(net(), names)


def test_nan_weights_are_named() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"2\.weight"):
        FullFineTuning().attach(model)


def test_methods_of_entries_take_turns() -> None:
    from passband.tuning.entries import EntryHandle

    model = net()
    first = EntryHandle(model, {"0.weight": torch.arange(6)})
    train(model, first)
    adapted = model(X).detach()
    first.disable()
    second = EntryHandle(model, {"0.weight": torch.arange(3, 12)}, name="second")
    train(model, second)
    assert not torch.equal(model(X), net()(X))
    second.detach()
    assert torch.equal(model(X), net()(X))
    first.enable()
    assert torch.equal(model(X), adapted)
    train(model, first)
    assert not torch.equal(model(X), adapted)
