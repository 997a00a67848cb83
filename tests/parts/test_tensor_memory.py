"""Bytes counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passband.parts.tensor_memory import PeakTensors

B, N, M = 8, 32, 16  # batch, in, out
F = 4  # bytes of a float32


def test_linear_forward_keeps_its_output_alone() -> None:
    layer, x = nn.Linear(N, M), torch.randn(B, N)
    with PeakTensors() as memory:
        y = layer(x)
    assert memory.peak == memory.alive == B * M * F
    del y
    assert memory.alive == 0 and memory.peak == B * M * F


def test_linear_forward_and_backward() -> None:
    """y, loss, the loss's gradient 1, and gradients of W and b; what is left is W.grad, b.grad."""
    layer, x = nn.Linear(N, M), torch.randn(B, N)
    with PeakTensors() as memory:
        y = layer(x)
        loss = y.sum()
        loss.backward()
    grads = (M * N + M) * F
    assert memory.peak == B * M * F + 2 * F + grads  # the gradient of y is a view of the 1
    del y, loss
    assert memory.alive == grads
    layer.zero_grad(set_to_none=True)
    assert memory.alive == 0


def test_activations_that_backward_needs_stay_until_it_has_run() -> None:
    """x -> exp -> exp -> sum: each exp saves its result; backward frees from the end on."""
    x = torch.randn(B, N, requires_grad=True)
    size = B * N * F
    with PeakTensors() as memory:
        loss = x.exp().exp().sum()
        held = memory.alive
        loss.backward()
        peak = memory.peak
    assert held == 2 * size + F
    # At its peak: both results, the loss, its gradient 1, and the gradient of the first exp.
    # (Of that gradient's own exp: the second result has been freed by then.)
    assert peak == 3 * size + 2 * F
    assert memory.alive == size + F  # x.grad and the loss


def test_freed_intermediates_count_at_the_peak_and_no_longer() -> None:
    x = torch.zeros(100)
    with PeakTensors() as memory:
        for _ in range(5):
            x = x + 1  # the new one while the old one lives; the first old one was there before
    assert memory.peak == 2 * 100 * F and memory.alive == 100 * F
    del x
    assert memory.alive == 0


def test_views_and_changes_in_place_are_not_new() -> None:
    old = torch.randn(10, 10)
    with PeakTensors() as memory:
        view = old.t()[2:, :3]
        old.add_(1).mul_(2)
        view.zero_()
        assert memory.peak == 0
        new = torch.ones(10, 10)
        parts = [new[i] for i in range(10)]
        new.view(100).add_(1)
    assert memory.peak == memory.alive == 100 * F
    del new
    assert memory.alive == 100 * F  # the views hold it
    del parts
    assert memory.alive == 0
    assert view.sum() == 0


def test_what_lived_before_counts_neither_way() -> None:
    old = torch.ones(1000)
    with PeakTensors() as memory:
        del old
        new = torch.ones(10)
    assert (memory.peak, memory.alive) == (10 * F, 10 * F)
    assert new.sum() == 10


def test_several_results_and_dtypes() -> None:
    x = torch.randn(5, 7)
    with PeakTensors() as memory:
        values, indices = x.topk(3)
        low = x.to(torch.bfloat16)
    assert memory.alive == 15 * 4 + 15 * 8 + 35 * 2
    assert len(values) == len(indices) == len(low)


def test_numbers_from_python_and_storages_that_grow() -> None:
    with PeakTensors() as memory:
        a = torch.tensor([1.0, 2.0, 3.0])
        assert memory.alive == 3 * F
        out = torch.empty(0)
        torch.add(a, a, out=out)
        assert memory.alive == 2 * 3 * F
        a.resize_(10)
    assert memory.alive == memory.peak == (10 + 3) * F


def test_sparse_tensors_are_their_parts() -> None:
    with PeakTensors() as memory:
        sparse = torch.eye(3)[[0, 2]].to_sparse()
    assert memory.alive == 2 * 2 * 8 + 2 * F  # indices and values
    del sparse
    assert memory.alive == 0


def test_nothing_is_allocated_on_meta_but_all_is_counted() -> None:
    with torch.device("meta"):
        layer = nn.Linear(10_000, 10_000, bias=False)
        x = torch.empty(4, 10_000)
    with PeakTensors() as memory:
        layer(x).sum().backward()
    assert memory.alive == 10_000**2 * F


def test_nested_blocks_count_their_own() -> None:
    with PeakTensors() as outer:
        a = torch.ones(10)
        with PeakTensors() as inner:
            b = torch.ones(20)
        c = a + 1
    assert inner.alive == inner.peak == 20 * F
    assert outer.alive == outer.peak == 40 * F
    assert b.sum() + c.sum() == 40


def test_checkpointing_saves_what_it_should() -> None:
    """Four layers of exp in a chain: recomputed from the start, only one chain lives at a time."""
    from torch.utils.checkpoint import checkpoint

    def four(x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = (0.1 * x).exp()
        return x

    x = torch.randn(1000, requires_grad=True)
    with PeakTensors() as plain:
        y = four(four(x))
        held = plain.alive
        y.sum().backward()
    x.grad = None
    with PeakTensors() as saved:
        y = checkpoint(four, checkpoint(four, x, use_reentrant=False), use_reentrant=False)
        held_saved = saved.alive
        y.sum().backward()
    assert held == 8 * 1000 * F and held_saved == 2 * 1000 * F
    assert saved.peak < plain.peak


def test_the_same_at_every_run() -> None:
    def step() -> tuple[int, int]:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        optimizer = torch.optim.AdamW(layer.parameters())
        with PeakTensors() as memory:
            layer(torch.randn(2, 10, 32)).square().mean().backward()
            optimizer.step()
        return memory.peak, memory.alive

    first = step()
    junk = [torch.randn(100) for _ in range(50)]
    assert step() == first == step() and first[0] > first[1] > 0 and junk


def test_errors_pass_and_leave_the_count_right() -> None:
    memory = PeakTensors()
    with pytest.raises(RuntimeError), memory:
        torch.ones(10) @ torch.ones(11)
    assert memory.alive == 0 and memory.peak == 21 * F
    before = memory.peak
    kept = torch.ones(100)
    assert memory.peak == before and kept.sum() == 100
