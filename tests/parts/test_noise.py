"""Noise has the rate, the pattern and the truth that it says it has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.noise import (
    CIFAR10_PAIRS,
    Noisy,
    corrupted,
    instance_dependent,
    pair,
    symmetric,
    transition,
)

Y = np.arange(5000) % 10


def check(noisy: Noisy, y: np.ndarray) -> None:
    """What is true of all of them."""
    assert torch.equal(noisy.truth, torch.from_numpy(y))
    assert torch.equal(noisy.wrong, noisy.labels != noisy.truth)
    assert not noisy.wrong[~noisy.drawn].any()
    assert noisy.effective == pytest.approx(float((noisy.labels.numpy() != y).mean()))
    for c in np.unique(y):
        chosen = noisy.labels.numpy()[y == c]
        shares = np.bincount(chosen, minlength=noisy.matrix.shape[0]) / len(chosen)
        np.testing.assert_allclose(noisy.matrix[c].numpy(), shares)


@given(rate=st.floats(0, 0.85), n=st.integers(1, 200), seed=st.integers(0, 2**33))
def test_symmetric_draws_exactly_so_many(rate: float, n: int, seed: int) -> None:
    noisy = symmetric(Y[:n], rate, 10, seed)
    assert int(noisy.drawn.sum()) == math.ceil(rate * n - 1e-9)
    check(noisy, Y[:n])
    assert torch.equal(symmetric(Y[:n], rate, 10, seed).labels, noisy.labels)


def test_symmetric_leaves_a_tenth_of_the_drawn_right() -> None:
    noisy = symmetric(Y, 0.4, 10, seed=0)
    n = 2000  # drawn
    assert abs(float(noisy.wrong.sum()) - 0.9 * n) < 4 * math.sqrt(n * 0.9 * 0.1)
    expected = np.full((10, 10), 0.04) + 0.6 * np.eye(10)
    assert np.abs(noisy.matrix.numpy() - expected).max() < 4 * math.sqrt(0.64 * 0.36 / 500)
    other = symmetric(Y, 0.4, 10, seed=0, exclude_true=True)
    assert torch.equal(other.wrong, other.drawn) and other.effective == 0.4
    assert len(other.labels[other.drawn].unique()) == 10


def test_ten_percent_of_a_thousand_is_a_hundred() -> None:
    """0.07 * 100 is above 7 in floating point; the count must not follow it."""
    assert int(symmetric(Y[:100], 0.07, 10).drawn.sum()) == 7


def test_pairs_of_cifar10() -> None:
    noisy = pair(Y, 0.4, CIFAR10_PAIRS, seed=1, classes=10)
    check(noisy, Y)
    for c in range(10):
        row = torch.zeros(10, dtype=torch.float64)
        row[c] += 0.6 if c in CIFAR10_PAIRS else 1.0
        row[CIFAR10_PAIRS.get(c, c)] += 0.4 if c in CIFAR10_PAIRS else 0.0
        torch.testing.assert_close(noisy.matrix[c], row)
    assert noisy.effective == pytest.approx(0.2)


def test_next_and_blocks_go_round() -> None:
    y = np.arange(600) % 6
    after = {c: int(pair(y, 0.25, "next").matrix[c].argsort()[-2]) for c in range(6)}
    assert after == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 0}
    inside = {c: int(pair(y, 0.25, 3).matrix[c].argsort()[-2]) for c in range(6)}
    assert inside == {0: 1, 1: 2, 2: 0, 3: 4, 4: 5, 5: 3}


def test_transition_draws_from_its_rows() -> None:
    table = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])
    y = np.arange(9000) % 3
    noisy = transition(y, table, seed=3)
    check(noisy, y)
    assert np.abs(noisy.matrix.numpy() - table).max() < 4 * math.sqrt(0.25 / 3000)
    assert noisy.matrix[1, 1] == 1.0 and math.isnan(noisy.rate)


def test_what_an_example_looks_like_says_what_it_is_mistaken_for() -> None:
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(4, 20))
    kind = rng.integers(0, 4, 8000)
    noisy = instance_dependent(looks[kind], np.zeros(8000, int), 0.3, seed=0, classes=10)
    # The mean of the flip rates, by scipy's truncated normal.
    rate = truncnorm.mean(-3, 7, loc=0.3, scale=0.1)
    assert abs(noisy.effective - rate) < 4 * math.sqrt(0.21 / 8000)
    tables = [
        np.bincount(noisy.labels.numpy()[(kind == k) & noisy.wrong.numpy()], minlength=10)
        for k in range(4)
    ]
    shares = np.array([t / t.sum() for t in tables])
    # Far from even within a kind, and kinds differ: symmetric noise would give 1/9 to each.
    assert shares.max(1).min() > 0.3
    assert len({int(s.argmax()) for s in shares}) > 1


def test_instance_noise_touches_all_classes_and_any_shape() -> None:
    x = torch.rand(500, 1, 4, 4)
    noisy = instance_dependent(x, Y[:500], 0.2, seed=5, classes=10)
    check(noisy, Y[:500])
    assert 0.1 < noisy.effective < 0.3 and len(noisy.truth[noisy.wrong].unique()) == 10


def test_corrupted_are_the_first() -> None:
    noisy = corrupted(np.arange(97 * 97) % 97, 0.35, 97, seed=0)
    n = int(0.35 * 97 * 97)
    assert noisy.drawn[:n].all() and not noisy.drawn[n:].any()
    check(noisy, np.arange(97 * 97) % 97)
    right = int(n - noisy.wrong.sum())
    assert abs(right - n / 97) < 4 * math.sqrt(n / 97)


@pytest.mark.parametrize("make", [
    lambda: symmetric(Y, 0.91, 10, exclude_true=True), lambda: symmetric(Y, 1.0, 10),
    lambda: pair(Y, 0.5, "next"), lambda: transition([0, 1], [[0.4, 0.6], [0, 1]]),
    lambda: corrupted(Y, 1.0, 10),
    lambda: instance_dependent(np.random.default_rng(0).random((5000, 3)), Y, 0.6, classes=10),
])
def test_noise_that_hides_the_truth_is_warned_of(make) -> None:
    with pytest.warns(PassbandWarning, match="nothing can be learned"):
        make()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: symmetric(Y, 1.5, 10), "rate of 1.5"),
    (lambda: symmetric(Y, float("nan"), 10), "rate of nan"),
    (lambda: symmetric(Y, 0.2, 1), "classes = 1"),
    (lambda: symmetric(Y, 0.2, 5), "labels from 0 to 9"),
    (lambda: symmetric(np.eye(3), 0.2, 3), "shape"),
    (lambda: symmetric([0.5, 1], 0.2, 3), "whole numbers"),
    (lambda: pair(Y, 0.2, {3: 12}), "names class 12"),
    (lambda: pair(Y, 0.2, 3), "mapping = 3"),
    (lambda: pair(Y, 0.2, "nearest"), "mapping = 'nearest'"),
    (lambda: transition([0, 1], [[0.5, 0.4], [0, 1]]), "row 0 .* 0.9"),
    (lambda: transition([0, 1], [[1.2, -0.2], [0, 1]]), "row"),
    (lambda: transition([0, 1], [[1.0, 0.0]]), "shape"),
    (lambda: instance_dependent(np.full((2, 3), np.nan), [0, 1], 0.2, classes=2), "not finite"),
    (lambda: instance_dependent(np.zeros((3, 3)), [0, 1], 0.2, classes=2), "3 rows of x for 2"),
])
def test_bad_input_is_answered(make, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        make()
