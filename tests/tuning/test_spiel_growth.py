"""Where SpIEL's deltas go, against brute force on dense products and Python sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passband.tuning.spiel.growth import (
    exchange,
    largest,
    outer_top,
    random_positions,
    replaced,
)


@pytest.mark.parametrize(("size", "count"), [(1000, 7), (1000, 600), (50, 50), (10**9, 100)])
def test_random_positions_are_distinct_and_sorted(size, count):
    found = random_positions(size, count, torch.Generator().manual_seed(1))
    assert len(found) == count
    assert bool((found[1:] > found[:-1]).all())
    assert int(found[0]) >= 0
    assert int(found[-1]) < size


def test_random_positions_are_uniform():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(4000):
        counts[random_positions(40, 6, generator)] += 1
    # Binomial(4000, 0.15): standard deviation 22.6; five of them.
    assert float((counts - 600).abs().max()) < 113


def test_largest_breaks_ties_by_position():
    rng = np.random.default_rng(0)
    for count in range(9):
        scores = rng.integers(0, 4, size=9).astype(np.float32)
        expected = sorted(sorted(range(9), key=lambda i: (-scores[i], i))[:count])
        assert largest(torch.from_numpy(scores), count).tolist() == expected


# ---- growth by momentum: the outer product -------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_outer_top_is_that_of_the_dense_product(seed):
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 14)), int(rng.integers(1, 17))
    if seed % 3 == 0:  # few values: ties everywhere, and zeros
        r, c = rng.integers(0, 3, m).astype(np.float32), rng.integers(0, 3, n).astype(np.float32)
    elif seed % 3 == 1:
        r, c = rng.random(m).astype(np.float32), rng.random(n).astype(np.float32)
    else:  # many orders of magnitude, denormal numbers among them
        r = np.float32(10.0) ** rng.integers(-44, 20, m).astype(np.float32)
        c = np.float32(10.0) ** rng.integers(-44, 20, n).astype(np.float32)
    active = rng.choice(m * n, size=int(rng.integers(0, m * n + 1)), replace=False)
    dense = np.outer(r.astype(np.float64), c.astype(np.float64)).ravel()
    free = [i for i in range(m * n) if i not in set(active.tolist()) and dense[i] > 0]
    order = sorted(free, key=lambda i: (-dense[i], i))
    for count in {0, 1, 2, len(order) // 2, len(order), m * n}:
        found = outer_top(
            torch.from_numpy(r), torch.from_numpy(c), torch.from_numpy(active), count
        )
        assert found.tolist() == order[:count]


def test_outer_top_of_equal_accumulators_takes_the_first_positions():
    active = torch.tensor([0, 2, 5])
    found = outer_top(torch.ones(3), torch.ones(4), active, 5)
    assert found.tolist() == [1, 3, 4, 6, 7]


def test_outer_top_does_not_make_the_product():
    from passband.parts.tensor_memory import PeakTensors

    m, n, count = 700, 900, 50
    r, c = torch.rand(m), torch.rand(n)
    active = torch.randperm(m * n)[:count]
    with PeakTensors() as memory:
        outer_top(r, c, active, count)
    assert memory.peak < m * n  # bytes; the product in fp64 has eight times as many


# ---- growth by gradients: who leaves, who comes --------------------------------------------------


def brute_exchange(active, importance, candidates, scores, count):
    """The rules read literally, on Python sets."""
    while True:
        leaving = [active[i] for i in sorted(range(len(active)), key=lambda i: importance[i])]
        leaving = leaving[:count]
        valid = [c for c in range(len(candidates))
                 if candidates[c] not in active or candidates[c] in leaving]
        if len(valid) >= count:
            break
        count -= 1
    best = sorted(valid, key=lambda c: -scores[c])[:count]
    coming = {candidates[c] for c in best}
    return set(leaving) - coming, coming - set(leaving)


@pytest.mark.parametrize("seed", range(20))
def test_exchange_follows_the_rules(seed):
    rng = np.random.default_rng(seed)
    active = rng.permutation(30)[:10]
    candidates = np.sort(rng.permutation(30 if seed % 2 else 14)[:10])
    importance, scores = rng.random(10), rng.random(10)
    for count in (0, 1, 4, 10):
        slots, grown = exchange(
            torch.from_numpy(active), torch.from_numpy(importance), torch.from_numpy(candidates),
            torch.from_numpy(scores), count,
        )
        left, came = brute_exchange(
            active.tolist(), importance, candidates.tolist(), scores, count
        )
        assert {int(active[s]) for s in slots} == left
        assert {int(candidates[g]) for g in grown} == came
        assert len(slots) == len(grown)


def test_candidates_that_are_all_active_leave_everything_where_it_is():
    at = torch.tensor([3, 5, 9])
    slots, grown = exchange(at, torch.tensor([0.1, 0.2, 0.3]), at, torch.ones(3), 2)
    assert len(slots) == len(grown) == 0


def test_replaced_shares():
    assert replaced("linear", 0.2, 0.5, first=False) == pytest.approx(0.1)
    assert replaced("linear", 0.2, 0.5, first=True) == 1.0
    assert replaced("cosine", 0.2, 0.5, first=True) == pytest.approx(0.1)
    assert replaced("cosine", 0.2, 1.0, first=False) == pytest.approx(0.0)
