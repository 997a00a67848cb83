"""Permutations: against torchmetrics and brute force."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_distortion_ratio,
)

from passband.errors import DataError
from passband.parts.metrics.pit import best_permutation, permuted, pit
from passband.parts.metrics.sdr import si_sdr


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_least_mean_by_brute_force(count):
    losses = normal(7, count, count)
    value, order = best_permutation(losses)
    for matrix, least, chosen in zip(losses, value, order, strict=True):
        def mean(p, matrix=matrix):
            return np.mean([float(matrix[i, j]) for j, i in enumerate(p)])

        expected = min(permutations(range(count)), key=mean)
        assert chosen.tolist() == list(expected)
        assert float(least) == pytest.approx(mean(expected))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_against_torchmetrics(count):
    targets = normal(4, count, 500)
    estimates = permuted(targets, torch.stack([torch.randperm(count) for _ in range(4)]))
    estimates = estimates + 0.5 * normal(4, count, 500, seed=1)
    theirs, order = permutation_invariant_training(
        estimates, targets, scale_invariant_signal_distortion_ratio, eval_func="max"
    )
    value, ours = pit(lambda e, t: -si_sdr(e, t, zero_mean=False), estimates, targets)
    assert torch.allclose(-value, theirs, atol=1e-6)
    assert torch.equal(ours, order)
    assert (si_sdr(permuted(estimates, ours), targets) > 0).all()


def test_gradient_reaches_the_chosen_pairs_only():
    losses = torch.tensor([[[5.0, 1.0], [2.0, 9.0]]], requires_grad=True)
    best_permutation(losses)[0].sum().backward()
    assert torch.equal(losses.grad, torch.tensor([[[0.0, 0.5], [0.5, 0.0]]]))


def test_what_is_refused():
    with pytest.raises(DataError, match=r"\[B, K, K\]"):
        best_permutation(torch.zeros(2, 3))
    with pytest.raises(DataError, match="not finite"):
        best_permutation(torch.full((1, 2, 2), float("nan")))
    with pytest.raises(DataError, match="as many references"):
        pit(lambda e, t: -si_sdr(e, t), torch.zeros(1, 2, 10), torch.zeros(1, 3, 10))
