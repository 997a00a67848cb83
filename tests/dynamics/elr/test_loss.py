"""The loss against its formula, its targets against a plain table, and what it refuses."""

from __future__ import annotations

import multiprocessing
import socket
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.dynamics.elr.model import ELRLoss, elr_loss
from passband.dynamics.elr.targets import STORAGES, make_targets
from passband.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PassbandWarning,
    UnknownNameError,
)
from passband.parts.indexed import Indexed
from passband.parts.seeds import Each, train_seeds

LOGITS = torch.tensor([[2.0, 0, -1], [0.5, 0.5, 0.5], [-1, 3, 0.2], [0, -2, 1]])
LABELS, INDEX = torch.tensor([0, 1, 2, 0]), torch.arange(4)


def test_the_fixture_of_two_calls() -> None:
    elr = ELRLoss(4, 3, lam=3.0, beta=0.7)
    entropy = F.cross_entropy(LOGITS, LABELS)
    assert float(entropy) == pytest.approx(1.37340543, abs=1e-6)
    first = elr(LOGITS, LABELS, INDEX)
    torch.testing.assert_close(elr.store.targets[1], torch.full((3,), 0.1))
    second = elr(LOGITS, LABELS, INDEX)
    for loss, total, term in (
        (first, 0.74584900, -0.20918548), (second, 0.19632443, -0.39236033)
    ):
        assert float(loss) == pytest.approx(total, abs=1e-6)
        assert float(loss - entropy) / 3 == pytest.approx(term, abs=1e-6)
    torch.testing.assert_close(elr.store.targets[1], torch.full((3,), 0.17))


def test_the_gradient_is_the_papers() -> None:
    torch.manual_seed(0)
    z = torch.randn(7, 5, dtype=torch.float64).requires_grad_()
    y, targets = torch.randint(5, (7,)), torch.rand(7, 5, dtype=torch.float64) / 6
    (found,) = torch.autograd.grad(elr_loss(z, y, targets, 3.0), z)
    p = z.detach().softmax(1)
    hot = F.one_hot(y, 5).double()
    # sum_k (T_k - T_c) p_k, one class at a time
    inner = torch.stack([((targets - targets[:, [c]]) * p).sum(1) for c in range(5)], 1)
    g = p / (1 - (p * targets).sum(1, keepdim=True)) * inner
    torch.testing.assert_close(found, (p - hot + 3.0 * g) / 7)


def test_a_wrong_label_is_cancelled_and_a_right_one_kept_alive() -> None:
    """Targets sure of class 0, the network too: the label 1 pulls less, the label 0 still pulls."""
    z = torch.tensor([[4.0, 0, 0]], requires_grad=True)
    targets = torch.tensor([[0.97, 0.01, 0.01]])
    for label, sign in ((1, -1.0), (0, 1.0)):
        y = torch.tensor([label])
        (plain,) = torch.autograd.grad(elr_loss(z, y, targets, 0.0), z)
        (held,) = torch.autograd.grad(elr_loss(z, y, targets, 3.0), z)
        assert held[0, 0] < plain[0, 0]  # towards class 0 in both cases
        assert sign * float(held[0].norm() - plain[0].norm()) > 0


def test_no_gradient_reaches_the_targets_and_the_clamp_holds() -> None:
    elr = ELRLoss(2, 3)
    z = torch.tensor([[90.0, 0, -90], [0, 0, 0]], requires_grad=True)
    for _ in range(50):
        loss = elr(z, torch.tensor([0, 1]), torch.tensor([0, 1]))
    loss.backward()
    assert not elr.store.targets.requires_grad
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()
    torch.testing.assert_close(elr.store.targets.sum(1), torch.full((2,), 1 - 0.7**50))


def test_rows_grow_as_they_are_visited_whatever_samples() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(9, 2), torch.randint(3, (9,)))
    some = torch.utils.data.Subset(Indexed(data), [8, 1, 5])
    elr, visits = ELRLoss(9, 3, beta=0.9), torch.zeros(9)
    for _ in range(3):
        # The last batch is a partial one.
        for x, y, index, _ in torch.utils.data.DataLoader(some, batch_size=2, shuffle=True):
            elr(torch.randn(len(x), 3), y, index)
            visits[index] += 1
    assert visits.tolist() == [0, 3, 0, 0, 0, 3, 0, 0, 3]
    torch.testing.assert_close(elr.store.dense().sum(1), 1 - 0.9**visits)


def test_evaluation_leaves_the_targets() -> None:
    elr = ELRLoss(4, 3)
    elr(LOGITS, LABELS, INDEX)
    before = elr.store.dense()
    elr.eval()
    elr(-LOGITS, LABELS, INDEX)
    assert torch.equal(elr.store.dense(), before)


def test_soft_labels_are_soft_cross_entropy_and_lam_0_is_the_plain_one() -> None:
    hot = F.one_hot(LABELS, 3).float()
    soft = 0.9 * hot + 0.1 / 3
    plain = -(soft * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ELRLoss(4, 3, lam=0.0)(LOGITS, soft, INDEX), plain)
    torch.testing.assert_close(
        ELRLoss(4, 3)(LOGITS, hot, INDEX), ELRLoss(4, 3)(LOGITS, LABELS, INDEX)
    )
    assert ELRLoss(4, 3)(LOGITS.half(), LABELS, INDEX).dtype == torch.float32


@pytest.mark.parametrize(("storage", "k", "tolerance"), [
    ("float32", 8, 1e-6), ("float16", 8, 1e-3), ("topk", 20, 1e-3), ("topk", 3, 0.02),
])
def test_every_storage_keeps_a_moving_average(storage: str, k: int, tolerance: float) -> None:
    """Against a table of float64; of peaked rows three classes are enough."""
    torch.manual_seed(0)
    peak = 8 * F.one_hot(torch.arange(30) % 20, 20).float()
    elr, table = ELRLoss(30, 20, storage=storage, k=k), torch.zeros(30, 20, dtype=torch.float64)
    for _ in range(12):
        index = torch.randperm(30)[:11]
        z = peak[index] + torch.randn(11, 20)
        elr(z, torch.zeros(11).long(), index)
        p = z.double().softmax(1).clamp(1e-4, 1 - 1e-4)
        table[index] = 0.7 * table[index] + 0.3 * p / p.sum(1, keepdim=True)
    assert float((elr.store.dense() - table).abs().max()) < tolerance
    again = ELRLoss(30, 20, storage=storage, k=k)
    again.load_state_dict(elr.state_dict())
    assert torch.equal(again.store.dense(), elr.store.dense())


def test_sizes_of_storages() -> None:
    def size(storage: str, classes: int) -> int:
        return sum(
            b.numel() * b.element_size() for b in make_targets(1000, classes, storage).buffers()
        )

    assert [size(s, 1000) for s in STORAGES] == [4_000_000, 2_000_000, 8 * 4 * 1000]
    assert size("topk", 40_000) == 8 * 6 * 1000


def test_targets_stay_on_a_device_that_was_asked_for() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    for device, kind in ((None, "meta"), ("cpu", "cpu")):
        elr = ELRLoss(5, 3, device=device).to(model.weight.device)
        assert elr.store.targets.device.type == kind


@pytest.mark.parametrize(("change", "error"), [
    ({"lam": -1.0}, ConfigError), ({"beta": 1.0}, ConfigError), ({"beta": -0.1}, ConfigError),
    ({"num_classes": 1}, ConfigError), ({"num_samples": 0}, ConfigError),
    ({"storage": "float8"}, UnknownNameError), ({"lam": float("nan")}, ConfigError),
    ({"storage": "topk", "k": 0}, ConfigError),
])
def test_wrong_settings(change, error) -> None:
    with pytest.raises(error, match="expected"):
        ELRLoss(**{"num_samples": 4, "num_classes": 3, **change})


@pytest.mark.parametrize(("logits", "labels", "index", "words"), [
    (LOGITS, LABELS, None, r"index is missing(.|\n)*Indexed"),
    (LOGITS, LABELS, INDEX + 1, "index 4 of 4"),
    (LOGITS, LABELS, INDEX - 1, "index -1 of 4"),
    (LOGITS, LABELS, INDEX.float(), "an index of torch.float32"),
    (LOGITS[:, :2], LABELS, INDEX, "logits of shape"),
    (LOGITS[:3], LABELS, INDEX, "logits of shape"),
    (LOGITS, LABELS + 1, INDEX, "labels from 1 to 3"),
    (LOGITS, LABELS[:3], INDEX, "labels of shape"),
    (LOGITS, torch.ones(4, 3), INDEX, "multi-label"),
    (LOGITS * torch.nan, LABELS, INDEX, "not finite"),
    (torch.full((4, 3), torch.inf), LABELS, INDEX, "not finite"),
])
def test_bad_batches_never_reach_the_targets(logits, labels, index, words) -> None:
    elr = ELRLoss(4, 3)
    with pytest.raises(DataError, match=words):
        elr(logits, labels, index)
    assert not elr.store.targets.any()


def test_a_state_without_targets_is_refused() -> None:
    elr = ELRLoss(4, 3)
    for state in ({}, ELRLoss(5, 3).state_dict(), ELRLoss(4, 3, storage="topk").state_dict()):
        for strict in (True, False):
            with pytest.raises(CheckpointError, match="targets"):
                elr.load_state_dict(state, strict=strict)


def test_an_example_twice_in_a_batch_is_said_once() -> None:
    elr, twice = ELRLoss(4, 3), torch.tensor([2, 1, 2, 0])
    with pytest.warns(PassbandWarning, match="twice"):
        elr(LOGITS, LABELS, twice)
    p = LOGITS.softmax(1).clamp(1e-4, 1 - 1e-4)
    torch.testing.assert_close(elr.store.targets[2], 0.3 * (p / p.sum(1, keepdim=True))[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elr(LOGITS, LABELS, twice)
        ELRLoss(4, 3, warn_duplicates=False)(LOGITS, LABELS, twice)


def test_stacked_seeds_are_a_loop_over_them() -> None:
    """Targets are an axis of seeds too."""

    class Learner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.elr = nn.Linear(5, 3), ELRLoss(30, 3, checks=False)

        def forward(self, x):
            return self.network(x)

    def loss(learner, x, y, index):
        return learner.elr(learner.network(x), y, index)

    torch.manual_seed(0)
    x, labels = torch.randn(30, 5), torch.randint(3, (2, 30))
    options = {"steps": 15, "lr": 0.1, "optimizer": "sgd", "batch_size": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a loop inside torch.vmap would be said
        stack = train_seeds(
            lambda _: Learner(), loss, (x, Each(labels), torch.arange(30)), [4, 5], **options
        )
    for i, seed in enumerate((4, 5)):
        alone = train_seeds(
            lambda _: Learner(), loss, (x, labels[i], torch.arange(30)), [seed], **options
        )
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(stack.tensors[name][i], tensor[0], rtol=1e-4, atol=1e-6)
        assert float(alone.tensors["elr.store.targets"].sum()) == pytest.approx(
            30 * (1 - 0.7**5), rel=1e-4
        )


def _process(rank: int, port: int, queue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    elr = ELRLoss(4, 3)
    mine = slice(0, 3) if rank == 0 else slice(3, 4)  # batches of different sizes
    elr(LOGITS[mine], LABELS[mine], INDEX[mine])
    queue.put(elr.store.dense().tolist())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_what_they_saw() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    started = [context.Process(target=_process, args=(rank, port, queue)) for rank in range(2)]
    for process in started:
        process.start()
    found = [torch.tensor(queue.get(timeout=120)) for _ in started]
    for process in started:
        process.join(timeout=60)
    whole = ELRLoss(4, 3)
    whole(LOGITS, LABELS, INDEX)
    for targets in found:
        torch.testing.assert_close(targets, whole.store.dense())
