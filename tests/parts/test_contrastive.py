"""Contrastive losses against the formula written out, and the queue of momentum contrast."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from passband.errors import ConfigError, DataError
from passband.parts.asam import sharp_gradients
from passband.parts.losses.contrastive import (
    against_queue,
    contrast,
    gathered,
    in_batch,
    repeated,
)
from passband.parts.momentum import MomentumCopy, Queue


def by_hand(scores: np.ndarray, label: int, smoothing: float = 0.0) -> float:
    """-sum_j t_j log p_j of one row, in float64."""
    p = np.exp(scores - scores.max())
    p /= p.sum()
    target = np.full(len(p), smoothing / len(p))
    target[label] += 1 - smoothing
    return float(-(target * np.log(p)).sum())


@given(st.integers(0, 1000), st.sampled_from([0.05, 1.0]), st.sampled_from([0.0, 0.2]))
def test_in_batch_is_the_formula(seed, temperature, smoothing):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(3, 4, generator=g) / 3, torch.randn(7, 4, generator=g) / 3
    labels = torch.tensor([2, 0, 6])
    loss, found = in_batch(q, k, labels, temperature=temperature, label_smoothing=smoothing)
    rows = (q.double() @ k.double().T / temperature).numpy()
    expected = [by_hand(row, int(j), smoothing) for row, j in zip(rows, labels, strict=True)]
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(found) == pytest.approx(np.mean(rows.argmax(1) == labels.numpy()))


def test_smoothing_is_torchs():
    scores, labels = torch.randn(5, 9), torch.tensor([0, 3, 8, 1, 1])
    loss, _ = contrast(scores, labels, 1.0, 0.1)
    expected = nn.functional.cross_entropy(scores, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_a_queue_gives_the_negatives():
    q, k, queue = torch.randn(2, 4), torch.randn(2, 4), torch.randn(5, 4)
    loss, _ = against_queue(q, k, queue, temperature=0.5)
    expected = []
    for i in range(2):
        scores = [float(q[i] @ k[i]), *(float(q[i] @ n) for n in queue)]
        expected.append(by_hand(np.array(scores) / 0.5, 0))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(against_queue(q, k, queue[:0])[0]) == 0.0  # nothing to tell apart


def test_copies_of_the_own_text_are_left_out():
    own, keys = torch.tensor([4, 5]), torch.tensor([4, 5, 4])
    ignored = repeated(own, keys)
    q, k = torch.randn(2, 3), torch.randn(3, 3)
    loss, _ = in_batch(q, k, temperature=1.0, ignored=ignored)
    first = by_hand((q[0] @ k[:2].T).numpy(), 0)
    second = by_hand((q[1] @ k.T).numpy(), 1)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((4,), (3, 4))])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(DataError):
        in_batch(*(torch.zeros(shape) for shape in shapes))


# ---- momentum ------------------------------------------------------------------------------------


def test_the_copy_follows_as_the_formula_says():
    query = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    key = MomentumCopy(query, 0.9)
    expected = copy.deepcopy(query)
    for _ in range(3):
        with torch.no_grad():
            for p in query.parameters():
                p.add_(torch.randn_like(p))
            query[1].running_mean.add_(1.0)
            for mine, theirs in zip(expected.parameters(), query.parameters(), strict=True):
                mine.mul_(0.9).add_(0.1 * theirs)
        key.follow(query)
    for mine, theirs in zip(key.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not any(p.requires_grad for p in key.parameters())
    assert torch.equal(key.module[1].running_mean, query[1].running_mean)


def test_a_queue_forgets_the_oldest():
    queue = Queue(6, 1)
    for value in range(4):
        queue.push(torch.full((2, 1), float(value)))
    assert queue.rows().flatten().tolist() == [3, 3, 1, 1, 2, 2]
    torch.testing.assert_close(Queue(50, 8).rows().norm(dim=1), torch.ones(50))
    warm = Queue(6, 1, "warm")
    assert warm.rows().shape == (0, 1)
    for _ in range(5):
        warm.push(torch.ones(2, 1))
    assert warm.rows().shape == (6, 1)


def test_what_does_not_divide_the_queue_is_refused_with_the_nearest_size():
    with pytest.raises(DataError, match="a queue of 12"):
        Queue(10, 1).push(torch.ones(4, 1))
    with pytest.raises(ConfigError):
        MomentumCopy(nn.Linear(1, 1), 1.0)
    with pytest.raises(ConfigError):
        Queue(0, 1)


# ---- asam ----------------------------------------------------------------------------------------


def test_sharp_gradients_are_those_at_the_perturbed_point():
    """f = w1^2 + 3 w2^2 by hand, in float64."""
    w = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
    unused = nn.Parameter(torch.ones(1, dtype=torch.float64))
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)
    (found, nothing), (loss, _) = sharp_gradients(
        lambda: (scale * w**2).sum(), [w, unused], rho=0.3, eta=0.01
    )
    x, s = np.array([0.7, -0.4]), np.array([1.0, 3.0])
    g, t = 2 * s * x, np.abs(x) + 0.01
    e = 0.3 * t**2 * g / np.linalg.norm(t * g)
    np.testing.assert_allclose(found.numpy(), 2 * s * (x + e), rtol=1e-9)
    assert float(loss) == pytest.approx(float((s * x**2).sum()))
    assert float(nothing.abs().sum()) == 0
    np.testing.assert_allclose(w.detach().numpy(), x, rtol=1e-12)


def test_both_passes_see_the_same_dropout():
    w = nn.Parameter(torch.ones(1000))
    seen = []

    def loss():
        kept = nn.functional.dropout(torch.ones(1000), 0.5)
        seen.append(kept)
        return (kept * w).sum()

    sharp_gradients(loss, [w])
    assert torch.equal(*seen)


# ---- several processes ---------------------------------------------------------------------------


def apart(rank: int, folder: str) -> None:
    """One of two processes, with half of the queries and their keys."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    encoder, q, k = sides()
    half = slice(3 * rank, 3 * rank + 3)
    q, k = (part[half].clone().requires_grad_() for part in (q, k))
    keys, first = gathered(encoder(k))
    loss, found = in_batch(encoder(q), keys, first + torch.arange(3), temperature=0.3)
    loss.backward()
    torch.distributed.destroy_process_group()
    kept = {"loss": loss.detach(), "found": found, "q": q.grad, "k": k.grad,
            "weight": encoder.weight.grad}
    save_file({name: part.contiguous() for name, part in kept.items()}, f"{folder}/{rank}")


def sides():
    g = torch.Generator().manual_seed(0)
    encoder = nn.Linear(5, 4, bias=False)
    with torch.no_grad():
        encoder.weight.copy_(torch.randn(4, 5, generator=g))
    return encoder, torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g)


@pytest.mark.slow
def test_two_processes_are_one_batch(tmp_path):
    """Losses and, averaged over the processes as training does, gradients: of queries, of keys
    that are other queries' negatives in the other process, and of the weights."""
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    torch.multiprocessing.spawn(apart, args=(str(tmp_path),), nprocs=2)
    one, two = (load_file(tmp_path / str(rank)) for rank in (0, 1))

    encoder, q, k = sides()
    q.requires_grad_(), k.requires_grad_()
    whole, right = in_batch(encoder(q), encoder(k), temperature=0.3)
    whole.backward()
    torch.testing.assert_close((one["loss"] + two["loss"]) / 2, whole.detach())
    assert (one["found"] + two["found"]) / 2 == right
    torch.testing.assert_close(torch.cat([one["q"], two["q"]]) / 2, q.grad)
    torch.testing.assert_close(torch.cat([one["k"], two["k"]]) / 2, k.grad)
    torch.testing.assert_close((one["weight"] + two["weight"]) / 2, encoder.weight.grad)
